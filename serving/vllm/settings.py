"""What the plug-in changes of vLLM's own settings, before the engine starts: how many pictures a step takes.

vLLM admits pictures to the vision tower by the tokens that the tower hands over, as many in a step as
`max_num_encoder_input_tokens`, which is `--max-num-batched-tokens`. Pruned pictures hand over few and cost the tower as
much as ever: by their own count all that wait would go through it in one step, whose memory is theirs together, and in
which nobody gets a first token. So the bound shrinks as pictures do.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig


class PrunedSettings(VerifyAndUpdateConfig):
    """vLLM calls it with each VllmConfig of the plug-in's architectures, as it is made."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Shrink the bound on what the tower hands over in a step."""
        from vllm.multimodal import MULTIMODAL_REGISTRY

        try:
            info: Any = MULTIMODAL_REGISTRY.get_processing_info(vllm_config.model_config)
            most, spec = info.most_tokens(), info.vtc
        except (TypeError, ValueError):
            return  # what cannot be served is refused where the model is made, which comes next
        scheduler = vllm_config.scheduler_config
        scheduler.max_num_encoder_input_tokens = spec.tower_tokens(scheduler.max_num_encoder_input_tokens, most)
