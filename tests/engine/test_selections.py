"""Selections inside the language model: what a stage cannot do is refused, and a method is told where it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vtc
from tests.families import FAMILIES, batch, model_of
from vtc.engine.versions import cache_of
from vtc.methods.base.cache import ActiveMethod


@dataclass(frozen=True, kw_only=True)
class Pairs(vtc.CacheMethod):
    """Every second cached token absorbs its neighbour."""

    def select(self, tokens: vtc.VisualTokens) -> vtc.Selection:
        total = len(tokens.features)
        return vtc.Selection.merge(torch.arange(0, total, 2), torch.arange(total) // 2)


class SaidPairs(Pairs):
    merges = True


class SaidActive(ActiveMethod):
    merges = True

    def score(self, tokens: vtc.VisualTokens) -> torch.Tensor:
        return torch.zeros(len(tokens.features))


@pytest.mark.parametrize("method", [SaidActive()], ids=["read"])
def test_merging_in_the_cache_is_refused_at_wrap(method: Any) -> None:
    model = model_of("llava")
    with pytest.raises(ValueError, match=r"merges tokens, which the stage 'cache' cannot: .*\.$") as caught:
        vtc.wrap(model, [vtc.DivPrune(keep=0.5), method])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="not wrapped"):
        vtc.report(model)


def test_merging_in_the_cache_unannounced_is_refused() -> None:
    model, inputs = model_of("llava"), batch("llava", [[0]])
    full = model(**inputs).logits
    with vtc.wrapped(model, Pairs()):
        with pytest.raises(ValueError, match=r"^Pairs returned a Selection that merges .* merges = True, or .*\.$"):
            model(**inputs, use_cache=True)
        text = {"input_ids": inputs["input_ids"][:, :3]}
        assert model(**text).logits.isfinite().all()
    assert model(**inputs).logits.equal(full)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("base", [vtc.CacheMethod, vtc.LayerMethod])
def test_methods_are_told_their_layer_and_depth(family: str, base: type[vtc.Method]) -> None:
    """Budgets by layer, as of a pyramid: deeper layers hold fewer."""
    told: list[tuple[int, int | None, int]] = []

    @dataclass(frozen=True, kw_only=True)
    class Pyramid(base):  # type: ignore[misc,valid-type]
        def count(self, tokens: vtc.VisualTokens) -> int:
            assert tokens.layer is not None
            told.append((tokens.span.row, tokens.layer, tokens.depth))
            return 2 * (tokens.depth - tokens.layer)

        def score(self, tokens: vtc.VisualTokens) -> torch.Tensor:
            return torch.arange(len(tokens.features)).float()

    model, inputs = model_of(family), batch(family, [[0], [1]])
    first = 0 if base is vtc.CacheMethod else 1
    options: dict[str, Any] = {} if base is vtc.CacheMethod else {"layers": (1, 2)}
    with vtc.wrapped(model, Pyramid(**options)):
        output = model(**inputs, use_cache=True)
        report = vtc.report(model)
    layers = range(first, 3)
    assert sorted({(layer, depth) for _, layer, depth in told}) == [(layer, 3) for layer in layers]
    assert len(told) == 2 * len(layers)
    held = [layer.keys.shape[2] for layer in cache_of(output).layers]
    assert [held[i] - held[2] for i in layers] == [2 * (2 - i) for i in layers]
    assert report.tokens_out == (4 if first else report.tokens_in)


# -- choosing anew is cheap ----------------------------------------------------------------------------------------


class Copies(TorchDispatchMode):
    """Counts new tensors [B, G, rows or more, d]: copies of a layer's keys or values."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.found = rows, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = [x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        for x in tree_leaves(output):
            large = isinstance(x, torch.Tensor) and x.dim() == 4 and x.shape[2] >= self.rows
            self.found += large and x.untyped_storage().data_ptr() not in given
        return output


@contextmanager
def inside(layers: list[Any], mode: Copies) -> Iterator[None]:
    """`mode` while one of `layers` runs."""
    handles = [x.register_forward_pre_hook(lambda *_: mode.__enter__() and None) for x in layers]
    handles += [x.register_forward_hook(lambda *_: mode.__exit__(None, None, None)) for x in layers]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("family", ["llava_next_video", "qwen2_5_vl"])
def test_choosing_anew_moves_nothing(family: str) -> None:
    """In every step the layers behind the deciding one read another tenth: they gather it, and append the new token to
    what they hold, as without vtc."""
    model, inputs = model_of(family), batch(family, [["v0"]])
    layers = list(model.model.language_model.layers)  # the first decides, and could move what the others hold

    def step(ids: Any, cache: Any, mode: Copies) -> Any:
        with inside(layers, mode):
            return model(input_ids=ids, use_cache=True, past_key_values=cache)

    def steps(prompt: Any) -> list[int]:
        cache, counts = cache_of(prompt), []
        for i in range(3):
            mode = Copies(min(layer.keys.shape[2] for layer in cache.layers))
            step(torch.tensor([[20 + 7 * i]]), cache, mode)
            counts.append(mode.found)
        return counts

    plain = steps(model(**inputs, use_cache=True))
    method = vtc.DyCoke(keep=1.0, p=0.9, refresh=1.0, layer=1)
    with vtc.wrapped(model, method):
        cut = steps(model(**inputs, use_cache=True))
        notes = " ".join(vtc.report(model).notes)
    assert "chosen 3 times in 3 steps" in notes
    assert max(cut) <= min(plain)
    assert min(plain) >= 2 * len(layers)  # the new token's rows are appended
