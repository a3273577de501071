"""Methods with learned parameters: where these are kept, how they are loaded, and which model they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vtc.methods.base.card import CARD, FORMAT, TENSORS, read_card, tensors_of
from vtc.methods.base.method import Method


@dataclass(frozen=True, kw_only=True)
class TrainedMethod(Method):
    """A method with a torch module of its own, which `vtc.train` trains and `weights` brings back.

    A subclass defines `module(width)` and calls `self.net(features)` in its `select`; whatever it puts into
    `Selection.features` is differentiable end to end.

    Args:
        weights: a folder that `vtc.train` wrote, or a live module (as training uses it); None = none.
    """

    weights: str | Path | nn.Module | None = None

    trained = True
    files = ("weights",)
    #: options that weights are trained with, and what None stands for where there are none; read them by `option`
    fixed: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.weights, str | Path | nn.Module | None):
            raise TypeError(f"weights={self.weights!r} is not a folder that vtc.train wrote, nor a module.")
        if not isinstance(self.weights, str | Path):
            return
        object.__setattr__(self, "weights", str(self.weights))
        for name in self.fixed:
            given, stored = getattr(self, name), self._stored(name)
            if given not in (None, stored):
                raise ValueError(
                    f"{name}={given!r}, but the weights in {self.weights} were trained with {name}={stored!r}: leave "
                    "it out, or train others."
                )

    def option(self, name: str) -> Any:
        """One of the `fixed` options: as given, else as the weights were trained, else the default."""
        given = getattr(self, name)
        if given is not None:
            return given
        return self._stored(name) if isinstance(self.weights, str | Path) else self.fixed[name]

    def _stored(self, name: str) -> Any:
        assert isinstance(self.weights, str | Path)
        value = read_card(self.weights, self.title)["options"].get(name, self.fixed[name])
        return tuple(value) if isinstance(value, list) else value

    def module(self, width: int) -> nn.Module:
        """A new module for features [.., width], its parameters drawn from torch's global generator."""
        raise TypeError(f"{type(self).__name__} defines no module(width): a trained method needs one.")

    def training(self, module: nn.Module, **changes: Any) -> TrainedMethod:
        """This method with `module` at work: what is wrapped while it trains."""
        return replace(self, weights=module, **{name: self.option(name) for name in self.fixed}, **changes)

    def check_model(self, model_type: str, width: int) -> None:
        if not isinstance(self.weights, str | Path):
            return
        card = read_card(self.weights, self.title)
        if card["model_type"] != model_type or card["width"] != width:
            raise ValueError(
                f"the weights in {self.weights} were trained for {card['model_type']} of width {card['width']}; this "
                f"model is {model_type} of width {width}: train them for it (vtc.train)."
            )
        file = tensors_of(self.weights)
        _read(self, width, file, file.stat().st_mtime_ns)  # refuses what is damaged

    def net(self, features: Tensor) -> nn.Module:
        """The module at work on `features` [.., D]: the live one, or the weights' in the features' device and dtype."""
        if isinstance(self.weights, nn.Module):
            return self.weights
        width = features.shape[-1]
        if self.weights is None:
            return _fresh(self, width, features.device, features.dtype)
        file = tensors_of(self.weights)
        card = read_card(self.weights, self.title)
        if card["width"] != width:
            raise ValueError(f"the weights in {self.weights} are for width {card['width']}; the features have {width}.")
        return _stored(self, width, file, file.stat().st_mtime_ns, features.device, features.dtype)

    def initial(self, width: int, seed: int) -> nn.Module:
        """The module before training: `weights` if there are any, else a new one; the global generator stays as is."""
        if isinstance(self.weights, nn.Module):
            return self.weights
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            module = self.module(width)
        if self.weights is not None:
            try:
                module.load_state_dict(load_file(tensors_of(self.weights)))
            except (SafetensorError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"the weights in {self.weights} are damaged or do not fit the card beside them ({reason}): train "
                    "them anew."
                ) from None
        return module


def save_module(
    folder: Path, method: TrainedMethod, module: nn.Module, model_type: str, width: int, facts: Mapping[str, Any]
) -> None:
    """Write `module.safetensors` and `module.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.detach().cpu().contiguous() for name, x in module.state_dict().items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    card = {
        "format": FORMAT,
        "method": method.title,
        "model_type": model_type,
        "width": width,
        "options": {name: method.option(name) for name in method.fixed},
        **facts,
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


@lru_cache(maxsize=8)
def _read(method: TrainedMethod, width: int, file: Path, written: int) -> nn.Module:
    return method.initial(width, 0)


@lru_cache(maxsize=8)
def _stored(
    method: TrainedMethod, width: int, file: Path, written: int, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    return _at_work(deepcopy(_read(method, width, file, written)), device, dtype)


@lru_cache(maxsize=8)
def _fresh(method: TrainedMethod, width: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return _at_work(method.initial(width, getattr(method, "seed", 0)), device, dtype)


def _at_work(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return module.to(device, dtype).eval().requires_grad_(False)
