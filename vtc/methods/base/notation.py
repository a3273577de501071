"""The string form of methods: `name(option=value, ...)`, several joined by " + ". Names and values only, no classes.

    fastv
    fastv(keep=0.2, layers=(2,))
    vtc-cls(keep=192) + todre(keep=64, mode=kcenter)

Values are Python literals: numbers, True, False, None, text in quotes, tuples. Text that looks like nothing else may go
without quotes.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

_METHOD = re.compile(r"\s*([\w.-]+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_OPTION = re.compile(r"\s*([A-Za-z_]\w*)\s*=(.*)", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_./~][\w./~@-]*")
_FORM = "expected name(option=value, ...), such as fastv(keep=0.2, layers=(2,))"
_OPENING, _CLOSING = "([{", ")]}"


def read_methods(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The methods of a string, each a name and the options given; ValueError with one sentence if it is none."""
    return [_read_method(part, text) for part in split_outside(text, "+")]


def write_method(name: str, options: Mapping[str, Any]) -> str:
    """The string of one method, which `read_methods` reads back: `keep` first, then by name.

    Raises:
        TypeError: a value has no such form; it must be a number, text, None, or a list or tuple of these.
    """
    order = sorted(options, key=lambda option: (option != "keep", option))
    inside = ", ".join(f"{option}={_written(plain(options[option]))}" for option in order)
    return f"{name}({inside})" if inside else name


def split_outside(text: str, separator: str) -> list[str]:
    """Parts of `text` between the separators (one character) that stand outside brackets and quotes, stripped."""
    parts, depth, quote, start = [], 0, "", 0
    for i, letter in enumerate(text):
        if quote:
            escaped = (i - len(text[:i].rstrip("\\"))) % 2 == 1
            quote = "" if letter == quote and not escaped else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _OPENING or letter in _CLOSING:
            depth += 1 if letter in _OPENING else -1
        elif letter == separator and depth <= 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def plain(value: Any) -> Any:
    """A value as data: None, text, plain finite numbers, and tuples of these; TypeError for everything else."""
    if isinstance(value, list | tuple):
        return tuple(plain(entry) for entry in value)
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    raise TypeError(f"a {type(value).__name__} has no string form: expected a number, text, None, or a tuple of these.")


def _read_method(part: str, text: str) -> tuple[str, dict[str, Any]]:
    found = _METHOD.fullmatch(part)
    if found is None:
        raise ValueError(f"{part or text!r} does not name a method: {_FORM}.")
    name, inside = found.groups()
    options: dict[str, Any] = {}
    entries = split_outside(inside or "", ",")
    for entry in entries[:-1] if not entries[-1] else entries:  # (), and a comma at the end
        given = _OPTION.fullmatch(entry)
        if given is None:
            raise ValueError(f"{entry!r} in {part!r} gives no option a value: {_FORM}.")
        option, value = given.groups()
        if option in options:
            raise ValueError(f"{part!r} gives {option} twice: give it once.")
        try:
            options[option] = _read_value(value.strip())
        except ValueError:
            raise ValueError(
                f"{option}={value.strip()} in {part!r} is no value: expected a number, True, False, None, a tuple, or "
                "text (in quotes, if it is more than a word)."
            ) from None
    return name, options


def _written(value: Any) -> str:
    """A plain value; text without quotes where it is read back all the same."""
    bare = isinstance(value, str) and _WORD.fullmatch(value) and _read_value(value) == value
    return value if bare else repr(value)


def _read_value(text: str) -> Any:
    """A literal, else a bare word; ValueError if it is neither."""
    try:
        return plain(_literal(text))
    except (TypeError, ValueError):
        if _WORD.fullmatch(text):
            return text
        raise ValueError(text) from None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(text) from None
