"""Fingerprint: whether two models are the same checkpoint, in whatever precision they are held."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from vtc.models.decoder import decoder_for
from vtc.models.family import Adapter
from vtc.models.registry import adapter_for
from vtc.models.tower import tower_type


def fingerprint_of(model: nn.Module, family: Adapter | None = None) -> str:
    """16 hexadecimal digits: of the kind and shape of a model, and of norms of its language model and its vision tower
    in bf16.

    Norms are not quantised, and adapters (LoRA) leave them alone: a checkpoint has one fingerprint in fp32, bf16 and
    four bits, and with an adapter.

    Raises:
        ValueError: these norms are not in memory.
    """
    family = family or adapter_for(model)
    lm, tower = family.language_model(model), family.tower(model)
    config = lm.config
    shape = [model.config.model_type, tower_type(tower), config.hidden_size, config.num_hidden_layers]  # type: ignore[union-attr]
    known = hashlib.sha256(repr(shape).encode())
    norms = [p for part in (decoder_for(lm).final_norm(lm), *_norms(tower)) for p in part.parameters()]
    if any(parameter.is_meta for parameter in norms):
        raise ValueError(
            "this model is not in memory as a whole (offloaded?), so that it cannot be told from others: calibrations "
            "are for models that are loaded without offloading."
        )
    for parameter in norms:
        known.update(_bytes(parameter))
    return known.hexdigest()[:16]


def _norms(tower: nn.Module) -> list[nn.Module]:
    """The last two norms of the tower."""
    return [part for part in tower.modules() if "norm" in type(part).__name__.lower()][-2:]


def _bytes(parameter: Tensor) -> bytes:
    return parameter.detach().to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().tobytes()
