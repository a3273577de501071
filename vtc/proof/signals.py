"""Attention as vtc reads it, of a language model and of a vision tower, against what they weigh themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from vtc.models.decoder import decoder_for
from vtc.models.family import Adapter
from vtc.models.tower import tower_for
from vtc.proof.attention import Heard, listening
from vtc.proof.results import Comparison

Calls = dict[int, list[tuple[Any, ...]]]


def of_decoder(model: Any, lm: Any, layers: nn.ModuleList, given: Mapping[str, Any], limit: float) -> Comparison:
    """Each layer's attention weights."""
    name, decoder = "decoder", decoder_for(lm)
    if reason := decoder.why_not(lm):
        return Comparison(name, f"not compared: it {reason}", None)
    calls: Calls = defaultdict(list)
    handles = []
    attending = [layers[i] for i in decoder.attending(lm.config)]
    try:
        for layer in attending:
            attention = decoder.attention(layer)
            handles.append(attention.register_forward_hook(partial(_note, calls), with_kwargs=True))
        with listening(model) as heard:
            model(**given)
    except Exception as error:
        return Comparison(name, f"not compared: {_first_line(error)}", None)
    finally:
        for handle in handles:
            handle.remove()
    theirs = {id(one.module): one for one in heard}
    worst, number = 0.0, 0
    for layer in attending:
        attention = decoder.attention(layer)
        own = theirs.get(id(attention))
        if own is None or not calls[id(attention)]:
            continue
        args, kwargs = calls[id(attention)][0]
        x = args[0] if args else kwargs["hidden_states"]
        tables = decoder.tables(attention, kwargs.get("position_embeddings"))
        queries, keys = decoder.queries(attention, x, tables), decoder.keys(attention, x, tables)
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
        worst = max(worst, _apart(queries, keys, decoder.scaling(attention), own))
        number += 1
    if not number:
        return Comparison(name, "not compared: its attention goes another way than transformers' others", None)
    return _judged(name, f"attention of {number} layers", worst, limit)


def of_tower(model: Any, adapter: Adapter, given: Mapping[str, Any], limit: float) -> Comparison:
    """Each block's attention weights, segment by segment."""
    from vtc.proof.run import features_of

    name, tower = "tower", adapter.tower(model)
    try:
        facts = tower_for(tower)
        attentions = list(facts.attentions(tower))
    except (ValueError, AttributeError):
        kind = type(tower).__name__
        return Comparison(name, f"not read: {kind} is none that vtc knows; methods that read it refuse", None)
    made: dict[tuple[int, str], list[Tensor]] = defaultdict(list)
    calls: Calls = defaultdict(list)
    returned: dict[int, Tensor] = {}
    grids: list[Tensor | None] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grid = adapter.tower_grids(module, args, kwargs)
        grids.append(None if grid is None else grid.cpu())

    handles = [tower.register_forward_pre_hook(before, with_kwargs=True)]
    try:
        for attention in attentions:
            q, k = facts.projections(attention)
            for which, module in (("q", q), ("k", k)):
                handles.append(module.register_forward_hook(partial(_keep, made[id(attention), which])))
            handles.append(attention.register_forward_hook(partial(_note, calls), with_kwargs=True))
            handles.append(attention.register_forward_hook(partial(_returned, returned)))
        with listening(model) as heard:
            features_of(model, given, adapter)
    except Exception as error:
        return Comparison(name, f"not compared: {_first_line(error)}", None)
    finally:
        for handle in handles:
            handle.remove()
    worst, number = 0.0, 0
    for attention in attentions:
        own = [one for one in heard if one.module is attention]
        if not own and id(attention) in returned:
            weights = returned[id(attention)]  # [B * H, T, T]
            own = [Heard(attention, weights.unflatten(0, (-1, facts.heads_of(attention))), None)]
        if not own or not made[id(attention), "q"]:
            continue
        _, kwargs = calls[id(attention)][0]
        q, k = made[id(attention), "q"][0], made[id(attention), "k"][0]
        pairs = facts.queries_keys(attention, q, k, kwargs, grids[0])
        worst = max(worst, _segments_apart(pairs, own))
        number += 1
    if not number:
        return Comparison(name, "not compared: its attention goes another way than transformers' others", None)
    return _judged(name, f"attention of {number} blocks", worst, limit)


def _segments_apart(pairs: list[tuple[Tensor, Tensor]], own: list[Heard]) -> float:
    """Segments are calls of their own, or blocks on the diagonal of one call, or rows of one."""
    worst, start = 0.0, 0
    rows = len(own) == 1 and len(own[0].weights) == len(pairs)  # a picture each, padded behind its patches
    for i, (queries, keys) in enumerate(pairs):
        scale, n = queries.shape[-1] ** -0.5, queries.shape[2]
        if rows:
            worst = max(
                worst, _apart(queries, keys, scale, Heard(own[0].module, own[0].weights[i : i + 1, :, :n, :n], None))
            )
            continue
        if len(own) >= len(pairs):
            worst = max(worst, _apart(queries, keys, scale, own[i]._replace(mask=None)))
            continue
        block = slice(start, start + n)
        weights, start = own[0].weights[..., block, block], start + n
        worst = max(worst, _apart(queries, keys, scale, Heard(own[0].module, weights, None)))
    return worst


def _apart(queries: Tensor, keys: Tensor, scale: float, own: Heard) -> float:
    logits = (queries.float() @ keys.float().transpose(-1, -2)) * scale
    if own.mask is not None:
        logits = logits + own.mask[..., : logits.shape[-1]]
    ours = logits.softmax(dim=-1)
    if ours.shape != own.weights.shape:
        return float("inf")
    gap = float((ours - own.weights).abs().max())
    return gap if gap == gap else float("inf")


def _note(calls: Calls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    calls[id(module)].append((args, kwargs))


def _returned(found: dict[int, Tensor], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """What an attention that asks nobody to attend for it says that it weighed."""
    if isinstance(output, tuple) and isinstance(output[-1], Tensor) and output[-1].dim() == 3:
        found.setdefault(id(module), output[-1].detach())


def _keep(made: list[Tensor], module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    made.append(output.detach())


def _judged(name: str, what: str, error: float, limit: float) -> Comparison:
    return Comparison(name, f"{what} off by {error:.1e} (limit {limit:.0e})", error <= limit, error, limit)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].removesuffix(".") or type(error).__name__
