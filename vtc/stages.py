"""The stages by name: where on a token's way methods may act, in the order in which a token meets them. No torch.

Methods and the engine meet here: a `Method` class may name a stage only if it is in this table, and making a subclass
of `vtc.engine.stage.Stage` enters it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageName:
    """One stage: stages of a lower `order` come first; `base` is the name of the class that its methods derive from."""

    name: str
    order: int
    base: str = "Method"


_TABLE: dict[str, StageName] = {
    row.name: row
    for row in (
        StageName("pixels", 5, "PixelMethod"),
        StageName("encoder", 10),
        StageName("input", 20),
        StageName("layer", 30, "LayerMethod"),
        StageName("cache", 40, "CacheMethod"),
    )
}
_OURS = {row.base for row in _TABLE.values()}


def register_stage(name: str, order: int, base: str = "Method") -> None:
    """Enter a stage; one of that name may be there already, run by another class, if its methods have the same base."""
    known = _TABLE.setdefault(name, StageName(name, order, base))
    if known.base != base:
        raise ValueError(f"methods of stage {name!r} derive from {known.base}, not {base}; choose another name.")


def stage_names() -> tuple[str, ...]:
    """Every stage, in order."""
    return tuple(row.name for row in sorted(_TABLE.values(), key=lambda row: row.order))


def base_of(stage: str) -> str:
    """Name of the class that methods of `stage` derive from."""
    return _TABLE[stage].base


def check_stage(owner: str, stage: str, ancestors: set[str]) -> None:
    """Raise ValueError or TypeError with one sentence if a method class cannot work at `stage`.

    Args:
        owner: its name. ancestors: names of the classes it derives from, and its own.
    """
    if stage not in _TABLE:
        raise ValueError(f"{owner}.stage is {stage!r}; expected one of {', '.join(stage_names())}.")
    found = ancestors & {row.base for row in _TABLE.values()} - {"Method"}
    if found != {base_of(stage)} - {"Method"}:
        own = " and ".join(_said(base) for base in sorted(found or {"Method"}))
        raise TypeError(
            f"{owner} derives from {own}, but its stage is {stage!r}: derive it from {_said(base_of(stage))}, or leave "
            "`stage` out."
        )


def _said(base: str) -> str:
    """A base class as its user imports it, where it is ours."""
    return f"vtc.{base}" if base in _OURS else base
