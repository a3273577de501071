"""InnerMethod: before the language model, and once more inside it where the option `inner` says so."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vtc.budget import check_layer
from vtc.checks import check_number
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method


@dataclass(frozen=True, kw_only=True)
class InnerMethod(Method):
    """Base of methods with a stage inside the language model that `inner` turns on; a subclass makes it (`_inside`).

    What is inside reads the question, and `keep` is what enters the language model.
    """

    inner: float | None = None
    layer: int | float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner is not None:
            check_number(self.inner, "inner", above=0, below=1, what="a share (None = nothing happens inside)")
        check_layer(self.layer, "layer")
        object.__setattr__(self, "query_aware", self.inner is not None)
        object.__setattr__(self, "exact_count", self.inner is None)

    def _inside(self, inner: float) -> LayerMethod:
        """What acts before `layer`, for a share `inner`."""
        raise NotImplementedError

    def _left(self, share: float) -> int | float:
        """That share of the budget, as a budget."""
        return self.keep * share if isinstance(self.keep, float) else max(1, round(self.keep * share))

    def parts(self) -> tuple[Method, ...]:
        return (self,) if self.inner is None else (replace(self, inner=None), self._inside(self.inner))

    def keeps_all(self) -> bool:
        """Not if a share goes inside the language model, whatever the budget."""
        return self.inner is None
