"""vqtoken: its codebook, its hash, its module, its weights."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import vtc
from tests.engine.test_oracle import equal_to_oracle
from tests.families import FAMILIES, batch, model_of
from vtc import ops
from vtc.layout import Tile, VisualSpan, single_span
from vtc.methods.base.trained import save_module
from vtc.methods.shared import vq_attention
from vtc.signals import VisualTokens

SMALL = (2, 3, 3)


def clip(n=60, dim=8, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.5, 2, n)[:, None]


def groups(k, each, dim=16, noise=0.02, seed=0):
    """k directions, `each` tokens around every one of them, in turn: token i belongs to direction i % k."""
    g = torch.Generator().manual_seed(seed)
    ends = torch.linalg.qr(torch.randn(dim, dim, generator=g))[0][:k]
    return ends.repeat(each, 1) + noise * torch.randn(k * each, dim, generator=g)


def view(features, grid=None):
    def read(name):
        raise AssertionError(name)

    return VisualTokens(features, single_span(len(features), grid), torch.arange(len(features)), read)


def weights(folder, method=None, width=32, model_type="qwen2_5_vl", seed=1):
    """A folder of weights that no training has touched."""
    method = method or vtc.VQToken(cells=SMALL)
    module = replace(method, mode="hash").initial(width, seed)
    save_module(folder, method, module, model_type, width, {})
    return folder


# -- the codebook --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("magnitude", ["norm", "mean", "unit"])
@pytest.mark.parametrize("k", [1, 7, 59])
def test_codes_are_what_the_paper_says(k, magnitude):
    x = clip()
    _, label = ops.kmeans(x[None], k, "cosine")
    selection = vtc.select(vtc.VQToken(keep=k, magnitude=magnitude), x)
    codes = selection.apply(x)
    assert selection.tokens_out == k
    for m, anchor in enumerate(selection.anchor.tolist()):
        members = (selection.source == m).nonzero()[:, 0]
        assert label[0, members].unique().numel() == 1  # the same clusters
        unit = torch.nn.functional.normalize(x[members], dim=1)
        mean = unit.mean(dim=0)
        near = dict(zip(members.tolist(), (unit @ mean).tolist(), strict=True))
        assert near[anchor] > max(near.values()) - 1e-6  # a medoid
        length = x[members].norm(dim=1).mean()
        expected = {"unit": mean, "mean": x[members].mean(dim=0), "norm": mean / mean.norm() * length}[magnitude]
        torch.testing.assert_close(codes[m], expected, atol=1e-5, rtol=1e-4)


def test_it_finds_what_is_there():
    selection = vtc.select("vqtoken", groups(5, 12), keep=5)
    assert selection.anchor.sort().values.equal(selection.anchor)
    for i in range(5):
        assert selection.source[i::5].unique().numel() == 1


@pytest.mark.parametrize("keep", [1, 3, 20, 35])
def test_equal_tokens_are_shared_out(keep):
    """Nothing tells them apart: one code would do, and yet the count is exact, and every output has its token."""
    for x in (torch.ones(36, 8), torch.zeros(36, 8)):
        selection = vtc.select("vqtoken", x, keep=keep)
        assert selection.tokens_out == keep
        assert torch.bincount(selection.source, minlength=keep).min() == 1 or keep == 1
        torch.testing.assert_close(selection.apply(x), x[:keep])


def test_few_different_tokens():
    """Three kinds of tokens and eight codes: none of them mixes kinds."""
    x = groups(3, 10, noise=0.0)
    selection = vtc.select("vqtoken", x, keep=8)
    assert selection.tokens_out == 8
    for m in range(8):
        assert len({int(i) % 3 for i in (selection.source == m).nonzero()[:, 0]}) == 1


@pytest.mark.parametrize("keep", [60, 61, 1000, 1.0])
def test_no_codebook_is_needed(keep):
    x = clip()
    for method in (vtc.VQToken(keep=keep), vtc.VQToken(keep=keep, mode="hash"), vtc.VQToken(adaptive=(60, 70))):
        selection = vtc.select(method, x)
        assert selection.is_identity
        assert selection.apply(x).equal(x)


def test_one_frame_and_one_token():
    assert vtc.select("vqtoken", clip(16), grid=(1, 4, 4), keep=4).tokens_out == 4
    assert vtc.select("vqtoken", clip(1), grid=(1, 1, 1), keep=4).is_identity


def test_nothing_as_large_as_tokens_times_codes_times_width():
    class Largest(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, torch.Tensor):
                    self.largest = max(self.largest, x.numel())
            return out

    with Largest() as seen:
        vtc.select(vtc.VQToken(keep=32, mode="hash", cells=SMALL), torch.randn(2000, 64), grid=(5, 20, 20))
    assert seen.largest <= max(2000 * 64, 256 * 256)


def test_batches_choose_as_rows_do():
    many = [view(clip(n, seed=n)) for n in (30, 60, 60, 3, 45)]
    for method in (vtc.VQToken(keep=5, mode="hash"), vtc.VQToken(keep=0.2), vtc.VQToken(adaptive=(2, 6))):
        for together, tokens in zip(method.select_many(many), many, strict=True):
            alone = method.select(tokens)
            assert together.anchor.equal(alone.anchor)
            assert together.source.equal(alone.source)
            torch.testing.assert_close(together.apply(tokens.features), alone.apply(tokens.features))


# -- how many codes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [4, 6, 9])
def test_the_elbow_is_where_the_curve_bends(k):
    x = groups(k, 8)
    assert vtc.select(vtc.VQToken(adaptive=(2, 12)), x).tokens_out == k
    assert vtc.select(vtc.VQToken(adaptive=(k - 1, k + 1)), x).tokens_out == k
    # the released rule counts from the wrong end: index 0 of its second difference belongs to k = low + 1
    assert vtc.select(vtc.VQToken(adaptive=(2, 12), elbow="released"), x).tokens_out == max(12, k - 3 + 4)


def test_the_released_rule_on_its_own_range():
    x = groups(15, 8, dim=32, noise=0.01, seed=1)
    assert vtc.select(vtc.VQToken(adaptive=(12, 32)), x).tokens_out == 15
    assert vtc.select(vtc.VQToken(adaptive=(12, 32), elbow="released"), x).tokens_out == 12  # 2 + 4, raised to 12


@pytest.mark.parametrize(("tokens", "fewest", "most"), [(1, 1, 1), (3, 3, 3), (5, 5, 5), (6, 6, 6), (7, 7, 7)])
@pytest.mark.parametrize("elbow", ["curvature", "released"])
def test_a_range_beyond_the_tokens_goes_as_far_as_they_do(tokens, fewest, most, elbow):
    found = vtc.select(vtc.VQToken(adaptive=(5, 40), elbow=elbow), clip(tokens))
    assert 1 <= found.tokens_out <= tokens
    if tokens <= 5:
        assert found.is_identity


@pytest.mark.parametrize(
    ("count", "adaptive"), [(3, (1, 3)), (3, (3, 9)), (9, (3, 9)), (1, (1, 4)), (12, (12, 32)), (7, (7, 32))]
)
def test_the_ends_of_the_range_can_be_the_elbow(count, adaptive):
    x = groups(count, 8, dim=32, noise=0.05, seed=1)
    assert vtc.select(vtc.VQToken(adaptive=adaptive), x).tokens_out == count


def test_a_list_will_do():
    method = vtc.VQToken(adaptive=[3, 9], mode="hash")  # type: ignore[arg-type]
    assert hash(method) == hash(vtc.VQToken(adaptive=(3, 9), mode="hash"))


def test_equal_tokens_need_the_fewest_codes():
    assert vtc.select(vtc.VQToken(adaptive=(3, 9)), torch.ones(50, 8)).tokens_out == 3


# -- the hash ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 4, 4), (2, 3, 3), (8, 12, 12), (5, 7, 3), (16, 4, 31)])
@pytest.mark.parametrize("cells", [(1, 1, 1), (2, 3, 3), (8, 12, 12)])
def test_every_cell_is_filled_once(grid, cells):
    n = math.prod(grid)
    source = torch.arange(n) % min(n, 5)
    filled = vq_attention.occupancy(view(torch.zeros(n, 2), grid), source, min(n, 5), cells)
    assert filled.shape == (min(n, 5), math.prod(cells))
    torch.testing.assert_close(filled.sum(dim=0), torch.ones(math.prod(cells)))
    if all(side % cell == 0 for side, cell in zip(grid, cells, strict=True)):  # cells of whole tokens
        torch.testing.assert_close(filled.mean(dim=1), torch.bincount(source).float() / n)


def test_the_hash_says_where():
    """One code in the last frame's right half, the other everywhere else; the same on a clip of twice the size."""
    for t, h, w in ((4, 6, 6), (8, 12, 12)):
        source = torch.zeros(t, h, w, dtype=torch.long)
        source[-t // 4 :, :, w // 2 :] = 1
        filled = vq_attention.occupancy(view(torch.zeros(t * h * w, 2), (t, h, w)), source.flatten(), 2, (4, 3, 2))
        expected = torch.zeros(4, 3, 2)
        expected[3, :, 1] = 1
        torch.testing.assert_close(filled[1].view(4, 3, 2), expected)
        torch.testing.assert_close(filled[0].view(4, 3, 2), 1 - expected)


def test_the_hash_of_tiles_separators_and_what_is_gone():
    """A crop goes where it belongs, separators nowhere, and what an earlier stage dropped leaves a hole."""
    tiles = (Tile(0, 1, 2, 2, newline=True, box=(0.0, 0.0, 0.5, 1.0)), Tile(6, 1, 2, 2, box=(0.5, 0.0, 1.0, 1.0)))
    span = VisualSpan(0, torch.arange(10), (1, 2, 2), tiles)
    index = torch.tensor([0, 1, 2, 3, 4, 5, 6, 8, 9])  # token 7 is gone
    tokens = VisualTokens(torch.zeros(9, 2), span, index, lambda name: index)
    source = torch.tensor([0, 0, 2, 0, 0, 2, 1, 1, 1])  # newlines are of code 2
    filled = vq_attention.occupancy(tokens, source, 3, (1, 2, 4)).view(3, 2, 4)
    torch.testing.assert_close(filled[0], torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0]]))
    torch.testing.assert_close(filled[1], torch.tensor([[0.0, 0, 1, 0], [0, 0, 1, 1]]))
    assert not filled[2].any()


# -- the module ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roles", ["codes", "hash"])
def test_the_module_starts_from_the_codebook(roles):
    x = clip()
    method = vtc.VQToken(keep=6, roles=roles, cells=SMALL)
    module = method.initial(8, seed=3)
    start = method.training(module).select(view(x, (5, 3, 4)))
    torch.testing.assert_close(start.apply(x), method.select(view(x, (5, 3, 4))).apply(x))


@pytest.mark.parametrize("roles", ["codes", "hash"])
def test_the_order_of_codes_and_what_fills_up_the_batch_do_not_matter(roles):
    module = vtc.VQToken(mode="hash", roles=roles, cells=SMALL).initial(16, seed=3)
    g = torch.Generator().manual_seed(0)
    codes, filled = torch.randn(1, 6, 16, generator=g), torch.rand(1, 6, 18, generator=g)
    there, order = torch.ones(1, 6, dtype=torch.bool), torch.randperm(6, generator=g)
    out = module(codes, filled, there)
    torch.testing.assert_close(module(codes[:, order], filled[:, order], there), out[:, order])
    longer = [torch.cat([x, torch.full_like(x[:, :2], 7.0)], dim=1) for x in (codes, filled)]
    mask = torch.tensor([[True] * 6 + [False] * 2])
    torch.testing.assert_close(module(*longer, mask)[:, :6], out)
    scaled = module(100 * codes, filled, there)  # its correction is in units of the codes' length
    torch.testing.assert_close(scaled, 100 * out, atol=0.05, rtol=1e-3)


def test_the_untrained_module_reads_the_hash():
    x = clip()
    plain, random = vtc.VQToken(keep=6), vtc.VQToken(keep=6, mode="hash")
    first = vtc.select(random, x, grid=(5, 3, 4))
    assert first.source.equal(vtc.select(plain, x).source)
    assert not torch.allclose(first.apply(x), vtc.select(plain, x).apply(x), atol=1e-2)
    assert not torch.allclose(first.apply(x), vtc.select(random, x, grid=(3, 5, 4)).apply(x), atol=1e-3)
    state = torch.get_rng_state()
    again = vtc.select(vtc.VQToken(keep=6, mode="hash"), x, grid=(5, 3, 4))
    assert again.apply(x).equal(first.apply(x))
    assert torch.get_rng_state().equal(state)
    other = vtc.select(vtc.VQToken(keep=6, mode="hash", seed=1), x, grid=(5, 3, 4))
    assert not torch.allclose(other.apply(x), first.apply(x), atol=1e-3)


def test_its_cost_is_a_line_of_its_own():
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [["v0"], ["v1", 0]])
    method = vtc.VQToken(keep=5, mode="hash", cells=SMALL)
    with vtc.wrapped(model, method):
        model(**inputs)
        report = vtc.report(model)
    assert report.module_flops == report.stages[0].flops == 3 * vq_attention.flops(5, 32, SMALL)
    assert report.as_dict()["module_flops"] == report.module_flops
    assert "module FLOPs" in str(report)
    net = method.initial(32, 0)
    with FlopCounterMode(display=False) as counter:
        net(torch.randn(1, 5, 32), torch.rand(1, 5, 18), torch.ones(1, 5, dtype=torch.bool))
    attention = 4 * 5 * 5 * 32  # which the counter misses on some devices
    assert counter.get_total_flops() in (report.module_flops // 3, report.module_flops // 3 - attention)
    with vtc.wrapped(model, "vqtoken", keep=5):
        model(**inputs)
        assert vtc.report(model).module_flops == 0
        assert "module" not in str(vtc.report(model))


# -- in a model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", *(name for name, family in FAMILIES.items() if family.videos)])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_with_weights_it_equals_the_oracle(family, positions, tmp_path):
    model = model_of(family)
    folder = weights(tmp_path, model_type=model.config.model_type)
    rows = [["v0", 0], ["v1"]] if FAMILIES[family].videos else [[0], [1, 2]]
    report = equal_to_oracle(family, "sdpa", rows, "left", "vqtoken", weights=folder, keep=4, positions=positions)
    assert [span.tokens_out for span in report.spans] == [4, 4, 4]


def test_weights_change_answers_and_leave_no_trace(tmp_path):
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [["v0"]])
    before, parts = model(**inputs).logits, set(model.__dict__)
    folder = weights(tmp_path)
    with vtc.wrapped(model, "vqtoken", keep=4):
        plain = model(**inputs).logits
    with vtc.wrapped(model, "vqtoken", keep=4, weights=folder):
        trained = model(**inputs).logits
        twin = copy.deepcopy(model)
        assert twin(**inputs).logits.equal(trained)
        assert sum(1 for _ in model.parameters()) == sum(1 for _ in vtc.unwrap(twin).parameters())
    assert not torch.allclose(plain, trained, atol=1e-3)
    assert set(model.__dict__) == parts
    assert model(**inputs).logits.equal(before)
    with vtc.wrapped(model, vtc.VQToken(keep=4, weights=folder / "module.safetensors")):
        assert model(**inputs).logits.equal(trained)
    weights(tmp_path, seed=2)  # written anew: not the old ones from memory
    with vtc.wrapped(model, "vqtoken", keep=4, weights=str(folder)):
        assert not torch.allclose(model(**inputs).logits, trained, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision(dtype, tmp_path):
    x = clip(60, 32)
    method = vtc.VQToken(keep=6, weights=weights(tmp_path))
    full = vtc.select(method, x.to(dtype).float(), grid=(5, 3, 4)).apply(x)
    half = vtc.select(method, x.to(dtype), grid=(5, 3, 4)).apply(x.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), full, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_gradients_reach_the_module_and_nothing_else(family):
    model, inputs = model_of(family), batch(family, [[0], [1, 2]])
    method = vtc.VQToken(keep=4, cells=SMALL)
    module = vtc.VQToken(mode="hash", cells=SMALL).initial(32, 0)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    with torch.enable_grad(), vtc.wrapped(model, method.training(module)):
        model(**inputs, use_cache=False).logits[:, -1].square().sum().backward()
    for parameter, want in zip(model.parameters(), wanted, strict=True):
        parameter.requires_grad_(want)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0 or name == "key.bias"  # a bias of all keys changes no attention


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "full"}, r'mode="full" needs weights=FOLDER: vtc\.train'),
        ({"mode": "half"}, r"mode='half' is not one of full, codebook, hash"),
        ({"elbow": "knee"}, r"elbow='knee' is not one of curvature, released"),
        ({"magnitude": "long"}, r"magnitude='long' is not one of norm, mean, unit"),
        ({"roles": "both"}, r"roles='both' is not one of codes, hash"),
        ({"adaptive": (12, 13)}, r"adaptive\[1\]=13 is not a whole number of 14 or more"),
        ({"adaptive": (0, 13)}, r"adaptive\[0\]=0 is not a whole number of 1 or more"),
        ({"adaptive": 12}, r"adaptive=12 is not a pair of whole numbers"),
        ({"adaptive": (1.0, 9)}, r"adaptive\[0\]=1\.0 is not a whole number"),
        ({"cells": (8, 12)}, r"cells=\(8, 12\) is not a grid"),
        ({"cells": (0, 1, 1)}, r"cells\[0\]=0 is not a whole number of 1 or more: it is a side of the grid"),
        ({"seed": 0.5}, r"seed=0\.5 is not a whole number"),
        ({"scope": "frame"}, r"scope='frame' is not one of clip"),
        ({"weights": 3}, r"weights=3 is not a folder that vtc\.train wrote, nor a module"),
        ({"weights": "nowhere"}, r"there are no weights in nowhere: .*module\.safetensors is missing"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=f"^{message}[^\n]*$"):
        vtc.VQToken(**options)


def test_weights_of_another_model_are_refused_when_wrapping(tmp_path):
    model = model_of("qwen2_5_vl")
    others = [weights(tmp_path / "a", width=64), weights(tmp_path / "b", model_type="llava")]
    for folder in others:
        with pytest.raises(
            ValueError, match=r"^the weights in .* were trained for [^\n]*; this model is qwen2_5_vl of"
        ):
            vtc.wrap(model, "vqtoken", weights=folder)
        assert "_vtc_engine" not in model.__dict__
    with pytest.raises(ValueError, match=r"are for width 64; the features have 8"):
        vtc.select("vqtoken", clip(), weights=tmp_path / "a", keep=4)


def test_damaged_weights_are_refused_when_wrapping(tmp_path):
    model = model_of("qwen2_5_vl")
    data, card = (weights(tmp_path) / "module.safetensors").read_bytes(), (tmp_path / "module.json").read_text()
    other = json.dumps(json.loads(card) | {"options": {"magnitude": "norm", "roles": "codes", "cells": [3, 3, 3]}})
    for tensors, said in ((data[: len(data) // 2], card), (data, other)):
        (tmp_path / "module.safetensors").write_bytes(tensors)
        (tmp_path / "module.json").write_text(said)
        with pytest.raises(ValueError, match=r"^the weights in .* are damaged or do not fit the card[^\n]*$"):
            vtc.wrap(model, "vqtoken", weights=tmp_path)
        assert "_vtc_engine" not in model.__dict__


def test_options_that_the_weights_were_not_trained_with(tmp_path):
    folder = weights(tmp_path, vtc.VQToken(cells=SMALL, magnitude="mean", roles="hash"))
    method = vtc.VQToken(weights=folder)
    assert [method.option(name) for name in ("magnitude", "roles", "cells")] == ["mean", "hash", SMALL]
    assert replace(vtc.VQToken(keep=5), weights=folder).option("roles") == "hash"
    with pytest.raises(ValueError, match=r"^magnitude='norm', but the weights in .* trained with magnitude='mean'"):
        vtc.VQToken(weights=folder, magnitude="norm")
    with pytest.raises(ValueError, match=r'^weights= are for mode="full"'):
        vtc.VQToken(weights=folder, mode="hash")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "other"}, "describes weights of other in format 1; expected vqtoken"),
        ({"format": 9}, "in format 9; expected vqtoken in format 1"),
        ({"width": None}, "does not describe the weights of a method"),
        ({"options": None}, "does not describe the weights of a method"),
        ({"options": []}, "does not describe the weights of a method"),
    ],
)
def test_a_card_that_does_not_fit(change, message, tmp_path):
    card = json.loads((weights(tmp_path) / "module.json").read_text())
    for name, value in change.items():
        if value is None:
            del card[name]
        else:
            card[name] = value
    (tmp_path / "module.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=message):
        vtc.VQToken(weights=tmp_path)
    (tmp_path / "module.json").write_text("[")
    with pytest.raises(ValueError, match="does not describe the weights"):
        vtc.VQToken(weights=tmp_path)
