"""vtc-cls: top-k of the CLS attention, summed over layers."""

import pytest
import torch

import vtc


def define(attention, keep):
    """methods.md, section 1: sum over layers with equal weights, k largest, raster order restored."""
    layers, n = attention.shape
    score = [sum(float(attention[layer, j]) for layer in range(layers)) for j in range(n)]
    return sorted(sorted(range(n), key=lambda j: (-score[j], j))[:keep])


@pytest.mark.parametrize("layers", [1, 7])
@pytest.mark.parametrize("keep", [1, 5, 36])
def test_against_the_definition(layers, keep):
    attention = torch.rand(layers, 100, generator=torch.Generator().manual_seed(layers))
    selection = vtc.select(vtc.VTCCLS(keep=keep), torch.randn(100, 4), cls_attention=attention)
    assert selection.anchor.tolist() == define(attention.double(), keep)
    assert not selection.merges


def test_the_sum_counts_and_not_the_last_layer():
    attention = torch.tensor([[0.9, 0.0, 0.3], [0.0, 0.5, 0.3]])
    assert vtc.select(vtc.VTCCLS(keep=1), torch.randn(3, 2), cls_attention=attention).anchor.tolist() == [0]


def test_ties_go_to_the_lowest_index():
    attention = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.1])
    assert vtc.select(vtc.VTCCLS(keep=2), torch.randn(5, 2), cls_attention=attention).anchor.tolist() == [1, 2]


def test_layers_of_clip_large():
    """Layers 16 to 22 of 24 by default: the released start layer, the last layer left out."""
    assert vtc.VTCCLS().tower_layers(24, 22) == (16, 17, 18, 19, 20, 21, 22)
    assert vtc.VTCCLS(start_layer=20).tower_layers(24, 22) == (20, 21, 22)
    assert vtc.VTCCLS(start_layer=0.5).tower_layers(24, 22) == tuple(range(12, 23))
    assert vtc.VTCCLS(start_layer=23).tower_layers(24, 22) == (22,)
    assert vtc.VTCCLS().tower_layers(1, 0) == (0,)  # a share of one layer is that layer


def test_a_start_beyond_the_tower_is_refused():
    with pytest.raises(ValueError, match="outside the vision tower's 24 layers"):
        vtc.VTCCLS(start_layer=24).tower_layers(24, 22)
