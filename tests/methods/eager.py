"""What transformers itself computes in a tiny model: the attention and the states that definitions are written with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import vtc
from tests.families import IMAGE, batch, model_of


@dataclass(frozen=True)
class Eager:
    """One prompt with a picture in a model without vtc.

    Attributes:
        attention: per decoder layer [H, L, L]. keys: [G, L, d], rotated. states: [L, D], what each layer is given, and
            what the last norm makes of what it leaves.
        modules: per decoder layer what goes into attention and feed-forward part, and what comes out, [L, D] each.
        visual, text: positions of the picture's tokens, and of the text after them.
    """

    model: Any
    inputs: dict[str, Tensor]
    attention: list[Tensor]
    keys: list[Tensor]
    states: list[Tensor]
    modules: list[list[tuple[Tensor, Tensor]]]
    visual: list[int]
    text: list[int]

    def rows(self, layer: int) -> list[list[float]]:
        """Mean over heads of the attention that each text token gives each visual one, [T][N]."""
        mean = self.attention[layer].mean(dim=0)
        return [[float(mean[t, i]) for i in self.visual] for t in self.text]

    def kept(self, method: vtc.Method) -> list[int]:
        """What the method leaves of the picture in this model."""
        with vtc.wrapped(self.model, method) as model:
            model(**self.inputs)
            return vtc.report(model).spans[0].kept.tolist()


def _note(heard: list[tuple[Tensor, Tensor]], _: Any, args: Any, kwargs: Any, output: Any) -> None:
    given = args[0] if args else kwargs["hidden_states"]
    heard.append((given[0], (output[0] if isinstance(output, tuple) else output)[0]))


@cache
def eager(family: str = "llava", picture: int = 0, more: int = 8) -> Eager:
    """The prompt of `tests.families.batch` and `more` words behind it; no norm of the language model is an even one."""
    model, inputs = copy.deepcopy(model_of(family, "eager")), batch(family, [[picture]])
    torch.manual_seed(1)
    for name, parameter in model.model.language_model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.25, 1.75)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in inputs:
            words = torch.arange(60, 60 + more) if name == "input_ids" else torch.full((more,), int(name[0] == "a"))
            inputs[name] = torch.cat([inputs[name], words[None].to(inputs[name].dtype)], dim=1)
    layers = model.model.language_model.layers
    modules: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
    hooks = [
        part.register_forward_hook(partial(_note, modules[i]), with_kwargs=True)
        for i, layer in enumerate(layers)
        for part in (layer.self_attn, layer.mlp)
    ]
    with torch.no_grad():
        out = model(**inputs, output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    visual = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()
    text = list(range(visual[-1] + 1, inputs["input_ids"].shape[1]))
    attention = [layer[0].double() for layer in out.attentions]
    keys = [layer.keys[0] for layer in out.past_key_values.layers]
    return Eager(model, inputs, attention, keys, [layer[0] for layer in out.hidden_states], modules, visual, text)
