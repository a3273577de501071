"""What `vtc.check` found: a line per comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "WRONG", "-"]


@dataclass(frozen=True)
class Comparison:
    """One comparison.

    Attributes:
        name: what was compared. said: with what, and what came of it.
        ok: whether they agree; None = could not be compared, and `said` says why.
        error, limit: how far they were apart, and how far they may be; None where it is not a number.
    """

    name: str
    said: str
    ok: bool | None
    error: float | None = None
    limit: float | None = None

    @property
    def verdict(self) -> Verdict:
        return "-" if self.ok is None else "ok" if self.ok else "WRONG"

    def __str__(self) -> str:
        return f"  {self.verdict:5}  {self.name:15}  {self.said}"


@dataclass(frozen=True)
class Checked:
    """What `vtc.check` found.

    Attributes:
        title: the method and the model. comparisons: in the order in which they were made.
    """

    title: str
    comparisons: tuple[Comparison, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong, and what a wrapped model answers was compared at all."""
        compared = {one.name for one in self.comparisons if one.ok}
        return all(one.ok is not False for one in self.comparisons) and {"some dropped"} <= compared

    def __bool__(self) -> bool:
        return self.ok

    def of(self, name: str) -> Comparison:
        """The comparison of that name."""
        return next(one for one in self.comparisons if one.name == name)

    def __str__(self) -> str:
        said = "right, as far as it was compared" if self.ok else "NOT shown to be right"
        return "\n".join([self.title, *map(str, self.comparisons), f"  {said}"])
