"""What the plug-in changes of vLLM's own settings, before the engine starts: how many pictures a step takes.

vLLM admits pictures to the vision tower by the tokens that the tower hands over, as many in a step as
`max_num_encoder_input_tokens`, which is `--max-num-batched-tokens`. Pruned pictures hand over few and cost the tower as
much as ever: by their own count all that wait would go through it in one step, whose memory is theirs together, and in
which nobody gets a first token. So the bound shrinks as pictures do.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any


def tower_tokens(bound: int, kept: int, most: int) -> int:
    """Pruned tokens that the tower may hand over in a step, so that it takes as many pictures as it would unpruned.

    Args:
        bound: the same of whole pictures. kept, most: visual tokens of the largest picture after and before pruning.

    Example: 3 of 576 tokens each fit into 2048, and 3 of 64 into 2048 * 64 // 576 = 227.
    """
    return max(1, bound * kept // most)


class PrunedSettings:
    """vLLM calls it with each VllmConfig of the plug-in's architectures, as it is made."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Shrink the bound on what the tower hands over in a step."""
        from vllm.multimodal import MULTIMODAL_REGISTRY

        try:
            info: Any = MULTIMODAL_REGISTRY.get_processing_info(vllm_config.model_config)
            most = info.most_tokens()
            kept = info.vtc.count(most)
        except (TypeError, ValueError):
            return  # what cannot be served is refused where the model is made, which comes next
        scheduler = vllm_config.scheduler_config
        scheduler.max_num_encoder_input_tokens = tower_tokens(scheduler.max_num_encoder_input_tokens, kept, most)
