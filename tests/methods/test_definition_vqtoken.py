"""VQToken as the paper, its code and its docstrings define it, in loops."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.plain import cosine, mean, members, rows

GRID = (4, 3, 5)


def clip(n=60, dim=6, seed=0):
    """Tokens of different lengths around a few directions."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(7, dim, generator=g).repeat(n, 1)[:n] + 0.7 * torch.randn(n, dim, generator=g)
    return x * torch.linspace(0.5, 2, n)[:, None]


def unit(row):
    length = math.sqrt(sum(a * a for a in row))
    return [a / length for a in row]


def distortion(x, clusters):
    """Squared distance of unit tokens to the mean of their cluster, summed."""
    total = 0.0
    for own in clusters:
        middle = mean([unit(x[i]) for i in own])
        total += sum((a - b) ** 2 for i in own for a, b in zip(unit(x[i]), middle, strict=True))
    return total


def lloyd(x, k, seed):
    """Cosine k-means from k tokens drawn by chance, as the released code starts."""
    centres = [unit(x[i]) for i in random.Random(seed).sample(range(len(x)), k)]
    for _ in range(30):
        clusters = [[] for _ in range(k)]
        for i, row in enumerate(x):
            clusters[max(range(k), key=lambda c: cosine(row, centres[c]))].append(i)
        clusters = [own for own in clusters if own]
        centres = [mean([unit(x[i]) for i in own]) for own in clusters]
        k = len(clusters)
    return clusters


@defines("vqtoken", "magnitude")
@pytest.mark.parametrize("magnitude", ["norm", "mean", "unit"])
@pytest.mark.parametrize("keep", [2, 7, 15])
def test_the_codebook(keep, magnitude):
    """Section 3.2: k-means, no worse than from random starts; a code is its members' mean at the one nearest to it."""
    x = clip()
    plain, selection = rows(x), vtc.select(vtc.VQToken(keep=keep, magnitude=magnitude), x)
    clusters = members(selection)
    assert sorted(i for own in clusters.values() for i in own) == list(range(60))
    centres = {a: mean([unit(plain[i]) for i in own]) for a, own in clusters.items()}
    for a, own in clusters.items():
        for i in own:  # Lloyd's iterations have ended: no other code is nearer
            assert max(cosine(plain[i], c) for c in centres.values()) < cosine(plain[i], centres[a]) + 1e-5
        assert max(cosine(plain[i], centres[a]) for i in own) < cosine(plain[a], centres[a]) + 1e-6
    starts = [distortion(plain, lloyd(plain, keep, seed)) for seed in range(3)]
    assert distortion(plain, clusters.values()) < 1.1 * sum(starts) / 3
    expected = []
    for a, own in clusters.items():
        length = sum(math.sqrt(sum(b * b for b in plain[i])) for i in own) / len(own)
        norm = [length * b for b in unit(centres[a])]
        expected.append({"unit": centres[a], "norm": norm, "mean": mean([plain[i] for i in own])}[magnitude])
    torch.testing.assert_close(selection.apply(x), torch.tensor(expected), atol=1e-5, rtol=1e-4)


@defines("vqtoken", "adaptive", "elbow")
@pytest.mark.parametrize(("adaptive", "seed"), [((2, 9), 0), ((4, 12), 1), ((12, 16), 2), ((1, 5), 3)])
def test_the_elbow(adaptive, seed):
    """Where the distortion bends most; the released code takes its place in the list for the number of codes."""
    x, (low, high) = clip(40, seed=seed), adaptive
    curve = {0: 40.0}
    for k in range(1, high + 2):
        clusters = members(vtc.select(vtc.VQToken(keep=k), x))
        curve[k] = distortion(rows(x), clusters.values())
    bend = {k: curve[k - 1] - 2 * curve[k] + curve[k + 1] for k in range(1, high + 1)}
    number = max(range(low, high + 1), key=lambda k: bend[k])
    assert vtc.select(vtc.VQToken(adaptive=adaptive), x).tokens_out == number
    inner = max(range(low + 1, high), key=lambda k: bend[k])
    released = vtc.select(vtc.VQToken(adaptive=adaptive, elbow="released"), x)
    assert released.tokens_out == max(12, inner - low - 1 + 4)


def occupancy(source, codes, cells):
    """By code and cell of the pooled grid: the share of the cell's sample points that fall to tokens of the code.

    Sample points are the middles of a grid as fine as the finer of clip and cells along each axis."""
    count = [max(side, cell) for side, cell in zip(GRID, cells, strict=True)]
    filled = [[0.0] * math.prod(cells) for _ in range(codes)]
    points = [0] * math.prod(cells)
    for t in range(count[0]):
        for h in range(count[1]):
            for w in range(count[2]):
                place = [(2 * i + 1) * side // (2 * n) for i, side, n in zip((t, h, w), GRID, count, strict=True)]
                cell = [(2 * i + 1) * side // (2 * n) for i, side, n in zip((t, h, w), cells, count, strict=True)]
                token = (place[0] * GRID[1] + place[1]) * GRID[2] + place[2]
                number = (cell[0] * cells[1] + cell[1]) * cells[2] + cell[2]
                filled[source[token]][number] += 1
                points[number] += 1
    return [[n / all_ for n, all_ in zip(row, points, strict=True)] for row in filled]


def linear(layer, row):
    return [
        sum(a * b for a, b in zip(weights, row, strict=True)) + bias
        for weights, bias in zip(rows(layer.weight), layer.bias.double().tolist(), strict=True)
    ]


def gelu(row):
    return [a / 2 * (1 + math.erf(a / math.sqrt(2))) for a in row]


def norm(layer, row):
    middle = sum(row) / len(row)
    spread = math.sqrt(sum((a - middle) ** 2 for a in row) / len(row) + layer.eps)
    scale, shift = layer.weight.double().tolist(), layer.bias.double().tolist()
    return [(a - middle) / spread * b + c for a, b, c in zip(row, scale, shift, strict=True)]


def attend(net, asks, told, value):
    """Multi-head attention of rows `asks` over rows `told`, which hand out `value`."""
    q, k = ([linear(layer, row) for row in own] for layer, own in ((net.query, asks), (net.key, told)))
    size = len(q[0]) // net.heads
    out = []
    for mine in q:
        heard = []
        for h in range(0, len(mine), size):
            score = [sum(a * b for a, b in zip(mine[h : h + size], other[h : h + size], strict=True)) for other in k]
            weight = [math.exp(s / math.sqrt(size)) for s in score]
            total = sum(weight)
            heard += [sum(w * v[i] for w, v in zip(weight, value, strict=True)) / total for i in range(h, h + size)]
        out.append(heard)
    return out


@defines("vqtoken", "mode", "roles", "cells", "seed")
@pytest.mark.parametrize(
    ("roles", "cells", "seed"), [("codes", (2, 3, 2), 0), ("hash", (2, 3, 2), 0), ("codes", (5, 1, 4), 7)]
)
def test_the_module(roles, cells, seed):
    """Section 3.3, random attention: queries and keys are the codes and values say where they occur, or, as in the
    released decoder, what asks is where they occur; what comes of it is added in units of the codes' length."""
    x = clip(60)
    method = vtc.VQToken(keep=5, mode="hash", roles=roles, cells=cells, seed=seed)
    net: Any = method.initial(6, seed)
    plain = vtc.select(replace(method, mode="codebook"), x, grid=GRID)
    assert plain.features is None
    codes = rows(plain.apply(x))
    what, where = [norm(net.norm, code) for code in codes], []
    for row in occupancy(plain.source.tolist(), 5, cells):
        share, level = sum(row) / len(row), math.sqrt(sum(a * a for a in row) / len(row))
        seen = [a / max(level, 1e-6) for a in row] + [math.log(max(share, 1e-6))]
        where.append(linear(net.where[2], gelu(linear(net.where[0], seen))))
    asks, value = (what, where) if roles == "codes" else (where, what)
    length = sum(math.sqrt(sum(a * a for a in code)) for code in codes) / 5 / math.sqrt(6)
    expected = []
    for code, own, heard in zip(codes, asks, attend(net, asks, what, value), strict=True):
        fused = [a + b for a, b in zip(own, linear(net.out, heard), strict=True)]
        fed = linear(net.feed[3], gelu(linear(net.feed[1], norm(net.feed[0], fused))))
        expected.append([a + length * b for a, b in zip(code, fed, strict=True)])
    found = vtc.select(method, x, grid=GRID)
    torch.testing.assert_close(found.apply(x), torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert found.source.equal(plain.source)
    other = vtc.select(replace(method, seed=seed + 1), x, grid=GRID)
    assert not torch.allclose(other.apply(x), found.apply(x), atol=1e-2)
