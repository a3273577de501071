"""sparsevlm in loops over Python numbers, from arXiv 2410.04417, section 3, and facts of the released code."""

import math

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.eager import eager

N, TEXT = 60, 7


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def best(score, k, among=None):
    among = range(len(score)) if among is None else among
    return sorted(sorted(among, key=lambda i: (-score[i], i))[:k])


def clusters_of(x, few):
    """DPC-KNN of rows x into `few` clusters: the members of each, centre first."""
    far = [[math.dist(a, b) / math.sqrt(len(a)) for b in x] for a in x]
    dense = [math.exp(-sum(d * d for d in sorted(row)[:few]) / min(few, len(x))) for row in far]
    longest, score = max(max(row) for row in far), []
    for i, row in enumerate(far):
        denser = [row[j] for j in range(len(x)) if (dense[j], -j) > (dense[i], -i)]
        score.append(dense[i] * min(denser, default=longest))
    centres = sorted(range(len(x)), key=lambda i: (-score[i], i))[:few]
    found = {c: [c] for c in centres}
    for i in range(len(x)):
        if i not in found:
            found[min(centres, key=lambda c: (far[i][c], centres.index(c)))].append(i)
    return [found[c] for c in centres]


def define(x, score, stay, recycle):
    """`stay` tokens, in order, and after them the clusters of what was rejected, as lists of members."""
    kept = best(score, stay)
    rejected = [i for i in range(len(x)) if i not in kept]
    if not rejected or not recycle:
        return [[i] for i in kept]
    second = best(score, min(len(rejected), int(recycle * len(rejected)) + 1), rejected)
    few = len(second) // 10 + 1
    return [[i] for i in kept] + [[second[j] for j in c] for c in clusters_of([x[i] for i in second], few)]


def mean_score(rows, raters):
    """Mean attention of the raters; of all text if there are none."""
    rows = [row for row, rates in zip(rows, raters, strict=True) if rates] or rows
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def outputs(x, groups):
    return torch.tensor([[sum(x[i][d] for i in group) / len(group) for d in range(len(x[0]))] for group in groups])


def attentions(heads, seed, text=TEXT):
    """[H, text, N] of softmax rows, and the raters."""
    rows = seeded(heads, text, N, seed=seed).mul(2).softmax(dim=-1) / 2  # the other half is for the text
    return rows, seeded(text, seed=seed + 1) > 0


@defines("sparsevlm", "recycle")
@pytest.mark.parametrize("recycle", [None, 0, 0.3, 0.62, 1.0])
@pytest.mark.parametrize("stay", [1, 24, 52])
def test_raters_score_and_the_rejected_are_recycled(stay, recycle):
    x, (heads, raters) = seeded(N, 6), attentions(1, seed=stay)
    for who in (raters, torch.zeros(TEXT, dtype=torch.bool)):
        score = mean_score(heads[0].tolist(), who.tolist())
        groups = define(x.tolist(), score, stay, 0.3 if recycle is None else recycle)
        method = vtc.SparseVLM(keep=len(groups), recycle=recycle)
        chosen = vtc.select(method, x, text_attention=heads[0], text_raters=who)
        assert chosen.anchor.tolist() == [group[0] for group in groups]
        torch.testing.assert_close(chosen.apply(x), outputs(x.tolist(), groups), atol=1e-5, rtol=1e-5)


def test_the_lists_of_the_released_code_come_out():
    """Of 576 tokens 300 stay and 9 clusters come on top; then 200 and 4, then 110 and 3."""
    for n, stay, in_all in ((576, 300, 309), (309, 200, 204), (204, 110, 113)):
        x, rows = seeded(n, 4), seeded(3, n).abs()
        method = vtc.SparseVLM(keep=in_all)
        chosen = vtc.select(method, x, text_attention=rows, text_raters=torch.ones(3, dtype=torch.bool))
        assert chosen.tokens_out == in_all
        assert chosen.anchor[:stay].tolist() == best(rows.mean(0).tolist(), stay)
        recycled = int((chosen.source >= stay).sum())
        assert recycled == int(0.3 * (n - stay)) + 1


def rank_of(rows):
    """By Gaussian elimination."""
    rows, rank = [list(row) for row in rows], 0
    for column in range(len(rows[0])):
        pivot = max(range(rank, len(rows)), key=lambda i: abs(rows[i][column]), default=None)
        if pivot is None or abs(rows[pivot][column]) < 1e-9:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for i in range(rank + 1, len(rows)):
            share = rows[i][column] / rows[rank][column]
            rows[i] = [a - share * b for a, b in zip(rows[i], rows[rank], strict=True)]
        rank += 1
    return rank


@defines("sparsevlm", "adaptive", "scale", "bias")
@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize(
    ("adaptive", "scale", "bias"),
    [("rank", None, 0), ("rank", 0.5, 0), ("rank", 0.01, 0), ("released", None, 0), ("released", 4, 2.6)],
)
@pytest.mark.parametrize("recycle", [0, 0.3])
def test_the_rank_of_the_attention_says_how_many_stay(rank, adaptive, scale, bias, recycle):
    x = seeded(N, 6)
    rows = (seeded(TEXT, rank, seed=2).abs().double() @ seeded(rank, N, seed=3).abs().double() ** 3) / N
    raters = torch.ones(TEXT, dtype=torch.bool)
    assert rank_of(rows.tolist()) == rank
    if adaptive == "rank":
        stay = N - int((1 if scale is None else scale) * (N - rank))
    else:
        stay = min(int((13.5 if scale is None else scale) * rank + bias), N - 1)
    groups = define(x.tolist(), mean_score(rows.float().tolist(), raters.tolist()), stay, recycle)
    method = vtc.SparseVLM(adaptive=adaptive, scale=scale, bias=bias, recycle=recycle)
    chosen = vtc.select(method, x, text_attention=rows.float(), text_raters=raters)
    assert chosen.anchor.tolist() == [group[0] for group in groups]
    torch.testing.assert_close(chosen.apply(x), outputs(x.tolist(), groups), atol=1e-5, rtol=1e-5)


def test_full_rank_leaves_everything():
    x, rows = seeded(5, 6), torch.eye(5)
    for adaptive in ("rank", "released"):
        method = vtc.SparseVLM(adaptive=adaptive, scale=0.1)
        chosen = vtc.select(method, x, text_attention=rows, text_raters=torch.ones(5, dtype=torch.bool))
        assert chosen.is_identity
        assert not method.keeps_all()


@defines("sparsevlm", "version", "heads")
@pytest.mark.parametrize("heads", [1, 3, 14, 20])
@pytest.mark.parametrize("recycle", [None, 0.3])
def test_version_2_corrects_the_attention(heads, recycle):
    x, (rows, raters), bias = seeded(N, 6), attentions(16, seed=5), seeded(TEXT, N, seed=9).abs() + 0.5
    corrected = [
        [[a / b for a, b in zip(row, other, strict=True)] for row, other in zip(head, bias.tolist(), strict=True)]
        for head in rows.tolist()
    ]
    loud = [sum(sum(row) for row, rates in zip(head, raters, strict=True) if rates) for head in corrected]
    chosen = [corrected[h] for h in best(loud, heads)]
    mean = [[sum(head[t][i] for head in chosen) / len(chosen) for i in range(N)] for t in range(TEXT)]
    groups = define(x.tolist(), mean_score(mean, raters.tolist()), 20, recycle)
    method = vtc.SparseVLM(version=2, keep=len(groups), heads=heads, recycle=recycle)
    found = vtc.select(method, x, head_attention=rows, rotation_bias=bias, text_raters=raters)
    assert found.anchor.tolist() == [group[0] for group in groups]
    torch.testing.assert_close(found.apply(x), outputs(x.tolist(), groups), atol=1e-5, rtol=1e-5)


def test_positions_of_the_two_versions():
    assert vtc.SparseVLM().positions == "compact"
    assert vtc.SparseVLM(version=2).positions == "original"
    assert vtc.SparseVLM(version=2, positions="compact").positions == "compact"
    for method in (vtc.SparseVLM(version=2), vtc.SparseVLM(adaptive="released", bias=3)):
        assert vtc.resolve(str(method)) == method == vtc.Method.from_dict(method.as_dict())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"version": 3}, "version=3 is not a whole number in .*the version of the method"),
        ({"heads": 0}, "heads=0 is not a whole number of 1 or more"),
        ({"adaptive": "entropy"}, "adaptive='entropy' is not one of \"rank\""),
        ({"adaptive": "rank", "scale": 2}, "scale=2 is not a number in"),
        ({"adaptive": "rank", "average": True}, "leave keeps= and average= out"),
        ({"adaptive": "released", "scale": 0}, "scale=0 is not a number above 0"),
        ({"bias": math.inf}, "bias=inf is not a number"),
    ],
)
def test_options_that_mean_nothing(options, says):
    with pytest.raises(ValueError, match=says) as caught:
        vtc.SparseVLM(**options)
    assert "\n" not in str(caught.value)


# -- in a model, against the attention that transformers computes ---------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_chosen_in_a_model(version):
    """A layer's own eager attention, the raters by their definition, and the rotation's angles by hand."""
    seen, words = eager(), []
    embeds, heads = seen.states[0].double(), seen.attention[0]
    for i in seen.visual:
        likes = [math.exp(float(embeds[i] @ embeds[t])) for t in seen.text]
        words.append([like / sum(likes) for like in likes])
    share = [sum(column) / len(words) for column in zip(*words, strict=True)]
    raters = [t for t, s in zip(seen.text, share, strict=True) if s > sum(share) / len(share)]
    assert 0 < len(raters) < len(seen.text)
    width = seen.model.config.text_config.hidden_size // len(heads)
    turns = [10000 ** (-2 * f / width) for f in range(width // 2)]

    def bias(t, i):
        return 1 if version == 1 else 2 / math.sqrt(width) * sum(math.cos((t - i) * turn) for turn in turns)

    scores = [[sum(float(head[t, i]) / bias(t, i) for t in raters) for i in seen.visual] for head in heads]
    used = [scores[h] for h in (best([sum(score) for score in scores], 2) if version == 2 else range(len(heads)))]
    score = [sum(column) for column in zip(*used, strict=True)]
    method = vtc.SparseVLM(keep=9, recycle=0, layers=(1,), version=version, heads=2)
    assert seen.kept(method) == best(score, 9)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_next", "internvl"])
def test_version_2_runs_in_every_kind_of_rotation(family):
    seen = eager(family)
    assert len(seen.kept(vtc.SparseVLM(version=2, keep=3, heads=2))) == 3
