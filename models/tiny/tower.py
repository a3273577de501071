"""The CLIP tower run on windows of a picture, and the heads that teach it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from vtc.models.tiny import labels, words
from vtc.models.tiny.scenes import GRID, PATCH

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIPImageProcessor's defaults
STD = (0.26862954, 0.26130258, 0.27577711)


def patches_of(pixels: Tensor) -> Tensor:
    """uint8 [B, h, w, 3] -> normalised [B, (h/14)(w/14), 3*14*14], channel first in a patch as a convolution has it."""
    mean, std = (torch.tensor(v, device=pixels.device) * 255 for v in (MEAN, STD))
    x = (pixels.float() - mean) / std
    b, h, w, _ = x.shape
    x = x.view(b, h // PATCH, PATCH, w // PATCH, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(b, (h // PATCH) * (w // PATCH), 3 * PATCH * PATCH)


def positions_of(tops: Tensor, lefts: Tensor, side: int) -> Tensor:
    """[B, side*side] index of each patch of a window in the full 24 x 24 picture, row by row."""
    steps = torch.arange(side, device=tops.device)
    rows, columns = tops[:, None] + steps, lefts[:, None] + steps
    return (rows[:, :, None] * GRID + columns[:, None, :]).flatten(1)


def hidden_states(tower: CLIPVisionModel, patches: Tensor, positions: Tensor) -> list[Tensor]:
    """Input of the first layer and output of every layer, [B, 1 + N, D], for patches at these places of the picture.

    The same numbers as `tower(pixel_values, output_hidden_states=True)` on a whole picture.
    """
    core = getattr(tower, "vision_model", tower)
    embeddings = core.embeddings
    weight = embeddings.patch_embedding.weight
    x = F.linear(patches, weight.flatten(1))
    table = embeddings.position_embedding.weight
    cls = (embeddings.class_embedding + table[0]).expand(x.shape[0], 1, -1)
    x = core.pre_layrnorm(torch.cat([cls, x + table[1:][positions]], 1))
    states = [x]
    for layer in core.encoder.layers:
        x = layer(x, attention_mask=None)
        x = x[0] if isinstance(x, tuple) else x
        states.append(x)
    return states


# Three quarters of all patches show nothing: without weights the rarest things, letters, are learned last.
_SIGNS = len(words.LETTERS) + len(words.DIGITS)
_WEIGHTS = {
    "kind": [0.1] + [1.0] * (labels.SIZES[labels.KIND] - 1 - _SIGNS) + [2.0] * _SIGNS,
    "color": [0.2] + [1.0] * len(words.COLORS),
    "slot": [0.1] + [1.0] * words.SLOTS,
    "center": [1.0, 2.0],
}


class Heads(nn.Module):
    """Per-patch answers from the features LLaVA uses (output of the last layer but one), CLS answers of three."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, sum(labels.SIZES) + 2)  # + row and column of the patch
        self.cls_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.cls = nn.ModuleList(nn.Linear(width, len(labels.PRESENT)) for _ in range(3))

    def forward(self, states: list[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        dense = self.dense(self.norm(states[-2][:, 1:])).split([*labels.SIZES, 2], -1)
        cls = [head(norm(s[:, 0])) for head, norm, s in zip(self.cls, self.cls_norms, states[-3:], strict=True)]
        return dense, cls


def loss_of(
    dense: tuple[Tensor, ...], cls: list[Tensor], target: Tensor, present: Tensor, asked: Tensor, positions: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Sum of all teaching losses, and numbers to print. target [B, N, 4]; present, asked [B, len(PRESENT)]."""
    total = target.new_zeros((), dtype=torch.float32)
    shown: dict[str, float] = {}
    for i, name in enumerate(("kind", "color", "slot", "center")):
        logits, wanted = dense[i].float().flatten(0, 1), target[..., i].flatten()
        weight = torch.tensor(_WEIGHTS[name], device=logits.device)
        if name == "center":  # which of an object's patches is its middle: a question for its patches only
            each = F.cross_entropy(logits, wanted, weight, ignore_index=labels.IGNORE, reduction="none")
            share = torch.where(target[..., labels.KIND].flatten() > 0, 1.0, 0.03)
            loss = (each * share).sum() / share.sum()
        else:
            loss = F.cross_entropy(logits, wanted, weight, ignore_index=labels.IGNORE)
        total = total + loss
        seen = wanted > 0  # patches that show something
        shown[name] = float((logits[seen].argmax(-1) == wanted[seen]).float().mean()) if seen.any() else 1.0
    place = torch.stack([positions // GRID, positions % GRID], -1).float() / GRID - 0.5
    total = total + F.mse_loss(dense[4].float(), place)
    for logits in cls:
        loss = F.binary_cross_entropy_with_logits(logits.float(), present, asked)
        total = total + 4 * loss
        shown["cls"] = float(loss.detach())  # the last layer's
    return total, shown
