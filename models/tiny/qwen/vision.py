"""The tower run on many frames at once, and the heads that teach it.

The released forward walks over windows one by one; here frames share one shape, so all windows go through a layer
together. Same numbers, several times faster on a CPU.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtc.models.tiny.qwen import film
from vtc.models.tiny.qwen.clips import CELL
from vtc.models.tiny.tower import MEAN, STD

_WINDOW = 4  # visual tokens a side
_PATCH = CELL // 2


def patches_of(frames: Tensor) -> Tensor:
    """uint8 [S, 2, H, W, 3], two frames a step -> normalised [S, windows, 64, 3 * 2 * 8 * 8], those merged together."""
    mean, std = (torch.tensor(v, device=frames.device) * 255 for v in (MEAN, STD))
    x = (frames.float() - mean) / std
    s, _, h, w, _ = x.shape
    rows, columns = h // (CELL * _WINDOW), w // (CELL * _WINDOW)
    x = x.view(s, 2, rows, _WINDOW, 2, _PATCH, columns, _WINDOW, 2, _PATCH, 3)
    x = x.permute(0, 2, 6, 3, 7, 4, 8, 10, 1, 5, 9)  # step, window, token in it, patch of it, channel, frame, y, x
    return x.reshape(s, rows * columns, (2 * _WINDOW) ** 2, 3 * 2 * _PATCH * _PATCH)


def _angles(tower: nn.Module, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [windows * 64, head size] in the order of `patches_of`."""
    y = torch.arange(rows * 2 * _WINDOW, device=device).view(rows, 1, _WINDOW, 1, 2, 1)
    x = torch.arange(columns * 2 * _WINDOW, device=device).view(1, columns, 1, _WINDOW, 1, 2)
    grid = (rows, columns, _WINDOW, _WINDOW, 2, 2)
    places = torch.stack([y.expand(grid).flatten(), x.expand(grid).flatten()])  # [2, patches]
    cos, sin = tower.rotary_pos_emb(torch.zeros(1, device=device), places.T)
    return cos, sin


def states(tower: nn.Module, frames: Tensor) -> tuple[Tensor, Tensor]:
    """(visual tokens [S, N, out], their four patches normed [S, N, 4 * D]) of steps [S, 2, H, W, 3], row by row."""
    s, _, h, w, _ = frames.shape
    rows, columns = h // (CELL * _WINDOW), w // (CELL * _WINDOW)
    patches = patches_of(frames)
    cos, sin = _angles(tower, rows, columns, frames.device)
    x = F.linear(patches, tower.patch_embed.proj.weight.flatten(1)).flatten(1, 2)  # [S, patches, D]
    windows, inside = rows * columns, (2 * _WINDOW) ** 2
    for number, block in enumerate(tower.blocks):
        whole = number in tower.fullatt_block_indexes
        x = x + _attention(block.attn, block.norm1(x), cos, sin, 1 if whole else windows)
        x = x + block.mlp(block.norm2(x))
    normed = tower.merger.ln_q(x).view(s, windows * inside // 4, -1)
    order = torch.arange(windows * inside // 4, device=frames.device)
    order = order.view(rows, columns, _WINDOW, _WINDOW).transpose(1, 2).flatten()  # row by row
    normed = normed[:, order]
    return tower.merger.mlp(normed), normed


def _attention(attn: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, windows: int) -> Tensor:
    s, n, d = x.shape
    q, k, v = attn.qkv(x).view(s, n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)  # [S, heads, n, head size]
    q, k = (y * cos.to(y.dtype) + _half(y) * sin.to(y.dtype) for y in (q, k))
    q, k, v = (y.unflatten(2, (windows, -1)).transpose(1, 2).flatten(0, 1) for y in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * attn.scaling).softmax(-1, dtype=torch.float32).to(v.dtype)
    out = (weights @ v).unflatten(0, (s, windows))  # [S, windows, heads, n / windows, head size]
    return attn.proj(out.permute(0, 1, 3, 2, 4).reshape(s, n, d))


def _half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


# Most of a clip shows nothing, and digits are rare: without weights they are learned last.
_WEIGHTS = (
    [0.1] + [1.0] * 6 + [2.0] * 10,
    [0.2] + [1.0] * (film.LOOKS[film.COLOR] - 1),
    [0.1] + [1.0] * (film.LOOKS[film.SLOT] - 1),
)


class Heads(nn.Module):
    """What every visual token shows, from its four patches."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(4 * width, sum(film.LOOKS))

    def forward(self, normed: Tensor) -> tuple[Tensor, ...]:
        return self.linear(normed).split(film.LOOKS, -1)


def loss_of(logits: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Sum of the losses, and the share of right labels where something is shown. labels [S, N, 3 or more]."""
    total, shown = labels.new_zeros((), dtype=torch.float32), {}
    for i, name in enumerate(("kind", "color", "slot")):
        scores, wanted = logits[i].float().flatten(0, 1), labels[..., i].flatten()
        weight = torch.tensor(_WEIGHTS[i], device=scores.device)
        total = total + F.cross_entropy(scores, wanted, weight, ignore_index=film.IGNORE)
        seen = wanted > 0
        shown[name] = float((scores[seen].argmax(-1) == wanted[seen]).float().mean()) if seen.any() else 1.0
    return total, shown
