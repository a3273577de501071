"""The registry: every method by name, those that ship from an index, and any subclass of a user's own.

Nothing here imports torch, or a method, before one is asked for.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Iterable
from dataclasses import MISSING, fields, replace
from functools import cache
from importlib import import_module
from inspect import formatannotation, get_annotations
from typing import TYPE_CHECKING, Any

from vtc.hints import did_you_mean
from vtc.methods.base.document import about, option_help
from vtc.methods.base.index import MethodInfo, shipped
from vtc.methods.base.notation import read_methods

if TYPE_CHECKING:
    from vtc.methods.base.method import Method

_PACKAGE = "vtc.methods"
_METHODS: dict[str, type[Method]] = {}  # those whose classes have been made


def register(cls: type[Method]) -> None:
    """Enter a Method class under its `name`; a name taken by another class raises ValueError."""
    taken = _METHODS.get(cls.name)
    owner = None if taken is None else f"{taken.__module__}.{taken.__qualname__}"
    if owner is None and cls.name in shipped() and not cls.__module__.startswith(f"{_PACKAGE}."):
        owner = f"{shipped()[cls.name].module}.{shipped()[cls.name].class_name}"
    if owner not in (None, f"{cls.__module__}.{cls.__qualname__}"):
        raise ValueError(f"method name {cls.name!r} is taken by {owner}; choose another.")
    _METHODS[cls.name] = cls


def is_registered(cls: type[Method]) -> bool:
    """Whether `cls` is what its name stands for; a subclass without a name of its own is not."""
    name = cls.__dict__.get("name")
    return bool(name) and (name in _METHODS or name in shipped()) and find(name) is cls


def discover() -> dict[str, type[Method]]:
    """All methods by name, in alphabetical order; imports the modules of all that ship."""
    return dict(sorted({**_shipping(), **_METHODS}.items()))


@cache
def _shipping() -> dict[str, type[Method]]:
    found: dict[str, type[Method]] = {}
    for entry in pkgutil.iter_modules(import_module(_PACKAGE).__path__):
        if not entry.ispkg:
            module = import_module(f"{_PACKAGE}.{entry.name}")
            own = [cls for cls in vars(module).values() if getattr(cls, "__module__", None) == module.__name__]
            found |= {cls.name: cls for cls in own if isinstance(cls, type) and cls.__dict__.get("name")}
    return found


def find(name: str) -> type[Method]:
    """The class of a method, of which alone the module is imported; ValueError if there is no such name."""
    if name in _METHODS:
        return _METHODS[name]
    if name not in shipped():
        known = [info.name for info in list_methods()]
        raise ValueError(f"unknown method {name!r}.{did_you_mean(name, known)} Known methods: {', '.join(known)}.")
    return getattr(import_module(shipped()[name].module), shipped()[name].class_name)


def list_methods() -> list[MethodInfo]:
    """Every method, those of a user's own included: what it needs and where it comes from. Imports none of them."""
    own = {name: describe(cls) for name, cls in _METHODS.items() if name not in shipped()}
    return [info for _, info in sorted({**shipped(), **own}.items())]


def describe(cls: type[Method]) -> MethodInfo:
    """What the index says of a class."""
    from vtc.methods.base.encoder import EncoderMethod

    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(cls)}
    default_keep: Any = defaults.pop("keep")
    said = option_help(cls)
    usual = cls()
    stages = dict.fromkeys(part.stage or "input" for part in usual.parts())
    return MethodInfo(
        name=cls.name,
        module=cls.__module__,
        class_name=cls.__qualname__,
        stage="+".join(stages),
        places=cls.places if issubclass(cls, EncoderMethod) else tuple(stages),
        needs=cls.needs,
        query_aware=usual.query_aware,
        exact_count=usual.exact_count,
        merges=cls.merges,
        trained=cls.trained,
        modality=cls.modality,
        only=cls.only,
        positions=cls.positions_default,
        paper=cls.paper,
        default_keep=default_keep,
        options=tuple(defaults),
        defaults=defaults,
        types={f.name: f.type if isinstance(f.type, str) else formatannotation(f.type) for f in fields(cls)},
        help={f.name: said.get(f.name, "") for f in fields(cls)},
        summary=(cls.__doc__ or "").strip().split("\n")[0],
        about=about(cls),
    )


def untrained(title: str) -> ValueError:
    """What is raised when a method without parameters is to be trained."""
    able = ", ".join(info.name for info in list_methods() if info.trained)
    return ValueError(f"{title} has no parameters to train; methods that have: {able}.")


def not_calibrated(title: str) -> ValueError:
    """What is raised when a method that has no numbers to find is to be calibrated."""
    able = ", ".join(info.name for info in list_methods() if "calibration" in info.options)
    return ValueError(f"{title} has nothing to calibrate; methods that have: {able}.")


def check_options(title: str, options: Iterable[str], valid: Collection[str]) -> None:
    """Raise TypeError with one sentence if one of `options` is not among those a method has."""
    for option in options:
        if option not in valid:
            hint = did_you_mean(option, valid)
            raise TypeError(f"{title} has no option {option!r}; it has {', '.join(sorted(valid))}.{hint}")


def resolve(method: str | Method, keep: int | float | None = None, **options: Any) -> Method:
    """A Method from a string or an instance, with `keep` and options applied; one clear sentence if that fails.

    A string is a name, with options or without: "fastv", "fastv(keep=0.2, layers=(2,))".
    """
    from vtc.methods.base.method import Method

    if isinstance(method, type) and issubclass(method, Method):
        raise TypeError(f"{method.__name__} is a class; pass an instance, for example {method.__name__}(keep=64).")
    if keep is not None:
        options["keep"] = keep
    if isinstance(method, Method):
        cls = type(method)
    elif isinstance(method, str):
        (method, written), *more = read_methods(method)
        if more:
            raise ValueError(f"{method} + {more[0][0]} are several methods, where one is expected: give one of them.")
        cls, options = find(method), written | options
    else:
        raise TypeError(f"method is {method!r}; expected a name such as 'divprune', a vtc.Method, or a list of them.")
    if cls.score is Method.score and cls.select is Method.select:
        raise TypeError(f"{cls.__name__} defines neither score(tokens) nor select(tokens); a method needs one of them.")
    options_of_its_own = [name for name, kind in get_annotations(cls).items() if "ClassVar" not in str(kind)]
    if options_of_its_own and "__dataclass_fields__" not in cls.__dict__:
        raise TypeError(f"decorate {cls.__name__} with @dataclass(frozen=True, kw_only=True), or its options are lost.")
    if isinstance(method, Method) and not options:
        return method
    check_options(cls.name or cls.__name__, options, {f.name for f in fields(cls)})
    return replace(method, **options) if isinstance(method, Method) else cls(**cls.completed(options))
