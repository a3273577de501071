"""vtc.cache_bytes: what a KV cache occupies, measured, not computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor


class CacheBytes(NamedTuple):
    """Bytes of a KV cache.

    Attributes:
        rows: keys and values; in recurrent layers, their states. notes: what else is kept with them: which row is
            which, masks, what methods remember.
    """

    rows: int
    notes: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.rows + self.notes


def cache_bytes(cache: Any) -> CacheBytes:
    """The bytes of all memory that the tensors of a transformers KV cache hold, each block of memory once.

    Args:
        cache: a Cache, compressed or not; or what a model or `generate` has returned, which holds one.

    Raises:
        TypeError: there is none.
    """
    if isinstance(cache, Mapping):
        from vtc.engine.versions import cache_of

        cache = cache_of(cache)
    if not hasattr(cache, "layers"):
        raise TypeError(f"cache is {type(cache).__name__}: expected a transformers Cache, or what holds one.")
    seen: set[int] = set()
    rows = sum(_size(x, seen) for layer in cache.layers for x in _rows(layer))
    return CacheBytes(rows, sum(_size(x, seen) for layer in cache.layers for x in _tensors(vars(layer))))


def _rows(layer: Any) -> Iterator[Tensor]:
    yield from (x for name in ("keys", "values") if isinstance(x := getattr(layer, name, None), Tensor))
    for name in ("conv_states", "recurrent_states"):
        yield from (x for x in getattr(layer, name, {}).values() if isinstance(x, Tensor))
    store = getattr(layer, "store", None)
    if store is not None:
        yield from (x for x in store.tensors() if x.is_floating_point())


def _tensors(value: Any, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one, depth - 1)
    elif depth and type(value).__module__.startswith("vtc."):
        yield from _tensors(vars(value), depth - 1)


def _size(x: Tensor, seen: set[int]) -> int:
    memory = x.untyped_storage()
    if memory.data_ptr() in seen:
        return 0
    seen.add(memory.data_ptr())
    return memory.nbytes()
