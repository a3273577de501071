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
NAMES = [
    info.name
    for info in vtc.list_methods()
    if info.stage not in ("pixels", "encoder") and "image" in info.modality and not info.only
]
OPTIONS: dict[str, Any] = {"razor": {"heads": ((0, 0), (2, 1))}}


@pytest.fixture(scope="module")
def prefill() -> Any:
    """(model, a prefill of 576 visual and 64 text tokens whose pictures are already encoded)"""
    model = build(Arch("llava", 6, 256, 4, 688, SMALL_CLIP), CPU, torch.float32)
    methods = [vtc.resolve(name, **OPTIONS.get(name, {})) for name in NAMES]
    encoded = vtc.encode(model, methods, pixel_values=torch.randn(1, 3, 336, 336))
    ids = torch.tensor([[*range(10, 30), *[IMAGE] * 576, *range(10, 54)]])
    return model, lambda: model(input_ids=ids, **encoded.take([0]), use_cache=True, logits_to_keep=1)


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_is_no_higher(name: str, prefill: Any) -> None:
    """Beyond a score per token, which is half a per cent of this small model's peak; one per token and KV head, where
    each head chooses for itself, is two; and razor, some of whose heads hold everything beside others that take rows
    in, a tenth."""
    model, run = prefill
    full = peak_bytes(run, CPU)
    method = vtc.resolve(name, **OPTIONS.get(name, {}))
    with vtc.wrapped(model, method):
        run()
        most = 1.1 if name == "razor" else 1.02 if getattr(method, "per_head", False) else 1.005
        assert peak_bytes(run, CPU) <= most * full


FREED: list[Any] = [vtc.H2O(keep=64), vtc.TransPrune(keep=64), [vtc.DivPrune(keep=128), vtc.Streaming(keep=64)]]


@pytest.mark.parametrize("method", FREED)
def test_the_cache_frees_what_it_drops(method: Any, prefill: Any) -> None:
    model, run = prefill
    with vtc.wrapped(model, method):
        cache = run().past_key_values
        report = vtc.report(model)
    held = sum(x.untyped_storage().nbytes() for layer in cache.layers for x in (layer.keys, layer.values))
    assert held == report.kv_bytes[1] < report.kv_bytes[0]
