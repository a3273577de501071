"""What a wrapped model refuses of a call's arguments, in one sentence each, before any compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.forward import Forward, candidates
from vtc.engine.kv_cache import check_cache
from vtc.engine.sight import MASKED
from vtc.engine.stage import Facts
from vtc.engine.versions import cache_of, length_of
from vtc.layout import VisualSpan
from vtc.methods.base.cache import CacheMethod, PairedMethod
from vtc.methods.base.method import Method
from vtc.models.decoder import RECURRENT, Decoder, decoder_for
from vtc.models.family import PIXELS, Adapter
from vtc.models.text_models import LatentDecoder
from vtc.signals import of_place

#: arguments by which callers say that a row holds several sequences (flash attention without padding)
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx")


def check_inputs(family: Adapter, model: nn.Module, given: Mapping[str, Any], visual: bool) -> None:
    """Raise ValueError if this call cannot be compressed and right.

    Args:
        visual: whether there is anything to be done about it: visual tokens, or a cache that has lost some.
    """
    if not visual:
        _check_placeholders(model, given)
        return
    lm: Any = family.language_model(model)
    check_cache(cache_of(given), decoder_for(lm).attending(lm.config))
    mask = given.get("attention_mask")
    if isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.dim() != 2):
        raise ValueError("attention_mask must be 2-D, [batch, length], on a wrapped model (or left out).")
    _check_repeated(model, given)
    packed = next((name for name in PACKED if given.get(name) is not None), None)
    if packed is None and _restarts(family, model, given):
        packed = "position_ids that restart"
    if packed:
        raise ValueError(
            f"{packed}: several sequences packed into one row are not supported on a wrapped model; give each a row of "
            "its own, padded, with an attention_mask."
        )


def check_states(decoder: Decoder, config: Any, forward: Forward) -> None:
    """Refuse rows that may become unequally long on top of states that recurrent layers have of an earlier turn: what
    fills up the shorter ones would lie between a state and what it goes on with, and wear it down."""
    kinds = sorted({*decoder.kinds(config)} & RECURRENT)
    if not kinds or not length_of(forward.cache) or not forward.prompts or len(forward.prompts[0].visual) == 1:
        return
    raise ValueError(
        f"the {kinds[0]} layers of {config.model_type} go on from what they have read, and rows of a batch may lose "
        "unequally many tokens: in a later turn, bring pictures for one conversation at a time."
    )


def check_sight(family: Adapter, facts: Facts, given: Mapping[str, Any], compact: bool) -> None:
    """Refuse masks that the attention of the language model has no room for."""
    config, length = facts.language_model.config, _length(given)
    window = min((w for w in facts.decoder.windows(config) if w is not None and w < length), default=None)
    attention = config._attn_implementation
    if attention not in MASKED and (family.masks or window is not None):
        what = "lets pictures see themselves" if family.masks else f"attends within a window of {window} tokens"
        raise ValueError(
            f"this language model {what}, which {attention} counts in rows, whatever is left of them: load it with "
            'attn_implementation="sdpa".'
        )
    layers = getattr(cache_of(given), "layers", None) or ()
    if window is not None and any(getattr(x, "evicted", False) and x.reach is not None for x in layers):
        raise ValueError(
            f"this language model attends within a window of {window} tokens, and with {length} some would leave it, "
            "which is not supported where a method has dropped some of the KV cache: give it fewer."
        )
    if window is not None and compact and family.mrope:
        raise ValueError(
            f"this language model attends within a window of {window} tokens, which does not count the (t, h, w) "
            'positions that positions="compact" renumbers: leave positions="original".'
        )


def check_whole(method: CacheMethod, facts: Facts, forward: Forward) -> None:
    """Refuse a conversation that leaves the window of layers that a cache method works on."""
    windows = facts.decoder.windows(facts.language_model.config)
    window = min((w for i in facts.whole if (w := windows[i]) is not None), default=None)
    length = _length(forward.given)
    if window is not None and length >= window:
        raise ValueError(
            f"this language model attends within a window of {window} tokens, and with {length} some would leave it, "
            f"which is not supported where {method.title} works on its cache: give it fewer."
        )


def _length(given: Mapping[str, Any]) -> int:
    """Tokens of the conversation, those of a call included."""
    new = given.get("input_ids") if given.get("inputs_embeds") is None else given["inputs_embeds"]
    return length_of(cache_of(given)) + (0 if new is None else new.shape[1])


def _check_repeated(model: nn.Module, given: Mapping[str, Any]) -> None:
    """Pictures that are in the cache already: transformers' assisted decoding reads all of a conversation again where
    a cache is handed in."""
    ids, encoded = given.get("input_ids"), given.get("mm_encoder_outputs") or {}
    if not isinstance(ids, Tensor) or length_of(cache_of(given)) == 0:
        return
    ids = ids[:, : ids.shape[1] - candidates(given)]  # what an assistant proposes may be anything
    if ids.shape[1] == 1:  # so may what a model says
        return
    came = {m for m, pixels in PIXELS.items() if given.get(pixels) is not None or encoded.get(m) is not None}
    brought = {getattr(model.config, f"{m}_token_id", None) for m in came}
    for modality in PIXELS:
        if getattr(model.config, f"{modality}_token_id", None) not in brought and has_placeholder(model, modality, ids):
            raise ValueError(
                f"input_ids hold {modality} placeholders, but none came with them and the cache is that of an earlier "
                "turn: give only what is new, without an assistant and without prompt_lookup_num_tokens."
            )


def check_handed(family: Adapter, kwargs: Mapping[str, Any]) -> None:
    """Refuse what the model hands its language model besides that cannot be shortened along: a mask that it has made
    itself (of a prefix that sees itself, say), or values per token that nobody has declared."""
    mask, embeds = kwargs.get("attention_mask"), kwargs["inputs_embeds"]
    if not family.masks and (isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.dim() != 2)):
        raise ValueError(
            "this model makes an attention mask of its own for its language model (of a prefix that sees itself, say), "
            "which is not supported: vtc has no adapter that knows how to shorten it."
        )
    known = {"inputs_embeds", "attention_mask", "position_ids", "input_ids", *family.aligned}
    known |= {family.companions.mask, family.companions.rows} if family.companions else set()
    for name, x in kwargs.items():
        if name not in known and isinstance(x, Tensor) and x.dim() > 1 and x.shape[:2] == embeds.shape[:2]:
            raise ValueError(
                f"this model hands its language model {name}, a value per token that does not leave with the token: "
                "name it in `aligned` of an adapter of your own (docs/extend/family.md shows how)."
            )


def check_known(parts: Sequence[Method], spans: Sequence[VisualSpan]) -> None:
    """Refuse methods that ask where tokens lie, or what patches they come from, where nobody knows that."""
    for part in parts:
        own = [span for span in spans if span.modality in part.modality]
        if "grid" in part.requires() and any(tile.role == "row" for span in own for tile in span.tiles):
            raise ValueError(
                f"{part.title} works on the grid of a picture, and where this model's visual tokens lie in it is not "
                "known; choose a method that needs no grid, such as divprune."
            )
        tower = of_place(part.requires(), "tower")
        if tower and any(not bool((span.patch >= 0).any()) for span in own):
            raise ValueError(
                f"{part.title} reads the {tower[0].replace('_', ' ')} of the vision tower, and which of its patches "
                "make a visual token of this model is not known; choose a method that does not, such as divprune."
            )


def has_placeholder(model: nn.Module, modality: str, ids: Tensor) -> bool:
    token = getattr(model.config, f"{modality}_token_id", None)
    return token is not None and bool((ids == token).any())


def _check_placeholders(model: nn.Module, given: Mapping[str, Any]) -> None:
    """Continuous batching hands over ids alone: a picture among them would be read as its bare placeholders."""
    ids, cache = given.get("input_ids"), cache_of(given)
    if not isinstance(ids, Tensor) or not type(cache).__name__.startswith("Paged"):
        return
    if any(has_placeholder(model, modality, ids) for modality in PIXELS):
        raise ValueError(
            "continuous batching (generate_batch) hands the model token ids without their pictures: ask about pictures "
            "with generate, or serve them with vLLM (docs/serve.md shows how); requests of plain text may stay."
        )


def _restarts(family: Adapter, model: nn.Module, given: Mapping[str, Any]) -> bool:
    """Whether the plain model would read position_ids as several sequences in one row."""
    ids = given.get("position_ids")
    if given.get("attention_mask") is not None or not isinstance(ids, Tensor):
        return False
    if ids.dim() == 3:
        if len(ids) != 4:  # (t, h, w) rows alone say nothing of packing
            return False
        ids = ids[0]
    steps = ids.diff(dim=-1)
    config: Any = family.language_model(model).config
    use = given.get("use_cache")
    cached = cache_of(given) is not None or (getattr(config, "use_cache", True) if use is None else use)
    return bool((steps <= 0).any()) or (not cached and not family.mrope and bool(torch.any(steps != 1)))


def check_use(methods: Sequence[CacheMethod], language_model: nn.Module, forward: Forward) -> None:
    """Refuse a forward with something visual that leaves no cache, if there are methods that need one."""
    config: Any = language_model.config
    use = forward.given.get("use_cache")
    if methods and not (getattr(config, "use_cache", True) if use is None else use):
        raise ValueError(f"{methods[0].title} compresses the KV cache, but use_cache is False; leave it on.")


def check_heads(method: CacheMethod, language_model: nn.Module, decoder: Decoder) -> None:
    """Refuse, at wrap, what a language model's cache cannot hold by KV head, or merge."""
    config: Any = language_model.config
    if isinstance(decoder, LatentDecoder) and (method.per_head or method.merges or isinstance(method, PairedMethod)):
        what = "lets each KV head choose for itself" if method.per_head else "merges keys"
        raise ValueError(
            f"{method.title} {what}, but {config.model_type} caches one latent for all its heads; use a method that "
            "drops tokens for all heads alike (h2o, say)."
        )
    if method.uneven_heads and method.every:
        raise ValueError(
            f"{method.title} gives each KV head a number of tokens of its own, once: leave every= out, or use a method "
            "whose heads hold equally many."
        )
    attention = getattr(config, "_attn_implementation", None)
    if (method.uneven_heads or method.weighs) and attention not in ("sdpa", "eager"):
        raise ValueError(
            f"{method.title} needs a mask for each KV head, which {attention} has no room for: load the model with "
            'attn_implementation="sdpa", or use a method whose heads hold equally many (snapkv, say).'
        )
