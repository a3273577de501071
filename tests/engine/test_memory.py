"""Memory: a compressed run never needs more than the uncompressed one, and what is dropped is given back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from vtc.eval.bench.archs import IMAGE, SMALL_CLIP, Arch, build
from vtc.eval.bench.model import peak_bytes

CPU = torch.device("cpu")
# one that makes pictures smaller runs before there is anything encoded
NAMES = [info.name for info in vtc.list_methods() if info.stage not in ("pixels", "encoder")]


@pytest.fixture(scope="module")
def prefill() -> Any:
    """(model, a prefill of 576 visual and 64 text tokens whose pictures are already encoded)"""
    model = build(Arch("llava", 6, 256, 4, 688, SMALL_CLIP), CPU, torch.float32)
    encoded = vtc.encode(model, NAMES, pixel_values=torch.randn(1, 3, 336, 336))
    ids = torch.tensor([[*range(10, 30), *[IMAGE] * 576, *range(10, 54)]])
    return model, lambda: model(input_ids=ids, **encoded.take([0]), use_cache=True, logits_to_keep=1)


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_is_no_higher(name: str, prefill: Any) -> None:
    """Beyond a score per token, which is half a per cent of this small model's peak."""
    model, run = prefill
    full = peak_bytes(run, CPU)
    with vtc.wrapped(model, name):
        run()
        assert peak_bytes(run, CPU) <= 1.005 * full


FREED: list[Any] = [vtc.H2O(keep=64), vtc.TransPrune(keep=64), [vtc.DivPrune(keep=128), vtc.Streaming(keep=64)]]


@pytest.mark.parametrize("method", FREED)
def test_the_cache_frees_what_it_drops(method: Any, prefill: Any) -> None:
    model, run = prefill
    with vtc.wrapped(model, method):
        cache = run().past_key_values
        report = vtc.report(model)
    held = sum(x.untyped_storage().nbytes() for layer in cache.layers for x in (layer.keys, layer.values))
    assert held == report.kv_bytes[1] < report.kv_bytes[0]
