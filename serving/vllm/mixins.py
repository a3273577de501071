"""What the plug-in's classes of all families share; each mixin stands before vLLM's own class of a family.

vLLM has three for every family: what knows of sizes (`...Info`) and what makes a prompt's tokens (`...Processor`), both
in front of the engine, and the model, in it. All of them read the method from `hf_config.vtc`, the one place that all
are given.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import groupby
from typing import TYPE_CHECKING, Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptReplacement, PromptUpdate, PromptUpdateDetails

from vtc.budget import split_budget
from vtc.models.family import ImageLayout
from vtc.serving.vllm.contract import Spec, spec_of
from vtc.serving.vllm.pruning import Pruner
from vtc.serving.vllm.refuse import check_budget, check_engine, check_request, start_line
from vtc.serving.vllm.signals import Parts, Run

if TYPE_CHECKING:
    from vllm.multimodal.processing.inputs import ProcessorInputs

_LOG = init_logger("vllm.vtc")
if TYPE_CHECKING:
    Beside = Any  #: vLLM's own class of a family, which stands behind a mixin
else:
    Beside = object


class PrunedInfo(Beside):
    """How many visual tokens there are; a family says how many before pruning.

    vLLM makes one before it starts the engine, which is when what was asked for is refused.
    """

    #: whether all pictures have equally many
    fixed = False

    def __init__(self, ctx: Any) -> None:
        super().__init__(ctx)
        check_budget(self.vtc, self.most_tokens())

    @property
    def vtc(self) -> Spec:
        """What the engine was started with; ValueError or TypeError with one sentence if it cannot be."""
        return spec_of(self.get_hf_config())

    def most_tokens(self) -> int:
        """Visual tokens of the largest picture, before pruning."""
        raise TypeError(f"{type(self).__name__} does not define most_tokens(); every family needs it.")


class PrunedProcessor(Beside):
    """Refuses what a request cannot ask for, and tells caches of other budgets apart."""

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> Any:
        """Hashes of pictures, by which vLLM caches what the tower makes of them and what follows: of what it makes with
        this method and budget, so that a cache which engines share never confuses them."""
        check_request(inputs.hf_processor_mm_kwargs)
        mark = sha256(str(self.info.vtc).encode()).hexdigest()[:16]
        found: Mapping[str, list[str]] = super()._get_mm_hashes(inputs)
        return {modality: [f"{own}-vtc-{mark}" for own in hashes] for modality, hashes in found.items()}


class ShorteningProcessor(PrunedProcessor):
    """Makes room in the prompt for so many tokens, of families whose own does not go by `PrunedInfo`."""

    def _get_prompt_updates(self, *args: Any, **kwargs: Any) -> Any:
        return shortened(super()._get_prompt_updates(*args, **kwargs), self.info.vtc)


def shortened(updates: Sequence[PromptUpdate], spec: Spec) -> list[PromptUpdate]:
    """vLLM's own placeholders of a picture, which are as many as its tokens, cut to those that stay."""

    def cut(whole: Any) -> Any:
        def of_item(number: int) -> Any:
            return _cut(whole(number), spec)

        return of_item

    return [
        PromptReplacement(update.modality, update.target, cut(update.content))
        if update.modality in spec.prunes
        else update
        for update in updates
    ]


def _cut(content: list[int] | PromptUpdateDetails, spec: Spec) -> list[int] | PromptUpdateDetails:
    """What stands for one picture or video: placeholders alone, or with others around them and between frames, all of
    which stay.

    Example: of [start, x, x, x, x, end] two are to stay: [start, x, x, end]. Of two frames, [start, x, x, x, x, end,
    start, x, x, x, x, end], six: each keeps three.
    """
    if isinstance(content, list):
        return content[: spec.count(len(content))]
    assert content.is_embed is not None
    runs = [(visual, len([*run])) for visual, run in groupby(content.is_embed(content.full).tolist())]
    sizes = [length for visual, length in runs if visual]
    shares = iter(split_budget(spec.count(sum(sizes)), sizes))
    full, done = [], 0
    for visual, length in runs:
        full += content.full[done : done + (next(shares) if visual else length)]
        done += length
    return replace(content, full=full)


class PrunedModel(Beside):
    """Checks what the engine was started with, and prunes with it."""

    vtc: Pruner
    #: adapters of the tower would be laid out by the tokens that it hands over, which are fewer than it works on
    supports_tower_connector_lora = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config
        spec = spec_of(config.hf_config)
        check_engine(spec, vllm_config)
        info: Any = MULTIMODAL_REGISTRY.get_processing_info(config)
        self.build(spec, vllm_config, prefix)
        self.prune_with(spec)
        _LOG.info(start_line(spec, info.most_tokens(), info.fixed))

    def build(self, spec: Spec, vllm_config: VllmConfig, prefix: str) -> None:
        """Make the model, as vLLM's own class does."""
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def prune_with(self, spec: Spec) -> None:
        """Prune with this method and budget from now on; what was cached of another is for the caller to forget."""
        if "vtc" in vars(self):
            self.vtc.close()
        self.vtc = Pruner(spec, self.tower_parts())

    def compressed(
        self, features: Sequence[Tensor], layouts: Sequence[ImageLayout], run: Run, modality: str = "image", **more: Any
    ) -> tuple[Tensor, ...]:
        """What is kept of each picture or video, [M, D]; arguments as those of `Pruner.choose`."""
        chosen = self.vtc.choose(features, layouts, run, modality, **more)
        return tuple(selection.apply(own) for selection, own in zip(chosen, features, strict=True))

    def tower_parts(self) -> Parts:
        """Where things are in the vision tower."""
        raise TypeError(f"{type(self).__name__} does not define tower_parts(); every family needs it.")
