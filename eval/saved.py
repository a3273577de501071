"""Sets that Hugging Face's `datasets` reads: a folder of `save_to_disk`, or a `.parquet` file as the Hub holds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from vtc.eval.files import Row
from vtc.eval.questions import Media


def is_saved(path: Path) -> bool:
    """Whether `datasets` is to read it."""
    names = ("dataset_info.json", "dataset_dict.json")
    return path.suffix.lower() == ".parquet" or any((path / name).is_file() for name in names)


class Saved:
    """The rows of a saved set. Pictures stay bytes, and in the set, until a question is asked.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: it cannot be read, or holds several splits.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path if path.is_dir() else path.parent
        try:
            self._hub: Any = import_module("datasets")
        except ImportError:
            raise ImportError(f"reading {path} needs datasets: pip install 'vtc-vlm[datasets]'") from None
        if (path / "dataset_dict.json").is_file():
            splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
            raise ValueError(
                f"{path} holds several splits: give one of {', '.join(str(path / split) for split in splits)}"
            )
        try:
            table = self._hub.load_from_disk(str(path)) if path.is_dir() else self._parquet(path)
        except Exception as error:
            raise ValueError(f"{path} cannot be read as a saved data set: {error}") from error
        for name, kind in table.features.items():
            if isinstance(kind, self._hub.Image):
                table = table.cast_column(name, self._hub.Image(decode=False))
        self._table = table
        self._classes = {n: kind for n, kind in table.features.items() if isinstance(kind, self._hub.ClassLabel)}
        self.rows = [Row(f"{path}, row {number},", number, self._fields(number)) for number in range(len(table))]

    @property
    def names(self) -> list[str]:
        return self._table.column_names

    def locate(self, kind: str, value: Any) -> Media:
        """The picture or video of a field."""
        if isinstance(value, _Cell):
            if (content := value.bytes()) is not None:
                mark = hashlib.sha256(content).hexdigest()[:12]  # saved names are no paths, and may repeat
                return Media(kind, f"{value.path or 'picture'}#{mark}", read=value.bytes)
            value = value.path
        if not isinstance(value, str):
            raise ValueError(f"'{kind}' is neither of type Image nor the path of a file")
        file = self.folder / value
        if not file.is_file():
            raise FileNotFoundError(f"there is no {kind} at {file}")
        return Media(kind, value, file)

    def _parquet(self, path: Path) -> Any:
        return self._hub.Dataset.from_parquet(str(path))

    def _fields(self, number: int) -> dict[str, Any]:
        found = {}
        for name, value in self._table[number].items():
            if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
                value = _Cell(self._table, number, name, value["path"])
            elif name in self._classes and value is not None:
                value = self._classes[name].int2str(value)
            found[name] = value
        return found


class _Cell:
    """A picture within a set: where it stands, so that its bytes need not be held."""

    def __init__(self, table: Any, number: int, column: str, path: str | None) -> None:
        self._table, self._number, self._column, self.path = table, number, column, path

    def bytes(self) -> Any:
        return self._table[self._number][self._column]["bytes"]
