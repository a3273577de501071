"""Write the generated pages: `python -m docs.generate [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

from docs.generate import pages


def main(arguments: list[str]) -> int:
    """Write all of them into a folder, by default docs/; 2 if it is called otherwise."""
    if len(arguments) > 1 or any(word.startswith("-") for word in arguments):
        print("python -m docs.generate [FOLDER]: give one folder, or none for docs/", file=sys.stderr)
        return 2
    folder = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    found = pages()
    for name, text in found.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    print(f"{len(found)} pages in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
