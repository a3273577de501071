"""The vision transformers of open_clip, by class: their attention is torch's own, which projects inside."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from vtc.models.tower import Tower


class OpenClipTower(Tower):
    class_names: ClassVar[tuple[str, ...]] = ("open_clip.transformer.VisionTransformer",)
    has_cls = True

    def blocks(self, tower: Any) -> Any:
        return tower.transformer.resblocks

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attn for block in self.blocks(tower)]

    def check(self, tower: Any) -> None:
        if not tower.transformer.batch_first:
            raise ValueError("this open_clip tower keeps its batch second: make it with batch_first=True.")

    def listened(self, block: Any, attention: Any) -> tuple[nn.Module, nn.Module]:
        return block.ln_1, block.ln_1

    def heads(self, attention: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = (self._projected(attention, x, part) for part, x in enumerate((q, k)))
        norms = getattr(attention, "ln_q", None), getattr(attention, "ln_k", None)
        split = [x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (queries, keys)]
        queries, keys = (x if norm is None else norm(x) for x, norm in zip(split, norms, strict=True))
        return queries, keys

    def metric(self, attention: Any, k: Tensor) -> Tensor:
        if getattr(attention, "ln_k", None) is not None:
            return self.heads(attention, k, k)[1].mean(dim=1)
        h, d = attention.num_heads, attention.embed_dim  # the mean of the heads' keys is a projection itself
        weight, bias = attention.in_proj_weight[d : 2 * d], attention.in_proj_bias
        bias = None if bias is None else bias[d : 2 * d].unflatten(0, (h, -1)).mean(dim=0)
        return nn.functional.linear(k, weight.unflatten(0, (h, -1)).mean(dim=0), bias)

    def _projected(self, attention: Any, x: Tensor, part: int) -> Tensor:
        d = x.shape[-1]
        bias = attention.in_proj_bias
        rows = slice(part * d, (part + 1) * d)
        return nn.functional.linear(x, attention.in_proj_weight[rows], None if bias is None else bias[rows])

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        return [self.heads(attention, q, k)]

    def checkpoints(self, tower: Any) -> bool:
        return tower.transformer.grad_checkpointing

    def with_bias(self, attention: Any, kwargs: dict[str, Any], bias: Tensor) -> dict[str, Any]:
        if isinstance(attention, nn.MultiheadAttention):
            return {**kwargs, "key_padding_mask": bias}
        return {**kwargs, "attn_mask": bias[:, None, None]}
