"""`kmeans`: a fixed point of Lloyd's iteration by its definition in float64; the same every time."""

import pytest
import torch

from vtc import ops
from vtc.kernels.kmeans import reference

pytestmark = pytest.mark.core


def unit(x):
    return torch.nn.functional.normalize(x.double(), dim=-1)


def similarity(x, centroids, metric):
    """What the assignment maximises, [N, K] in float64."""
    if metric == "cosine":
        return unit(x) @ unit(centroids).T
    return -torch.cdist(x.double(), centroids.double())


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("n", "k", "d"),
    [(1, 1, 17), (2, 2, 17), (3, 2, 64), (63, 5, 17), (127, 40, 9), pytest.param(577, 12, 33, marks=pytest.mark.large)],
)
def test_labels_and_centroids_agree(metric, n, k, d):
    x = torch.randn(1, n, d, generator=torch.Generator().manual_seed(n))
    centroids, label = ops.kmeans(x, k, metric)
    assert centroids.shape == (1, k, d)
    assert label.shape == (1, n)
    own = similarity(x[0], centroids[0], metric)
    chosen = own.gather(1, label[0][:, None])[:, 0]
    torch.testing.assert_close(chosen, own.amax(dim=1), atol=1e-5, rtol=0)
    members = unit(x[0]) if metric == "cosine" else x[0].double()
    for i in range(k):
        if (label[0] == i).any():
            torch.testing.assert_close(centroids[0, i].double(), members[label[0] == i].mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_clusters_that_are_there_are_found(metric):
    g = torch.Generator().manual_seed(0)
    middle = 4 * torch.eye(6, 16)
    truth = torch.arange(6).repeat_interleave(30)[torch.randperm(180, generator=g)]
    x = middle[truth] + 0.3 * torch.randn(180, 16, generator=g)
    _, label = ops.kmeans(x[None], 6, metric)
    pairs = set(zip(truth.tolist(), label[0].tolist(), strict=True))
    assert len(pairs) == 6  # one label for each, and each for one


def test_cosine_does_not_look_at_length():
    x = torch.randn(1, 80, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.logspace(-2, 2, 80)[None, :, None]
    assert torch.equal(ops.kmeans(x, 7, "cosine")[1], ops.kmeans(x * scale, 7, "cosine")[1])


def test_the_same_twice_and_alone_or_in_a_batch_of_unequal_lengths():
    g = torch.Generator().manual_seed(0)
    pictures = [torch.randn(n, 16, generator=g) for n in (40, 97, 12)]
    batch = torch.full((3, 97, 16), float("nan"))
    for row, picture in zip(batch, pictures, strict=True):
        row[: len(picture)] = picture
    centroids, label = ops.kmeans(batch, 6, "euclidean", lengths=torch.tensor([40, 97, 12]))
    assert torch.equal(label, ops.kmeans(batch, 6, "euclidean", lengths=torch.tensor([40, 97, 12]))[1])
    for i, picture in enumerate(pictures):
        alone, own = ops.kmeans(picture[None], 6, "euclidean")
        assert torch.equal(label[i, : len(picture)], own[0])
        assert (label[i, len(picture) :] == -1).all()
        torch.testing.assert_close(centroids[i], alone[0])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_fewer_different_tokens_than_clusters(metric):
    """The codebook is full nevertheless: empty clusters keep a token's place."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(5, 1)[None]
    centroids, label = ops.kmeans(x, 4, metric)
    assert centroids.isfinite().all()
    assert label[0, 0::2].unique().numel() == label[0, 1::2].unique().numel() == 1
    assert label[0, 0] != label[0, 1]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_count_as_zero(metric, value):
    x = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    broken, zeroed = x.clone(), x.clone()
    broken[0, 3] = value
    zeroed[0, 3] = 0
    for got, expected in zip(ops.kmeans(broken, 5, metric), ops.kmeans(zeroed, 5, metric), strict=True):
        assert torch.equal(got, expected)


def test_equal_rows_share_the_first_label():
    _, label = ops.kmeans(torch.ones(1, 20, 3), 4, "cosine")
    assert (label == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_clustered_in_fp32(dtype):
    x = torch.randn(1, 63, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(ops.kmeans(x, 7, "cosine")[1], ops.kmeans(x.float(), 7, "cosine")[1])


@pytest.mark.large
@pytest.mark.parametrize("run", [1, 4, 32])
@pytest.mark.parametrize(("n", "k"), [(40, 3), (97, 12), (97, 40), (60, 60), (200, 5)])
def test_seeds_are_the_same_without_the_matrix_of_distances(monkeypatch, n, k, run):
    """Also in batches of unequal lengths, with copies among the tokens, and where few distances are held."""
    g = torch.Generator().manual_seed(n)
    x = torch.randint(-4, 5, (3, n, 6), generator=g).float()  # products are exact
    x[1] = torch.cat([x[1, : n // 2], x[1, : n - n // 2]])
    for lengths in (torch.tensor([n, n, n]), torch.tensor([n, n // 2, 1])):
        filled = x.masked_fill((torch.arange(n) >= lengths[:, None])[..., None], 0.0)
        expected = reference.seed(filled, k, lengths)
        with monkeypatch.context() as patch:
            patch.setattr(reference, "LARGEST_MATRIX", 0)
            patch.setattr(reference, "RUN", run)
            patch.setattr(reference, "RUNS", 8)
            assert torch.equal(reference.seed(filled, k, lengths), expected)


@pytest.mark.parametrize(("n", "k", "looked"), [(90, 10, 80), (90, 12, 90), (90, 30, 60), (90, 20, 42), (90, 2, 13)])
def test_of_many_tokens_seeding_looks_at_few(monkeypatch, n, k, looked):
    """At eight a seed, but at no more than sqrt(n k), unless these are fewer than two a seed, or than MANY."""
    monkeypatch.setattr(reference, "MANY", 80 if k == 10 else 90 if k == 12 else 1)
    sizes = []
    plain = reference.all_products
    monkeypatch.setattr(reference, "all_products", lambda x: sizes.append(len(x)) or plain(x))
    x = torch.randn(1, n, 6, generator=torch.Generator().manual_seed(0))
    seeds = reference.seed(x, k, torch.tensor([n]))[0].tolist()
    assert sizes == [looked]
    assert len(set(seeds)) == k
    both = reference.seed(x.expand(2, -1, -1), k, torch.tensor([n, 60]))
    assert both[0].tolist() == seeds
    assert both[1].tolist() == reference.seed(x[:, :60], k, torch.tensor([60]))[0].tolist()


def test_blocks_of_the_assignment_are_the_whole(monkeypatch):
    x = torch.randn(2, 97, 6, generator=torch.Generator().manual_seed(1))
    expected = ops.kmeans(x, 7, "cosine")[1]
    monkeypatch.setattr(reference, "IN_CACHE", 50)
    assert torch.equal(ops.kmeans(x, 7, "cosine")[1], expected)


@pytest.mark.large
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_clusters_that_stay_as_they_are_are_not_added_up_again(metric, monkeypatch):
    """Nothing else comes out, to the bit; with cosines of rows that a few iterations move."""
    g = torch.Generator().manual_seed(0)
    x, lengths = torch.randn(2, 300, 9, generator=g), torch.tensor([300, 180])
    read = []
    plain = reference._of_moved
    monkeypatch.setattr(reference, "_of_moved", lambda *args: read.append(plain(*args)) or read[-1])
    found = reference.kmeans(x, 40, metric, 100, lengths)
    assert (read[0] >= 0).sum() == 480
    assert (read[-1] >= 0).sum() < 100
    monkeypatch.setattr(reference, "_of_moved", lambda new, old, k: new)
    for got, expected in zip(found, reference.kmeans(x, 40, metric, 100, lengths), strict=True):
        assert torch.equal(got, expected)


def test_refusals():
    with pytest.raises(ValueError, match="cosine"):
        ops.kmeans(torch.zeros(1, 4, 4), 2, "manhattan")
    with pytest.raises(ValueError, match="at least 1"):
        ops.kmeans(torch.zeros(1, 4, 4), 0, "cosine")
