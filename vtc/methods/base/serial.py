"""Methods as data: JSON, which says every option, and the string form, which says those that differ from the default.

A file is read by later versions, whose defaults may be others: so it holds all options. A string is read by people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vtc.methods.base.method import Method
from vtc.methods.base.notation import plain, write_method
from vtc.methods.base.registry import is_registered, resolve

FORMAT = 1


def as_dict(method: Method) -> dict[str, Any]:
    """{"format": 1, "name": ..., "options": {...}} of JSON's types alone; see `Method.as_dict`."""
    return {"format": FORMAT, "name": method.name, "options": {k: _json(v) for k, v in _options(method).items()}}


def from_dict(written: Mapping[str, Any]) -> Method:
    """The method that `as_dict` wrote; see `Method.from_dict`."""
    if not isinstance(written, Mapping) or not {"format", "name"} <= written.keys():
        raise ValueError(f'{written!r} is no method: expected a table with "format", "name" and "options".')
    if written["format"] != FORMAT:
        raise ValueError(f"a method in format {written['format']!r} cannot be read: this vtc knows format {FORMAT}.")
    options = written.get("options", {})
    more = [key for key in written if key not in ("format", "name", "options")]
    if more or not isinstance(options, Mapping) or not isinstance(written["name"], str):
        what = f"it has {more[0]!r}, too" if more else "its name is no text, or its options no table"
        raise ValueError(f'{dict(written)!r} is no method: expected "format", "name" and "options", but {what}.')
    if "(" in written["name"]:
        raise ValueError(f'the name {written["name"]!r} brings options: they belong into "options".')
    method = resolve(written["name"])
    return resolve(method, **{name: _tuples(value) for name, value in options.items()})


def as_text(method: Method) -> str:
    """`name(option=value, ...)` of a registered method; `vtc.resolve` reads it back."""
    defaults = type(method)()
    own = {k: v for k, v in _options(method).items() if repr(v) != repr(getattr(defaults, k))}  # 1 is not 1.0
    return write_method(method.name, own)


def cache_key(method: Method) -> str:
    """`vtc <version> name(every=option, ...)`, files by what they hold; see `Method.cache_key`."""
    import vtc

    options = _options(method)
    for name in method.files:
        if options[name] is not None:
            options[name] = digest(options[name])
    return f"vtc {vtc.__version__} {write_method(method.name, options)}"


def digest(path: str | Path) -> str:
    """16 hexadecimal digits of what a file holds, or the files of a folder, in the order of their names."""
    root = Path(path)
    files = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
    inside = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    return hashlib.sha256(inside).hexdigest()[:16]


def _options(method: Method) -> dict[str, Any]:
    """All options; TypeError with one sentence where they cannot be written down."""
    if not is_registered(type(method)):
        raise TypeError(
            f"{type(method).__name__} has no registered name to be found by again: give the class a name, or write the "
            "method that it is a part of."
        )
    options: dict[str, Any] = {}
    for field in fields(method):
        value = getattr(method, field.name)
        try:
            options[field.name] = plain(value)
        except TypeError:
            raise TypeError(
                f"{method.name} cannot be written down: {field.name}= holds a {type(value).__name__}, and only finite "
                "numbers, text (such as a folder of weights), None and tuples of these can."
            ) from None
    return options


def _json(value: Any) -> Any:
    return [_json(entry) for entry in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value
