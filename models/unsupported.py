"""What a model of no known family is, by what transformers itself says of it."""

from __future__ import annotations

from torch import nn

from vtc.models.tower import known_towers


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
