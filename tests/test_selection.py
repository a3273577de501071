"""Selection: its invariants, and `apply` against explicit sums."""

import pytest
import torch

from vtc import Selection


def summed(selection, x):
    """The documented meaning of apply, token by token."""
    out = torch.zeros(selection.tokens_out, x.shape[1], dtype=torch.float64)
    for i, m in enumerate(selection.source.tolist()):
        if m >= 0:
            out[m] += float(selection.weight[i]) * x[i].double()
    return out


def merge_of_seven():
    return Selection.merge(torch.tensor([1, 4, 6]), torch.tensor([0, 0, -1, 1, 1, 1, 2]))


def test_prune_is_a_gather_in_the_given_order():
    x = torch.randn(6, 3)
    selection = Selection.prune(torch.tensor([4, 0, 3]), 6).check()
    assert torch.equal(selection.apply(x), x[[4, 0, 3]])
    assert selection.source.tolist() == [1, -1, -1, 2, 0, -1]
    assert not selection.merges
    assert (selection.tokens_in, selection.tokens_out) == (6, 3)


def test_merge_is_the_mean_of_each_segment():
    x = torch.randn(7, 3)
    selection = merge_of_seven().check()
    expected = torch.stack([x[[0, 1]].mean(0), x[[3, 4, 5]].mean(0), x[6]])
    torch.testing.assert_close(selection.apply(x), expected)
    assert selection.merges
    assert selection.weight[2] == 0


def test_merge_without_company_is_pruning():
    assert not Selection.merge(torch.tensor([0, 2]), torch.tensor([0, -1, 1])).merges


def test_a_scaled_anchor_counts_as_merging():
    selection = Selection(torch.tensor([0]), torch.tensor([0, -1]), torch.tensor([0.5, 0.0]))
    assert selection.merges
    assert selection.apply(torch.tensor([[2.0], [9.0]])).tolist() == [[1.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_apply_keeps_the_dtype(dtype):
    x = torch.randn(7, 3).to(dtype)
    out = merge_of_seven().apply(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), summed(merge_of_seven(), x), atol=2e-2, rtol=2e-2)


def test_own_features_replace_the_sum():
    own = torch.randn(1, 3)
    selection = Selection(torch.tensor([1]), torch.tensor([0, 0]), torch.tensor([0.5, 0.5]), own).check()
    assert torch.equal(selection.apply(torch.randn(2, 3)), own)
    assert selection.merges


def test_sorted_reorders_outputs_only():
    x = torch.randn(7, 3)
    shuffled = Selection(
        torch.tensor([6, 1, 4]),
        torch.tensor([1, 1, -1, 2, 2, 2, 0]),
        merge_of_seven().weight,
        torch.arange(9.0).view(3, 3),
    )
    ordered = shuffled.check().sorted().check()
    assert ordered.anchor.tolist() == [1, 4, 6]
    assert ordered.source.tolist() == merge_of_seven().source.tolist()
    assert ordered.features is not None
    assert ordered.features.tolist() == [[3, 4, 5], [6, 7, 8], [0, 1, 2]]
    plain = Selection(ordered.anchor, ordered.source, ordered.weight)
    torch.testing.assert_close(plain.apply(x), merge_of_seven().apply(x))
    assert ordered.sorted() is ordered


def test_then_is_one_after_the_other():
    x = torch.randn(7, 3)
    first = merge_of_seven()
    for second in (
        Selection.prune(torch.tensor([2, 0]), 3),
        Selection.merge(torch.tensor([1]), torch.tensor([0, 0, -1])),
    ):
        both = first.then(second).check()
        torch.testing.assert_close(both.apply(x), second.apply(first.apply(x)))
        assert both.anchor.tolist() == first.anchor[second.anchor].tolist()


@pytest.mark.parametrize(
    ("anchor", "source", "weight", "says"),
    [
        ([], [-1, -1], [0, 0], "keeps none"),
        ([0, 0], [0, -1], [1, 0], "distinct"),
        ([2], [-1, -1], [1, 1], "distinct token indices in"),
        ([-1], [-1, 0], [1, 1], "distinct token indices in"),
        ([0], [0, 1], [1, 1], "output indices"),
        ([0], [0, -2], [1, 1], "output indices"),
        ([0, 1], [1, 0], [1, 1], "own output"),
        ([0], [0, -1], [1], "one weight per input"),
    ],
)
def test_check_refuses_what_does_not_fit(anchor, source, weight, says):
    whole = [torch.tensor(v, dtype=torch.long) for v in (anchor, source)]
    with pytest.raises(ValueError, match=says):
        Selection(whole[0], whole[1], torch.tensor(weight, dtype=torch.float)).check()


def test_a_trained_modules_features_pass_through_later_stages():
    trained = Selection(torch.tensor([0, 2]), torch.tensor([0, 0, 1]), torch.ones(3), torch.full((2, 3), 7.0))
    both = trained.then(Selection.prune(torch.tensor([1]), 2))
    assert both.apply(torch.randn(3, 3)).tolist() == [[7.0, 7.0, 7.0]]
    assert both.combine(torch.ones(3, 5)).shape == (1, 5)


def test_the_identity_keeps_everything_as_it_is():
    x = torch.randn(5, 3)
    selection = Selection.identity(5, x.device).check()
    assert selection.is_identity
    assert torch.equal(selection.apply(x), x)
