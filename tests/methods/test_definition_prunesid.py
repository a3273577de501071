"""prunesid, as its paper and released code define it: components, suppression and shares, in plain numbers."""

import math

import numpy as np
import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.plain import cosine, rows
from vtc.methods.prunesid import shares


def groups_of(seen, count):
    """Of each token the component, of `count`, in which it has the largest share: by the full decomposition."""
    z = np.array([[1 / (1 + math.exp(-v)) for v in row] for row in seen]).T  # channels by tokens
    _, _, right = np.linalg.svd(z - z.mean(axis=0, keepdims=True), full_matrices=False)
    return [max(range(count), key=lambda c: abs(right[c][i])) for i in range(len(seen))]


def shared(k, sizes, left):
    free, most = left, 5 * math.ceil(k / 64)
    while sum(min(most, a, b) for a, b in zip(sizes, free, strict=True)) < k:
        most += 1
        free = sizes if most > max(free) else free
    limits = [min(most, a, b) for a, b in zip(sizes, free, strict=True)]
    found, before = [], 0
    for i, limit in enumerate(limits):
        upto = math.floor((k - len(sizes)) * sum(left[: i + 1]) / sum(left) + 0.5)
        found.append(min(1 + upto - before, limit))
        before = upto
    while sum(found) < k:
        for i in sorted(range(len(found)), key=lambda i: (-left[i], i)):
            if found[i] < limits[i] and sum(found) < k:
                found[i] += 1
    return found


def define(seen, attention, k):
    n, group = len(seen), groups_of(seen, max(1, k // 4))
    pairs = [cosine(seen[i], seen[j]) for i in range(n) for j in range(i + 1, n)]
    threshold = k / 32 * sum(pairs) / len(pairs)
    falling = sorted(range(n), key=lambda i: (-attention[i], i))
    kept, members = [], {}
    for number in sorted(set(group)):
        own, apart, passed = [i for i in falling if group[i] == number], [], []
        for i in own:
            (passed if any(cosine(seen[i], seen[j]) > threshold for j in apart) else apart).append(i)
        members[number] = (apart + passed, len(apart))
    counts = shared(k, [len(own) for own, _ in members.values()], [apart for _, apart in members.values()])
    for (own, _), count in zip(members.values(), counts, strict=True):
        kept += own[:count]
    return sorted(kept)


@defines("prunesid", "seed")
@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(("keep", "channels"), [(1, 2), (3, 2), (8, 3), (12, 4), (22, 6), (35, 9)])
def test_against_the_definition(keep, channels, seed):
    """With as many components as there are directions, which the iteration finds from any start."""
    g = torch.Generator().manual_seed(keep)
    x, attention = torch.randn(36, channels, generator=g) + 0.7, torch.rand(36, generator=g)
    assert max(1, keep // 4) == channels - 1
    got = vtc.select(vtc.PruneSID(keep=keep, seed=seed), torch.randn(36, 3), cls_attention=attention, tower_features=x)
    assert got.anchor.tolist() == define(rows(x), attention.double().tolist(), keep)


@defines("prunesid", "seed")
def test_the_same_components_every_time():
    g = torch.Generator().manual_seed(0)
    x, attention = torch.randn(200, 64, generator=g), torch.rand(200, generator=g)
    kept = []
    for seed, ambient in ((0, 1), (0, 2), (1, 3)):
        torch.manual_seed(ambient)
        method = vtc.PruneSID(keep=60, seed=seed)
        kept.append(vtc.select(method, x, cls_attention=attention, tower_features=x).anchor.tolist())
    assert kept[0] == kept[1] != kept[2]


def test_shares_of_the_example():
    assert shares(10, [9, 6, 2], [6, 3, 1], 5) == [6, 3, 1]
    assert shares(12, [9, 6, 2], [6, 3, 1], 5) == shared(12, [9, 6, 2], [6, 3, 1])  # look-alikes have to be taken
    assert sum(shares(12, [9, 6, 2], [6, 3, 1], 5)) == 12


def test_rows_that_are_no_numbers():
    g = torch.Generator().manual_seed(4)
    x, attention = torch.randn(40, 8, generator=g), torch.rand(40, generator=g)
    x[3], attention[7] = float("nan"), float("nan")
    assert vtc.select(vtc.PruneSID(keep=12), x, cls_attention=attention, tower_features=x).tokens_out == 12


def test_refusals():
    with pytest.raises(TypeError, match=r"seed='x' is not a whole number\.$"):
        vtc.PruneSID(seed="x")  # type: ignore[arg-type]
