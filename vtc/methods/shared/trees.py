"""Trees of tokens through the frames of a clip, and what they become (FlashVID, arXiv 2602.08024, section 3)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.methods.base.method import top_k
from vtc.methods.shared.clips import absorbed
from vtc.selection import Selection


def grow(root: Tensor, x: Tensor, frames: list[Tensor], tau: float, least: int) -> None:
    """Link tokens of a segment, `frames` (rows of x [N, D], frame by frame), to those a frame earlier, in `root` [N].

    Each links to the most similar one, if their cosine exceeds `tau`, the most similar pairs first as long as `least`
    roots are left; its root is that of the one it links to.
    """
    parents, alike = [frames[0]], [x.new_full((len(frames[0]),), -torch.inf)]
    before = F.normalize(x[frames[0]], dim=-1)
    for earlier, own in pairwise(frames):
        unit = F.normalize(x[own], dim=-1)
        if len(earlier) and len(own):
            best = (unit @ before.T).max(dim=1)
            parents.append(earlier[best.indices])
            alike.append(best.values)
        else:
            parents.append(own)
            alike.append(x.new_full((len(own),), -torch.inf))
        before = unit
    cosine = torch.cat(alike)
    links = torch.zeros_like(cosine, dtype=torch.bool)
    links[top_k(cosine, max(0, len(cosine) - least))] = True
    links &= cosine > tau
    for own, parent, linked in zip(frames, parents, links.split([len(own) for own in frames]), strict=True):
        root[own] = torch.where(linked, root[parent], own)


def mean_of_means(root: Tensor, centre: Tensor) -> Selection:
    """Trees are averaged, then trees of one centre are: the Selection that this is.

    Args:
        root: LongTensor [N], of the tree that each token is in, as `grow` leaves it.
        centre: LongTensor [N], read at roots: the token whose place their mean takes, -1 = none, the tree goes.
    """
    found = absorbed(torch.where(centre[root] >= 0, centre[root], -1))
    one, zero = torch.ones_like(root, dtype=torch.float), torch.zeros_like(root, dtype=torch.float)
    size = zero.scatter_add(0, root, one)[root]  # of the tree that each is in
    top = (root == torch.arange(len(root), device=root.device)) & (centre >= 0)
    trees = zero.scatter_add(0, centre[top], one[top])[centre[root].clamp(min=0)]
    weight = torch.where(found.source >= 0, 1 / (size * trees).clamp(min=1), 0.0)
    return Selection(found.anchor, found.source, weight)
