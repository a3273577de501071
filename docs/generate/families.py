"""The page of model families: from the registries, and transformers' own defaults of what a family is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from docs.generate.markdown import block, code, prose, table
from vtc.cli.listing import kinds
from vtc.models.families import SHIPPED

_TAKES = {
    "square": "crops of one size, square",
    "rectangle": "crops of one size, of any proportions",
    "packed": "pictures of any size",
    "row": "pictures of any size, in one row",
}
# By which option a method acts inside a tower that packs pictures into one row.
_PACKED = {"tome": "order=raster", "pitome": "mode=protected"}
# Towers of published checkpoints, where transformers' own default is another.
_PUBLISHED = {"granite4_vision": "siglip_vision_model"}
# What is refused. That it is, tests/engine, tests/models and tests/methods hold, under the same words.
REFUSED = (
    (
        "a model without visual tokens, a part of a model, or one of no known family",
        "there is nothing to compress, or nobody knows where it lies: [an adapter](extend/family.md) makes one known",
    ),
    (
        "`downsample` around a model that takes crops of one size",
        "its processor has filled the crops by then: `vtc.downsample(picture, processor, keep)` is for that",
    ),
    (
        "a window of the language model that flash attention counts, once a conversation reaches beyond it",
        'flash attention counts the rows that are left, not the tokens: `attn_implementation="sdpa"` counts these',
    ),
    (
        "methods of the KV cache, in a language model whose layers all attend within a window that is reached",
        "no layer holds the whole conversation then",
    ),
    (
        "`downsample` and `framededupe` of a video whose frames a tower is handed one by one, as GLM's",
        "they are about all frames of a video: `vtc.downsample(clip, processor, keep)`; `evs` behind the tower",
    ),
    (
        "methods that read attention, in a language model whose attention is other than vtc's account of it",
        "what they would read is not what the model does; this is tried out at `wrap`",
    ),
    (
        "inside a tower that packs pictures into one row, any method that would part the patches of a token",
        "the patches of a token stay together: `tome(order=raster)` and `pitome(mode=protected)` merge them as a whole",
    ),
    ("`cls=True` where no CLS token reaches the projector", "there is nothing to pass on"),
)


@dataclass(frozen=True)
class Facts:
    """What decides which methods a family's models can be wrapped with.

    Attributes:
        tower, decoder: `config.model_type` of the vision tower and of the language model that come with it.
        cls: whether the tower has a CLS token; None = it is not read. packed: whether it takes pictures of any size,
            packed into a row. resizes: whether a wrapped model makes such pictures smaller.
        projects: whether the CLS token can be passed on to the language model. mixes: modalities whose features become
            visual tokens in another way than one each, as `Adapter.mixes`.
    """

    model_type: str
    tower: str
    decoder: str
    cls: bool | None
    packed: bool
    resizes: bool
    projects: bool
    mixes: tuple[str, ...]


@cache
def facts() -> list[Facts]:
    """One per family that ships, by model type."""
    from transformers import AutoConfig

    from vtc.models.registry import adapter_of, list_families
    from vtc.models.tower import facts_of, known_towers

    found = []
    for model_type in [name for name in list_families() if name in SHIPPED]:
        config: Any = AutoConfig.for_model(model_type)
        vision = getattr(config, "vision_config", None) or getattr(config, "vq_config", None)
        vision = vision or config.sub_configs["vision_config"]()  # Gemma 4's is optional
        kind = _PUBLISHED.get(model_type, vision.model_type)
        tower = facts_of(kind) if kind in known_towers() else None
        packed = tower is not None and tower.takes == "packed"
        cls = tower is not None and (tower.has_cls or getattr(config, "vision_use_cls_token", False))
        found.append(
            Facts(
                model_type,
                kind,
                config.text_config.model_type,
                cls if SHIPPED[model_type].read else None,
                packed,
                packed and adapter_of(model_type).mrope and "pixels" in SHIPPED[model_type].stages,
                tower is not None and adapter_of(model_type).projects_cls and tower.has_cls,
                adapter_of(model_type).mixes,
            )
        )
    return found


def pages() -> dict[str, str]:
    """families.md."""
    lines = [
        *("# Model families", ""),
        "A family is what `config.model_type` of a checkpoint says. Every method of the stages `input`, `layer` and",
        "`cache` that reads nothing of the vision tower runs on every family that reads what the method is for; the",
        "tables say what else differs. All take several pictures in a prompt, and text-only prompts.",
        "",
        "**Tested**, of each family, on a tiny model with random weights: logits and greedy answers equal those of the",
        "full-length model that cannot see what was dropped, at every stage in its row; where its tower is read, that",
        "attention is the model's own; keep=1.0 is the plain model. Methods that it refuses are refused in a sentence.",
        "",
        "## My model is not listed",
        "",
        "Most of transformers' models have their parts in the same places. Try it, and have it proven:",
        "",
        *block(
            "python",
            "import vtc",
            "",
            'model, processor = vtc.load("tiny-llava", dtype="float32")  # yours, in its place',
            'vtc.wrap(model, "divprune", keep=0.25, family="auto")  # refused where parts are elsewhere',
            'found = vtc.check(model, "divprune", processor=processor, family="auto")',
            "assert found.ok",
        ),
        "`vtc check --model NAME` is the same on the command line. The model is compared with itself, unwrapped:",
        "",
        *table(
            ("comparison", "what has to agree"),
            (
                ("placeholders", "where vtc sees visual tokens the model has put the rows of its features"),
                ("everything kept", "logits of keep=1.0 are the plain model's"),
                ("some dropped", "logits are those of the whole row in which the dropped tokens cannot be seen"),
                ("generation", "and so are tokens that are generated greedily"),
                ("decoder, tower", "attention as methods read it is what the model's own attention weighs"),
            ),
        ),
        "",
        "Visual tokens of an unlisted family lie in a square where the tower's square can be divided so, else in a",
        "row, which methods that work on the grid refuse. [An adapter](extend/family.md) tells more.",
        "",
        "## Before and inside the tower",
        *("", "Methods [before the vision tower](pixels.md) and [inside it](encoder.md) depend on the tower:", ""),
        *("", *_towers_methods(), ""),
        *("", *block("bash", "vtc families", "vtc families qwen2_5_vl  # the same on the command line")),
        *_families(),
        *_towers(),
        *_decoders(),
        *("## What is refused, and why", ""),
        "Each with one sentence, before anything is changed or computed:",
        *("", *table(("what", "why"), REFUSED), ""),
        "Another family is a file of facts of your own: [how to add one](extend/family.md).",
        "",
    ]
    return {"families.md": "\n".join(lines)}


def _towers_methods() -> list[str]:
    """Families of the methods of the stages `pixels` and `encoder`."""
    from docs.generate.methods import runs_on
    from vtc.methods.base.index import shipped

    rows = []
    for info in shipped().values():
        if "pixels" in info.stage or "encoder" in info.places:
            stage = "encoder" if "encoder" in info.places else info.stage
            option, own = _PACKED.get(info.name), runs_on(info)
            packed = [one.model_type for one in facts() if one.packed and one.model_type in own]
            own = own if stage == "pixels" else [name for name in own if "encoder" in SHIPPED[name].stages]
            packed = [name for name in packed if name in own]
            plain = own if stage == "pixels" else [name for name in own if name not in packed]
            names = ", ".join(map(code, plain))
            names += f"; with `{option}` also {', '.join(map(code, packed))}" if option else ""
            rows.append((f"[`{info.name}`](methods/{info.name}.md)", f"`{stage}`", names))
    return table(("method", "stage", "families"), rows)


def _families() -> list[str]:
    rows = []
    for one in facts():
        info = SHIPPED[one.model_type]
        cls = "yes" + (", and passes it on" if one.projects else "") if one.cls else "no: received attention stands in"
        cls = "the tower is not read" if one.cls is None else cls
        smaller = "in the wrapped model" if one.resizes else "before the processor"
        tokens = prose(info.tokens) + ("" if info.grid else ", on no grid")
        stages = ", ".join(map(code, info.stages))
        rows.append((code(one.model_type), info.title, kinds(info.modality), tokens, cls, smaller, stages))
    titles = ("model type", "family", "reads", "a picture becomes", "CLS attention", "`downsample`", "stages")
    lines = ["## Families", "", *table(titles, rows), ""]
    for one in facts():
        info = SHIPPED[one.model_type]
        lines += [f"**{info.title}** ({code(one.model_type)}). {prose(info.notes)}".rstrip(), ""]
        lines += [f"Comes with the tower {code(one.tower)} and the language model {code(one.decoder)}", ""]
        lines[-2] += f"; for example {code(info.checkpoint)}." if info.checkpoint else "."
    return lines


def _towers() -> list[str]:
    from vtc.models.tower import facts_of, known_towers

    rows = []
    for name in known_towers():
        tower = facts_of(name)
        own = ", ".join(code(one.model_type) for one in facts() if one.tower == name)
        cls = "yes" if tower.has_cls else "Perception Encoder's" if name == "timm_wrapper" else "no"
        rows.append((code(name), _TAKES[tower.takes], cls, own))
    return [
        *("## Vision towers", ""),
        "Methods ask the tower, not the family. LLaVA's checkpoints have one of square pictures (CLIP, SigLIP);",
        "DINOv2 and DINOv3 are wrapped alone. Towers that are not in this table are not read: methods that ask for",
        "their attention or keys are refused when they are wrapped.",
        *("", *table(("model type", "takes", "CLS token", "comes with"), rows), ""),
    ]


def _decoders() -> list[str]:
    from vtc.models.decoder import known_decoders

    names = ", ".join(map(code, known_decoders()))
    return [
        *("## Language models", ""),
        "What a method reads inside a language model has to be what its own attention computes. For these a test holds",
        f"vtc's account of it against the model's eager attention: {names}. Any other is tried out when it is wrapped:",
        "what vtc computes has to be what the model computes, or methods that read attention are refused, and the",
        "others run.",
        "",
    ]
