"""Symbolic visual tokens of a clip: what a perfect tower would hand to the language model.

A token is the sum of the word embeddings of what it shows ("red" + "star"; "##4" for a later digit), a vector for the
place of a digit in its number, and one that all share. Where and when it is, only its M-RoPE position says.
"""

import numpy as np
import torch
from torch import Tensor, nn

from vtc.models.tiny import words
from vtc.models.tiny.qwen import film
from vtc.models.tiny.qwen.clips import GRID


class Symbols(nn.Module):
    def __init__(self, vocab: dict[str, int], width: int):
        super().__init__()
        first = [vocab[k] if k else 0 for k in film.KINDS]
        later = [vocab["##" + k] if k.isdigit() else vocab.get(k, 0) for k in film.KINDS]
        self.register_buffer("kind_ids", torch.tensor([first, later]), persistent=False)  # [2, kinds]
        self.register_buffer("color_ids", torch.tensor([0] + [vocab[c] for c in words.COLORS]), persistent=False)
        self.slots = nn.Embedding(film.LOOKS[film.SLOT], width)
        nn.init.normal_(self.slots.weight, std=0.04)

    def forward(self, table: Tensor, dense: Tensor) -> Tensor:
        """table [V, D] word embeddings; dense [B, N, 7] labels -> [B, N, D]."""
        kind, color, slot = dense[..., :3].clamp_min(0).unbind(-1)
        named = table[self.kind_ids[(slot > 1).long(), kind]] * (kind > 0)[..., None]
        tinted = table[self.color_ids[color]] * (color > 0)[..., None]
        return named + tinted + self.slots(slot)


def subset(dense: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `count` of a clip's tokens [T, H * W, 7], ascending: of each thing at least one in every step, of a
    number every digit, of a thing that has gone the empty place; the rest at random."""
    names = [film.KIND, film.COLOR, film.SLOT, film.WAS_KIND, film.WAS_COLOR]
    flat = dense[..., names].reshape(-1, len(names)).astype(np.int64)
    score = rng.random(len(flat)) + 0.4 * (flat[:, film.KIND] > 0)
    seen = np.nonzero((flat[:, film.KIND] > 0) | (flat[:, 3] > 0))[0]
    steps = seen // dense.shape[1]
    names = np.concatenate([steps[:, None], flat[seen]], 1)
    order = rng.permutation(len(seen))
    _, one_each = np.unique(names[order], axis=0, return_index=True)
    score[seen[order[one_each]]] = 9
    return np.sort(np.argsort(-score)[:count])


def places_of(index: Tensor, width: int = GRID, height: int = GRID) -> Tensor:
    """[B, N] indices of tokens -> [3, B, N] step, row, column."""
    return torch.stack([index // (width * height), index // width % height, index % width])


def spoil(dense: np.ndarray, rng: np.random.Generator, rate: float = 0.02) -> np.ndarray:
    """Labels as a real tower sees them: now and then a token is misread or says nothing."""
    out = np.maximum(dense, 0).copy()
    for i, size in enumerate(film.LOOKS[:2]):
        wrong = (rng.random(out.shape[:-1]) < rate / 2) & (out[..., i] > 0) & (out[..., film.SLOT] == 0)
        out[wrong, i] = rng.integers(1, 7 if i == film.KIND else size, int(wrong.sum()))
    out[(rng.random(out.shape[:-1]) < rate) & (out[..., film.SLOT] == 0)] = 0
    return out
