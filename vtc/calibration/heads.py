"""How much the heads of a language model look up what has been there before: what RazorAttention calls retrieval heads.

A text of random tokens that is repeated says it: with the second copy of a token, a head that looks back at the first
one is an echo head, one that looks at the token behind the first is an induction head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.attention import LayerView
from vtc.engine.sight import Range
from vtc.models import adapter_for
from vtc.models.decoder import decoder_for

REPEATS = 4
CHUNK = 256  # queries whose attention is held at a time

#: LongTensors [n] of queries and of the keys that repeat them
Pairs = tuple[Tensor, Tensor]


def of_text(model: nn.Module, period: int, seed: int) -> tuple[Tensor, Tensor]:
    """(echo, induction) [layers, KV heads] of `period` random token ids, four times one after the other.

    Echo is the mean attention of a token to its earlier copies, a mean over the three distances; induction that to the
    tokens right behind these. Of query heads that share keys the largest counts.
    """
    config: Any = adapter_for(model).language_model(model).config
    drawn = torch.randint(0, config.vocab_size, (period,), generator=torch.Generator().manual_seed(seed))
    length = REPEATS * period
    ids = drawn.repeat(REPEATS)[None]
    earlier = [(torch.arange(d * period, length), torch.arange(length - d * period)) for d in range(1, REPEATS)]
    lm = adapter_for(model).language_model(model)
    device = next(lm.parameters()).device
    embeds = lm.get_input_embeddings()(ids.to(device))
    return _heard(model, partial(lm, inputs_embeds=embeds, use_cache=False), earlier)


def of_pictures(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The same of a prompt with the same picture twice: attention of the second's tokens to those of the first.

    Raises:
        ValueError: the two do not have equally many tokens.
    """
    if adapter_for(model).masks:
        raise ValueError("pictures of this model see what follows: calibrate on text (visual=False).")
    place = adapter_for(model).token_id(model, "image")
    where = (inputs["input_ids"][0] == place).nonzero()[:, 0].cpu()
    if len(where) < 2 or len(where) % 2:
        raise ValueError("the prompt does not hold the same picture twice: calibrate on text (visual=False).")
    first, second = where.chunk(2)
    return _heard(model, partial(model, **inputs, use_cache=False), [(second, first)])


def _heard(model: nn.Module, run: Callable[[], Any], earlier: list[Pairs]) -> tuple[Tensor, Tensor]:
    lm = adapter_for(model).language_model(model)
    decoder, found = decoder_for(lm), list[tuple[Tensor, Tensor]]()
    windows = iter([w for i, w in enumerate(decoder.windows(lm.config)) if i in decoder.attending(lm.config)])

    def listen(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        sees = Range() if (window := next(windows)) is None else Range(_since(window, x))
        view = LayerView(decoder, module, x, kwargs.get("position_embeddings"), None, False, None, sees)
        found.append(_of_layer(view, earlier))

    layers, attending = decoder.layers(lm), decoder.attending(lm.config)
    hooks = [decoder.attention(layers[i]).register_forward_hook(listen, with_kwargs=True) for i in attending]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    by_layer, none = dict(zip(attending, found, strict=True)), torch.zeros_like(found[0][0])
    echo, induction = zip(*(by_layer.get(i, (none, none)) for i in range(len(layers))), strict=True)
    return torch.stack(echo), torch.stack(induction)


def _since(window: int, x: Tensor) -> Tensor:
    """LongTensor [1, S]: the first token that each of x [1, S, D] sees."""
    return (torch.arange(x.shape[1], device=x.device) - window + 1).clamp(min=0)[None]


def _of_layer(view: LayerView, earlier: list[Pairs]) -> tuple[Tensor, Tensor]:
    """(echo, induction) of each KV head of a layer."""
    length, device = view.x.shape[1], view.x.device
    sums: Tensor | None = None
    for part in torch.arange(length, device=device).split(CHUNK):
        mine = []
        for rows in view.heads(part[None]):  # [1, R, S]
            mine.append(torch.stack([_looked_up(rows[0].float(), int(part[0]), pairs) for pairs in earlier]))
        here = torch.stack(mine)  # [H, distances, 2]
        sums = here if sums is None else sums + here
    assert sums is not None
    sizes = torch.tensor([len(queries) for queries, _ in earlier], device=sums.device)
    means = (sums / sizes[:, None]).mean(dim=1)  # [H, 2]
    echo, induction = means.view(view.keys.shape[1], -1, 2).amax(dim=1).unbind(dim=1)
    return echo.cpu(), induction.cpu()


def _looked_up(rows: Tensor, first: int, pairs: Pairs) -> Tensor:
    """[2]: attention of those of the queries that `rows` [R, S] hold, from `first` on, to the keys that repeat them and
    to the keys behind these, summed."""
    queries, keys = (x.to(rows.device) for x in pairs)
    own = (queries >= first) & (queries < first + len(rows))
    row, key = queries[own] - first, keys[own]
    behind = (key + 1).clamp(max=rows.shape[1] - 1)
    return torch.stack([rows[row, key].sum(), rows[row, behind].sum()])
