"""Symbolic visual tokens: what a perfect tower and projector would hand to the language model.

A patch becomes the sum of the word embeddings of its labels ("red" + "star"; "##t" for a letter inside a word) and of
its ninth of the picture ("top" + "left"), and small learned vectors for slot, anchor, row and column. The language
model learns its trade on these, in a fraction of the time that pictures would take; later the projector is taught to
produce the same sums from the tower's features.
"""

import numpy as np
import torch
from torch import Tensor, nn

from vtc.models.tiny import labels, words
from vtc.models.tiny.scenes import GRID, PATCH, Scene


class Symbols(nn.Module):
    def __init__(self, vocab: dict[str, int], width: int):
        super().__init__()
        first = [vocab[k] if k else 0 for k in words.KINDS]
        later = [vocab["##" + k] if len(k) == 1 else vocab.get(k, 0) for k in words.KINDS]
        self.register_buffer("kind_ids", torch.tensor([first, later]), persistent=False)  # [2, kinds]
        self.register_buffer("color_ids", torch.tensor([0] + [vocab[c] for c in words.COLORS]), persistent=False)
        cells = [[vocab[w] for w in cell.split()] for line in words.CELLS for cell in line]  # "top left"
        self.register_buffer("cell_ids", torch.tensor([(c * 2)[:2] for c in cells]), persistent=False)  # [9, 2]
        known = torch.tensor([[1.0, float(len(c) > 1)] for c in cells])[..., None]
        self.register_buffer("cell_known", known, persistent=False)  # [9, 2, 1]
        self.slots = nn.Embedding(words.SLOTS + 1, width)
        self.anchor = nn.Embedding(2, width)
        self.rows = nn.Embedding(GRID, width)
        self.columns = nn.Embedding(GRID, width)
        for table in (self.slots, self.anchor, self.rows, self.columns):
            nn.init.normal_(table.weight, std=0.04)

    def forward(self, table: Tensor, dense: Tensor, places: Tensor) -> Tensor:
        """table [V, D] word embeddings; dense [B, N, 4] labels; places [B, N] patch index -> [B, N, D]."""
        kind, color, slot, center = dense.clamp_min(0).unbind(-1)
        named = table[self.kind_ids[(slot > 1).long(), kind]] * (kind > 0)[..., None]
        tinted = table[self.color_ids[color]] * (color > 0)[..., None]
        row, column = places // GRID, places % GRID
        third = 3 * (row * 3 // GRID) + column * 3 // GRID
        place = self.rows(row) + self.columns(column) + (table[self.cell_ids[third]] * self.cell_known[third]).sum(-2)
        return named + tinted + self.slots(slot) + self.anchor(center) + place


def sketch(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Owner map [24, 24] of a scene guessed from its boxes alone, without drawing it."""
    owner = np.zeros((GRID, GRID), dtype=np.int8)
    middles = (np.arange(GRID) + 0.5) * PATCH
    for i, item in enumerate(scene.items):
        x0, y0, x1, y1 = item.box
        (cx, cy), shrink = item.center, 1.0 if item.text else rng.uniform(0.6, 1.0)
        dx = np.abs(middles - cx) / ((x1 - x0) / 2 * shrink)
        dy = np.abs(middles - cy) / ((y1 - y0) / 2 * shrink)
        inside = np.maximum(dx[None], dy[:, None]) < 1 if item.text else dx[None] ** 2 + dy[:, None] ** 2 < 1.2
        owner[inside] = i + 1
        owner[item.anchor] = i + 1
    return owner


def subset(dense: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `count` patches in reading order: every anchor, one patch of every letter, the rest at random."""
    flat = dense.reshape(-1, 4)
    score = rng.random(len(flat)) + 0.6 * (flat[:, labels.KIND] > 0)
    score[flat[:, labels.CENTER] == 1] = 9
    letters = np.nonzero(flat[:, labels.SLOT] > 0)[0]
    _, one_each = np.unique(flat[letters][:, [labels.KIND, labels.SLOT]], axis=0, return_index=True)
    score[letters[one_each]] = 9
    return np.sort(np.argsort(-score)[:count])


def spoil(dense: np.ndarray, rng: np.random.Generator, rate: float = 0.02) -> np.ndarray:
    """Labels as a real tower sees them: now and then a patch is misread, and borders say nothing."""
    out = np.maximum(dense, 0).copy()
    shape = out.shape[:-1]
    for i, size in enumerate(labels.SIZES[:3]):
        seen = out[..., i] > 0
        wrong = (rng.random(shape) < rate) & seen & (out[..., labels.CENTER] == 0)
        out[wrong, i] = rng.integers(0, size, int(wrong.sum()))
    dull = (rng.random(shape) < 3 * rate) & (out[..., labels.CENTER] == 0) & (out[..., labels.SLOT] == 0)
    out[dull] = 0
    return out
