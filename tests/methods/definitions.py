"""Which test states the definition of which method and option, in the test's own words: `@defines`.

tests/methods/test_definitions_complete.py reads the decorators from the source of all modules of this folder, and fails
where a method, or an option of one, has no such test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from inspect import get_annotations
from typing import Any, TypeVar

import vtc
from vtc.methods.base import registry
from vtc.methods.base.cache import ActiveMethod, CacheMethod
from vtc.methods.base.calibrated import CalibratedMethod
from vtc.methods.base.encoder import DroppingMethod, EncoderMethod, MergingMethod
from vtc.methods.base.greedy import GreedyMethod
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.trained import TrainedMethod

Test = TypeVar("Test", bound=Callable[..., Any])

#: options introduced here mean the same for every method, so one test of the base defines them for all
BASES: tuple[type[vtc.Method], ...] = (
    vtc.Method,
    EncoderMethod,
    MergingMethod,
    DroppingMethod,
    LayerMethod,
    CacheMethod,
    ActiveMethod,
    TrainedMethod,
    CalibratedMethod,
    GreedyMethod,
)


def defines(name: str, *options: str) -> Callable[[Test], Test]:
    """Mark a test as the brute-force definition of method `name` and of those of its options that it varies.

    Args:
        name: a registered method, or the class name of one of BASES for options that all its methods share.
        options: names of dataclass fields; all arguments are plain strings, for they are read without running them.

    Raises:
        ValueError: there is no such method, or it has no such option.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; it has: {', '.join(known)}.")

    def mark(test: Test) -> Test:
        return test

    return mark


@cache
def shipped() -> dict[str, type[vtc.Method]]:
    """Methods of this package by name; what other tests register does not count."""
    return {name: cls for name, cls in registry.discover().items() if cls.__module__.startswith("vtc.methods.")}


@cache
def options_of(name: str) -> tuple[str, ...]:
    """Fields of a method, or of one of BASES, by name; ValueError if there is none of that name."""
    known = {**shipped(), **{base.__name__: base for base in BASES}}
    if name not in known:
        raise ValueError(f"{name!r} is no method and no base; there are: {', '.join(known)}.")
    return tuple(field.name for field in fields(known[name]))


def definer(cls: type[vtc.Method], option: str) -> str:
    """Whose test has to define `option` of `cls`: the base's that introduces it, or the method's own."""
    annotated = [(base, str(get_annotations(base).get(option, "ClassVar"))) for base in reversed(cls.__mro__)]
    first = next(base for base, kind in annotated if "ClassVar" not in kind)
    return first.__name__ if first in BASES else cls.name
