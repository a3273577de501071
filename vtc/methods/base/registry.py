"""The registry: every method by name. Files in this folder register themselves; so does any user's subclass."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from importlib import import_module
from inspect import get_annotations
from typing import Any

from vtc.methods.base.method import Method, Paper
from vtc.methods.base.notation import read_methods

_METHODS: dict[str, type[Method]] = {}


def register(cls: type[Method]) -> None:
    """Enter a Method class under its `name`; a name taken by another class raises ValueError."""
    old = _METHODS.get(cls.name)
    if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"method name {cls.name!r} is taken by {old.__module__}.{old.__qualname__}; choose another.")
    _METHODS[cls.name] = cls


def is_registered(cls: type[Method]) -> bool:
    """Whether `cls` is what its name stands for; a subclass without a name of its own is not."""
    return bool(cls.__dict__.get("name")) and _METHODS.get(cls.name) is cls


def discover() -> dict[str, type[Method]]:
    """All registered methods by name, in alphabetical order."""
    package = import_module("vtc.methods")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            import_module(f"vtc.methods.{module.name}")
    return dict(sorted(_METHODS.items()))


@dataclass(frozen=True)
class MethodInfo:
    """What `vtc.methods()` tells of a method."""

    name: str
    stage: str
    needs: tuple[str, ...]
    query_aware: bool
    exact_count: bool
    merges: bool
    trained: bool
    modality: tuple[str, ...]
    positions: str
    paper: Paper | None
    default_keep: int | float
    options: tuple[str, ...]
    summary: str


def methods() -> list[MethodInfo]:
    """Every registered method, with what it needs and where it comes from."""
    infos = []
    for name, cls in discover().items():
        options = {f.name: f.default for f in fields(cls)}
        default_keep: Any = options.pop("keep")
        infos.append(
            MethodInfo(
                name=name,
                stage="+".join(dict.fromkeys(part.stage for part in cls().parts())),
                needs=cls.needs,
                query_aware=cls.query_aware,
                exact_count=cls.exact_count,
                merges=cls.merges,
                trained=cls.trained,
                modality=cls.modality,
                positions=cls.positions_default,
                paper=cls.paper,
                default_keep=default_keep,
                options=tuple(options),
                summary=(cls.__doc__ or "").strip().split("\n")[0],
            )
        )
    return infos


def resolve(method: str | Method, keep: int | float | None = None, **options: Any) -> Method:
    """A Method from a string or an instance, with `keep` and options applied; one clear sentence if that fails.

    A string is a name, with options or without: "fastv", "fastv(keep=0.2, layers=(2,))".
    """
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
        options = written | options
        known = discover()
        if method not in known:
            key = method.lower().replace("_", "-")
            near = [key] if key in known else get_close_matches(key, known, 1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown method {method!r}.{hint} Known methods: {', '.join(known)}.")
        cls = known[method]
    else:
        raise TypeError(f"method is {method!r}; expected a name such as 'divprune', a vtc.Method, or a list of them.")
    if cls.score is Method.score and cls.select is Method.select:
        raise TypeError(f"{cls.__name__} defines neither score(tokens) nor select(tokens); a method needs one of them.")
    options_of_its_own = [name for name, kind in get_annotations(cls).items() if "ClassVar" not in str(kind)]
    if options_of_its_own and "__dataclass_fields__" not in cls.__dict__:
        raise TypeError(f"decorate {cls.__name__} with @dataclass(frozen=True, kw_only=True), or its options are lost.")
    valid = {f.name for f in fields(cls)}
    for option in options:
        if option not in valid:
            near = get_close_matches(option, valid, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"{cls.name or cls.__name__} has no option {option!r}; it has {', '.join(sorted(valid))}.{hint}"
            )
    return replace(method, **options) if isinstance(method, Method) else cls(**options)
