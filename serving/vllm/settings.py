"""What the plug-in changes of vLLM's own settings, before the engine starts: how many pictures a step takes.

vLLM admits pictures to the vision tower by the tokens that the tower hands over, as many in a step as
`max_num_encoder_input_tokens`, which is `--max-num-batched-tokens`. Pruned pictures hand over few and cost the tower as
much as ever: by their own count all that wait would go through it in one step, whose memory is theirs together, and in
which nobody gets a first token. So the bound shrinks as pictures do, and the room for what the tower has handed over
with it: vLLM refuses what is larger than that room, and would wait for ever for what is within it and above the bound.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig


class PrunedSettings(VerifyAndUpdateConfig):
    """vLLM calls it with each VllmConfig of the plug-in's architectures, as it is made."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Shrink what the tower may hand over in a step, and the room for it."""
        from vllm.multimodal import MULTIMODAL_REGISTRY

        try:
            info: Any = MULTIMODAL_REGISTRY.get_processing_info(vllm_config.model_config)
            most, spec = info.most_tokens(), info.vtc
        except (TypeError, ValueError):
            return  # what cannot be served is refused where the model is made, which comes next
        scheduler = vllm_config.scheduler_config
        for bound in ("max_num_encoder_input_tokens", "encoder_cache_size"):
            setattr(scheduler, bound, spec.tower_tokens(getattr(scheduler, bound), most))
