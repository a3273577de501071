"""PruneSID: groups of tokens by principal components, and of each group what is not alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.method import Method, Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens
from vtc.transfer import upload


@dataclass(frozen=True, kw_only=True)
class PruneSID(Method):
    """Some of each principal component's group.

    Tokens fall into groups by principal components; in each group attention decides, and look-alikes come last.

    Source: arXiv 2603.09480, section 3, and its released code at 4ef17d9. Of what the vision tower makes of the tokens
    before the projector, through a sigmoid, k / 4 components (of N columns, centred over the channels) are worked out;
    a token belongs to that in which it has the largest share, whatever the sign. In a group the token with most CLS
    attention suppresses those whose cosine to it is above k / 32 times the mean cosine, then the next one that is left,
    and so on. Every group has one token, then shares of the rest in proportion to what is not suppressed, rounded so
    that sums are right, at most 5 ceil(k / 64) in all; what is over goes to the groups where most is left, and where no
    group has room that limit is raised, and lastly what is suppressed is taken.

    Differences to the code: its components are drawn at random without a seed; here they are the same every time
    (`seed`). The code always passes the CLS token on, as one of k, and leaves tokens group by group; here all k are
    patches, in raster order. A tower without a CLS token gives received attention instead. Each crop chooses for
    itself. The budgets across pictures that the paper describes are not offered.

    Args:
        seed: of the subspace from which two steps of power iteration find the components.
    """

    name = "prunesid"
    keep: int | float = 64
    seed: int = 0
    needs = ("cls_attention", "tower_features")
    positions_default = "compact"
    scope_default = "crop"  # the vision tower's attention is each crop's own
    paper = Paper(
        "Prune Redundancy, Preserve Essence: Vision Token Compression in VLMs via Synergistic Importance-Diversity",
        "2603.09480",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.seed, "seed", integer=True)

    def select(self, tokens: VisualTokens) -> Selection:
        return self.select_many([tokens])[0]

    def select_many(self, many: Sequence[VisualTokens]) -> list[Selection]:
        numbers = iter(torch.cat([self._ranked(tokens) for tokens in many]).tolist())  # waited for once
        found = []
        for tokens in many:
            n, k = len(tokens.features), self.count(tokens)
            ranked, group, free = list(islice(numbers, n)), list(islice(numbers, n)), next(numbers)
            kept = upload(torch.tensor(_kept(k, ranked, group, free)), tokens.features.device)
            found.append(Selection.prune(kept, n, ascending=True))
        return found

    def _ranked(self, tokens: VisualTokens) -> Tensor:
        """LongTensor [2 N + 1]: all tokens in order of suppression, the group of each, and how many are apart."""
        n, k = len(tokens.features), self.count(tokens)
        x = tokens.signal("tower_features").detach().float()
        x = torch.where(x.isfinite().all(dim=-1, keepdim=True), x, 0.0)
        attention = tokens.signal("cls_attention").float().sum(dim=0)
        group = components(x.sigmoid().T, min(max(1, k // 4), *x.shape), self.seed).abs().argmax(dim=1)  # [N]
        unit = F.normalize(x, dim=-1)
        mean = (unit.sum(dim=0).square().sum() - unit.square().sum()) / max(1, n * (n - 1))
        order, apart = ops.greedy_suppression(x[None], n, attention[None], k / 32 * mean, group[None])
        return torch.cat([order[0], group, apart])


def _kept(k: int, ranked: list[int], group: list[int], free: int) -> list[int]:
    """The k tokens that stay, ascending, of those in order of suppression, of which `free` are apart."""
    members: dict[int, list[int]] = {number: [] for number in sorted(set(group))}
    for i in ranked:
        members[group[i]].append(i)
    left = Counter(group[i] for i in ranked[:free])
    sizes = [len(own) for own in members.values()]
    counts = shares(k, sizes, [left[number] for number in members], 5 * math.ceil(k / 64))
    return sorted(i for own, count in zip(members.values(), counts, strict=True) for i in own[:count])


def components(z: Tensor, count: int, seed: int) -> Tensor:
    """[N, count]: the leading right singular vectors of z [D, N] less the mean of its rows, by two steps of subspace
    iteration from a seeded start (Halko et al. 2011, algorithm 4.4)."""
    z = z - z.mean(dim=0)
    start = torch.randn(z.shape[1], count, generator=torch.Generator().manual_seed(seed)).to(z.device)
    basis = torch.linalg.qr(z @ start).Q  # [D, count]
    for _ in range(2):
        basis = torch.linalg.qr(z @ torch.linalg.qr(z.T @ basis).Q).Q
    return torch.linalg.svd(basis.T @ z, full_matrices=False).Vh.T


def shares(k: int, sizes: list[int], left: list[int], most: int) -> list[int]:
    """How many of k tokens each group keeps: at least one, and not all of its look-alikes before others have none.

    Example: 10 tokens, groups of 9, 6 and 2 of which 6, 3 and 1 are not alike, at most 5 each: 5 + 3 + 1 are 9, so the
    limit is raised, and the first keeps 6. After one each seven are left: 4.2, 2.1 and .7 of them, rounded 4, 2 and 1,
    of which the last has no room; it goes to the first.
    """
    free = left
    limits = [min(most, *both) for both in zip(sizes, free, strict=True)]
    while sum(limits) < k:
        most += 1
        if most > max(free):
            free = sizes
        limits = [min(most, *both) for both in zip(sizes, free, strict=True)]
    rest, passed, before, found = k - len(sizes), 0, 0, []
    for own, limit in zip(left, limits, strict=True):
        passed += own
        upto = (2 * rest * passed + sum(left)) // (2 * sum(left))  # halves up
        found.append(min(1 + upto - before, limit))
        before = upto
    while (over := k - sum(found)) > 0:
        room = [i for i in range(len(found)) if found[i] < limits[i]]
        for i in sorted(room, key=lambda i: (-left[i], i))[:over]:
            found[i] += 1
    return found
