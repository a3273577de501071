"""What a model of no known family is, by what transformers itself says of it."""

from __future__ import annotations

from torch import nn

from vtc.models.tower import known_towers

_CROSS = "looks at pictures by cross-attention, beside its text: there are no visual tokens in a row to leave out"
_QFORMER = (
    "reads a picture as a few learned queries, which a Q-Former has made of it, in a language model without rotary "
    "positions: what is left when a token leaves could not keep its place"
)
_INDEX = (
    "chooses for each token what it attends to, by an index with keys of its own in the cache: a token that leaves the "
    "row would have to leave the index, too"
)
_THINKER = "holds its vision-language model as a part: wrap model.thinker, and go on using the whole"
#: what stands in the way, of model types of transformers' that no adapter can help
REASONS = {
    **dict.fromkeys(("blip", "idefics"), _CROSS),
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), _QFORMER),
    **dict.fromkeys(("dots3_note", "glm5_next", "hy_v4_vl", "minimax_m3_vl", "mistral_large4", "qwen4_exp"), _INDEX),
    **dict.fromkeys(("qwen2_5_omni", "qwen3_omni_moe"), _THINKER),
    "kosmos-2": "reads a picture as 64 learned queries, with positions that are added to the tokens: none could leave",
    "kosmos-2.5": "reads a picture as learned queries, with positions that are added to the tokens: none could leave",
    "git": "puts a picture's tokens before the text by itself: no prompt says which of its tokens are visual",
    "evolla": "reads proteins, not pictures: it has no visual tokens",
    "pi0": "answers with the movements of a robot, not with text",
    "chameleon": "turns pictures into words inside its language model, so that no token can be left out before it",
    "llama4": (
        "fails by itself in transformers 5.24, wrapped or not: its forward reads image_outputs, which its language "
        "model does not return, so that nothing could be proven on it"
    ),
    "fuyu": "has no vision tower: pixels are projected straight into its row, and vtc has no adapter for that",
}


def why_unsupported(model: nn.Module) -> str:
    """One sentence about a model of no known family; nothing in it is guessed."""
    from transformers import PreTrainedModel

    model_type = getattr(getattr(model, "config", None), "model_type", None)
    name, reads = f"{type(model).__name__} ({model_type!r})", _modalities(model)
    part_of = getattr(getattr(model, "config", None), "base_config_key", "")
    if reads == {"text"} or part_of == "text_config" or str(model_type).endswith("_text"):
        return f"{name} is a text-only model: it has no visual tokens."
    if model_type in known_towers() or part_of == "vision_config" or (reads and reads <= {"image", "video"}):
        return f"{name} is a vision model without a language model, and its vision tower is none that vtc knows."
    if reads and not reads & {"image", "video"}:
        return f"{name} reads {' and '.join(sorted(reads))}, neither images nor videos: it has no visual tokens."
    if reads and isinstance(model, PreTrainedModel) and not model.can_generate():
        return f"{name} does not generate text: wrap a whole vision-language model (a ...ForConditionalGeneration)."
    if model_type in REASONS:
        return f"{name} {REASONS[model_type]}."
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return (
            f"{name} reads pictures in an encoder, beside its text: there are no visual tokens in a row to leave out."
        )
    if model_type is None:
        return (
            f"{type(model).__name__} is none of transformers' models (it has no config.model_type): "
            "docs/extend/family.md shows how to write an adapter."
        )
    return (
        f"{type(model).__name__} (model type {model_type!r}) is of no listed family: try it with "
        'family="auto", and prove it with vtc.check, or write an adapter (docs/extend/family.md shows how).'
    )


def _modalities(model: nn.Module) -> set[str]:
    """What a model reads ("text", "image", "video", "audio", "time"), empty where nobody says.

    A class from elsewhere that declares nothing inherits transformers' "text", whatever it reads.
    """
    from transformers import PreTrainedModel

    own = type(model).__module__.startswith("transformers.") or "input_modalities" in vars(type(model))
    if not isinstance(model, PreTrainedModel) or not own:
        return set()
    reads = model.input_modalities
    return {reads} if isinstance(reads, str) else set(reads)
