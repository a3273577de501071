"""What the docstrings of methods say: of the method, and of each of its options."""

from __future__ import annotations

import inspect
import re

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns):$")
_DEFAULT = re.compile(r"`([a-z]+_default)`")
_ENTRY = re.compile(r"    ([a-z_]\w*(?:, [a-z_]\w*)*): (.*)")


def about(cls: type) -> str:
    """The docstring after its first line and before its sections, one line per paragraph."""
    _, _, body = inspect.cleandoc(cls.__doc__ or "").partition("\n")
    lines = body.split("\n")
    end = next((i for i, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    paragraphs = "\n".join(lines[:end]).replace("\n* ", "\n\n* ").strip().split("\n\n")
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def option_help(cls: type) -> dict[str, str]:
    """Option -> what the `Args:` of the nearest class that describes it says, in one line.

    "layers, keeps: places and budgets" describes both of them, and so do "keep: ..." of the class and not of its base.
    Where a base names an attribute, such as `scope_default`, what it is for this class stands.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        found |= _args(base.__doc__ or "")
    return {name: _DEFAULT.sub(lambda at: f'"{getattr(cls, at[1])}"', text) for name, text in found.items()}


def _args(text: str) -> dict[str, str]:
    lines = iter(inspect.cleandoc(text).split("\n"))
    found: dict[str, str] = {}
    names: list[str] = []
    if not any(line == "Args:" for line in lines):
        return found
    for line in lines:
        entry = _ENTRY.fullmatch(line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2].strip())
        elif names and line.startswith("        "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            break
    return found
