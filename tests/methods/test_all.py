"""What holds for every registered method, and how a user adds one."""

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch

import vtc
from tests.families import batch, model_of
from vtc.methods.base import registry
from vtc.methods.base.cache import PairedMethod

EVERY = sorted(name for name, cls in registry.discover().items() if cls.__module__.startswith("vtc.methods."))
NAMES = [  # that choose among tokens
    name
    for name in EVERY
    if registry.discover()[name].stage not in ("pixels", "encoder")
    and not issubclass(registry.discover()[name], PairedMethod)
]


def make(name, keep, **options):
    """A method that can choose among bare tensors: for all heads alike."""
    together = {"per_head": False} if name in ("knorm", "keydiff") else {}
    return registry.resolve(name, keep, **together, **options)


def picture(h, w, dim=8, seed=0):
    """Features, and everything a method may ask for, of an h x w picture."""
    g = torch.Generator().manual_seed(seed)
    n = h * w
    signals = {
        "cls_attention": torch.rand(2, n, generator=g),
        "received_attention": torch.rand(2, n, generator=g),
        "keys": torch.randn(n, 5, generator=g),
        "global_attention": torch.rand(n, generator=g) / n,
        "patch_entropy": 8 * torch.rand(n, generator=g),
        "text": torch.randn(4, dim, generator=g),
        "joined_cls_attention": torch.rand(1, n, generator=g) / n,
        "joined_keys": torch.randn(1, n, 10, generator=g),
        "last_attention": torch.rand(n, generator=g) / n,
        "text_attention": torch.rand(4, n, generator=g) / n,
        "peak_attention": torch.rand(n, generator=g),
        "visual_attention": torch.rand(n, generator=g) / n,
        "relevance": torch.rand(2, generator=g),
        "transition": torch.rand(n, generator=g),
        "layer_keys": torch.randn(n, 2, 5, generator=g),
        "text_keys": torch.randn(4, 2, 5, generator=g),
        "text_final_states": torch.randn(4, dim, generator=g),
        "text_raters": torch.tensor([True, False, True, False]),
        "attention_record": torch.rand(n, generator=g),
        "survives": torch.rand(n, generator=g) < 0.5,
    }
    features = torch.randn(n, dim, generator=g)
    late = {
        "final_states": features.flip(1) * 2,
        "cls_logits": torch.randn(2, n, generator=g),
        "late_record": torch.rand(n, generator=g),
        "layer_record": torch.rand(2, generator=g),
        "seen_by": torch.arange(n, 0, -1),
        "cached_visual": torch.rand(n, generator=g) < 0.5,
        "cached_keys": torch.randn(2, n, 6, generator=g),
        "plain_keys": torch.randn(2, n, 6, generator=g),
        "tower_features": torch.randn(n, 6, generator=g),
        "cached_values": torch.randn(2, n, 6, generator=g),
    }
    return features, (1, h, w), signals | late


def select(method, seen):
    features, grid, signals = seen
    assert set(method.requires()) <= {"grid", *signals}
    return vtc.select(method, features, grid=grid, **signals)


def parts(selection):
    return selection.anchor.tolist(), selection.source.tolist(), selection.weight.tolist()


def test_the_registry_lists_them():
    assert {"divprune", "pool", "random", "todre", "visionzip", "vtc-cls"} <= set(NAMES)
    infos = {info.name: info for info in vtc.list_methods()}
    for name in EVERY:
        assert infos[name].summary
        assert make(name, infos[name].default_keep) == make(name, None)
        assert infos[name].positions in ("original", "compact")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [1, 2, 7, 63, 64, 65, 1000, 0.001, 0.1, 0.25, 0.5, 0.99, 1.0])
def test_counts_and_invariants(name, keep):
    method, n = make(name, keep), 64
    selection = select(method, picture(8, 8))
    expected = min(n, keep if isinstance(keep, int) else max(1, round(keep * n)))
    if method.exact_count:
        assert selection.tokens_out == expected
    assert 1 <= selection.tokens_out <= n
    assert selection.check() is selection
    anchor = selection.anchor.tolist()
    assert len(set(anchor)) == len(anchor)
    made = torch.bincount(selection.source[selection.source >= 0], minlength=len(anchor)) > 1  # of several tokens
    alone = int(made.nonzero()[0]) if method.appends and made.any() else len(anchor)
    falls = sum(two < one for one, two in pairwise(anchor[:alone]))
    # what is to take others in and found none stands behind the rest, too; recoverable's centres, by their attention
    assert falls <= (len(anchor) if name == "recoverable" else method.appends)
    if not method.merges:
        assert not selection.merges
        assert torch.equal(selection.apply(torch.eye(n)), torch.eye(n)[selection.anchor])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [64, 65, 1.0])
def test_keeping_everything_is_the_identity(name, keep):
    features, grid, signals = picture(8, 8)
    selection = select(make(name, keep), (features, grid, signals))
    assert selection.anchor.tolist() == list(range(64))
    assert selection.source.tolist() == list(range(64))
    assert torch.equal(selection.apply(features), features)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [1, 5, 0.3, 1.0])
def test_a_picture_of_one_token(name, keep):
    features, grid, signals = picture(1, 1)
    selection = select(make(name, keep), (features, grid, signals))
    assert parts(selection) == ([0], [0], [1.0])
    assert torch.equal(selection.apply(features), features)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_tokens(name, value):
    """Nothing tells the tokens apart: the result is still well defined, and the lowest indices win."""
    n = 36
    _, _, shapes = picture(6, 6)
    signals: Any = {k: torch.full_like(v, value) for k, v in shapes.items()}
    method = make(name, 10)
    selection = vtc.select(method, torch.full((n, 8), value), grid=(1, 6, 6), **signals)
    if method.exact_count:
        assert selection.tokens_out == 10
    if type(method).select is vtc.Method.select and method.needs:  # by a score that is read
        assert selection.anchor.tolist() == list(range(10))
    out = selection.apply(torch.full((n, 8), value))
    assert out.isfinite().all()
    if selection.features is None:  # means of equal tokens are equal to them, sums are as many times that
        used = selection.source >= 0
        mass = torch.zeros(selection.tokens_out).index_add(0, selection.source[used], selection.weight[used])
        torch.testing.assert_close(out, mass[:, None].expand(-1, 8) * value)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_every_time_and_without_touching_the_global_generator(name):
    seen, method = picture(6, 7), make(name, 9)
    torch.manual_seed(1)
    first = parts(select(method, seen))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert parts(select(make(name, 9), seen)) == first
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone(name):
    seen = picture(6, 7)
    before = copy.deepcopy(seen)
    select(make(name, 9), seen)
    assert torch.equal(seen[0], before[0])
    assert all(torch.equal(seen[2][k], before[2][k]) for k in seen[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name, dtype):
    """Half-precision input gives what the same numbers in fp32 give; outputs keep the dtype."""
    features, grid, signals = picture(8, 8)
    half = features.to(dtype), grid, {k: v.to(dtype) if v.is_floating_point() else v for k, v in signals.items()}
    full = half[0].float(), grid, {k: v.float() if v.is_floating_point() else v for k, v in half[2].items()}
    a, b = select(make(name, 12), half), select(make(name, 12), full)
    assert a.source.tolist() == b.source.tolist()
    out = a.apply(half[0])
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), b.apply(full[0]), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", NAMES)
def test_features_that_need_gradients(name):
    features, grid, signals = picture(6, 6)
    with torch.enable_grad():
        selection = select(make(name, 5), (features.requires_grad_(), grid, signals))
        selection.apply(features).sum().backward()
    assert features.grad is not None
    assert ((features.grad != 0).any(1) == (selection.source >= 0)).all()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("keep", [0, -3, 1.5, 0.0, float("nan"), "64", True, None])
def test_a_bad_keep_is_one_sentence(name, keep):
    cls = registry.discover()[name]
    with pytest.raises((ValueError, TypeError), match=r"^keep=[^\n]*fraction in \(0, 1\][^\n]*$"):
        cls(keep=keep)


@pytest.mark.parametrize("name", EVERY)
def test_bad_options_are_one_sentence(name):
    with pytest.raises(ValueError, match=r"^positions='middle' is not one of [^\n]*$"):
        make(name, 4, positions="middle")
    with pytest.raises(TypeError, match=rf"^{name} has no option 'position'[^\n]*Did you mean 'positions'\?$"):
        make(name, 4, position="compact")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("divprune", {"order": "random"}),
        ("todre", {"mode": "max"}),
        ("todre", {"pivot": "edge"}),
        ("todre", {"seed": "x"}),
        ("random", {"seed": 1.5}),
        ("random", {"seed": None}),
        ("tome", {"rate": 0.6}),
        ("tome", {"rate": True}),
        ("pitome", {"margin": 2.0}),
        ("visionzip", {"contextual": 1.0}),
        ("visionzip", {"contextual": -0.1}),
        ("visionzip", {"contextual": float("nan")}),
        ("visionzip", {"contextual": "some"}),
        ("vtc-cls", {"start_layer": -1}),
        ("vtc-cls", {"start_layer": 1.0}),
        ("vtc-cls", {"start_layer": float("nan")}),
        ("vtc-cls", {"start_layer": True}),
        ("vtc-cls", {"start_layer": "last"}),
    ],
)
def test_bad_values_of_options_are_named(name, options):
    (option,) = options
    with pytest.raises((ValueError, TypeError), match=rf"^{option}=[^\n]*\.$"):
        make(name, 4, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("features", [torch.zeros(0, 4), torch.zeros(4), torch.zeros(1, 4, 4), [[1.0]]])
def test_features_of_another_shape_are_refused(name, features):
    with pytest.raises(ValueError, match=r"^features must be a tensor \[N, D\] with N >= 1[^\n]*$"):
        vtc.select(name, features)


def test_an_unknown_method_gets_a_suggestion():
    with pytest.raises(
        ValueError, match=r"unknown method 'divprun'\. Did you mean 'divprune'\? Known methods: adakv, cdpruner, "
    ):
        vtc.select("divprun", torch.ones(3, 2))
    with pytest.raises(ValueError, match="Did you mean 'vtc-cls'"):
        vtc.select("VTC_CLS", torch.ones(3, 2))
    with pytest.raises(TypeError, match=r"DivPrune is a class; pass an instance"):
        vtc.select(vtc.DivPrune, torch.ones(3, 2))  # type: ignore[arg-type]


# -- a user's own method -------------------------------------------------------------------------------------------


@pytest.fixture
def own(monkeypatch):
    """A method of ten lines; the registry forgets it afterwards."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @dataclass(frozen=True, kw_only=True)
    class Longest(vtc.Method):
        """Keep the tokens with the longest feature vectors."""

        name = "longest"
        keep: int | float = 3
        power: float = 2.0

        def score(self, tokens):
            return tokens.features.float().norm(dim=-1) ** self.power

    return Longest


def test_it_is_listed_and_selects(own):
    x = torch.randn(20, 4)
    longest = x.norm(dim=1).topk(3).indices.sort().values
    assert torch.equal(vtc.select("longest", x).anchor, longest)
    assert torch.equal(vtc.select(own(keep=3), x).anchor, longest)
    (info,) = [i for i in vtc.list_methods() if i.name == "longest"]
    assert (info.stage, info.default_keep, info.options) == ("input", 3, ("positions", "scope", "power"))
    assert info.summary == "Keep the tokens with the longest feature vectors."


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_it_works_in_a_model(own, family):
    model, inputs = model_of(family), batch(family, [[0]])
    with vtc.wrapped(model, "longest", keep=4):
        out = model(**inputs)
        (span,) = vtc.report(model).spans
    assert out.logits.shape[1] == inputs["input_ids"].shape[1]
    features = model.model.get_image_features(
        **{k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw")}, return_dict=True
    ).pooler_output[0]
    assert span.kept.tolist() == features.norm(dim=1).topk(4).indices.sort().values.tolist()


def test_a_taken_name_is_refused(own):
    with pytest.raises(ValueError, match=r"method name 'longest' is taken by .*Longest; choose another"):

        class Other(vtc.Method):
            name = "longest"

    with pytest.raises(ValueError, match=r"method name 'divprune' is taken by vtc\.methods.divprune.DivPrune"):

        class Mine(vtc.Method):
            name = "divprune"

    assert registry.discover()["divprune"] is vtc.DivPrune


def test_a_method_without_score_or_select_says_so():
    class Empty(vtc.Method):
        pass

    with pytest.raises(TypeError, match=r"Empty defines neither score\(tokens\) nor select\(tokens\)"):
        vtc.select(Empty(keep=2), torch.ones(3, 2))


def test_a_score_of_the_wrong_shape_is_refused():
    class Wide(vtc.Method):
        def score(self, tokens):
            return tokens.features

    with pytest.raises(ValueError, match=r"score\(tokens\) returned shape \(3, 2\); expected one number per token"):
        vtc.select(Wide(keep=2), torch.ones(3, 2))


def test_an_impossible_stage_is_refused():
    with pytest.raises(
        ValueError, match=r"^Late\.stage is 'decode'; expected one of pixels, encoder, input, layer, cache\.$"
    ):

        class Late(vtc.Method):
            stage = "decode"


@pytest.mark.parametrize(
    ("base", "stage", "right"),
    [
        (vtc.Method, "layer", "LayerMethod"),
        (vtc.Method, "cache", "CacheMethod"),
        (vtc.CacheMethod, "layer", "LayerMethod"),
        (vtc.FastV, "cache", "CacheMethod"),
        (vtc.LayerMethod, "input", "Method"),
    ],
)
def test_a_stage_without_its_base_is_refused(base, stage, right):
    said = rf"^Late derives from vtc\.\w+, but its stage is '{stage}': derive it from vtc\.{right}, or leave"
    with pytest.raises(TypeError, match=said):
        type("Late", (base,), {"stage": stage, "name": "late"})
    assert "late" not in registry.discover()


def test_top_k_breaks_ties_low_and_ranks_nan_last():
    nan, inf = float("nan"), float("inf")
    assert vtc.top_k(torch.tensor([1.0, 2.0, 2.0, 2.0]), 2).tolist() == [1, 2]
    assert vtc.top_k(torch.tensor([nan, 0.0, inf, -1.0]), 3).tolist() == [1, 2, 3]
    assert vtc.top_k(torch.tensor([nan, nan, nan]), 2).tolist() == [0, 1]
    assert vtc.top_k(torch.tensor([False, True, True]), 1).tolist() == [1]


def test_methods_are_values():
    assert vtc.DivPrune(keep=64) == vtc.DivPrune(keep=64)
    assert hash(vtc.DivPrune(keep=64)) == hash(vtc.DivPrune(keep=64))
    assert replace(vtc.DivPrune(keep=64), keep=3).keep == 3
    with pytest.raises(AttributeError):
        vtc.DivPrune().keep = 3  # type: ignore[misc]


def test_options_of_a_users_method_are_never_lost():
    @dataclass(frozen=True, kw_only=True)
    class Decorated(vtc.Method):
        keep = 3

        def score(self, tokens):
            return tokens.features[:, 0]

    class Bare(vtc.Method):
        keep = 3

        def score(self, tokens):
            return tokens.features[:, 0]

    assert vtc.select(Decorated(), torch.randn(9, 4)).tokens_out == 3
    with pytest.raises(TypeError, match="decorate Bare"):
        vtc.select(Bare(), torch.randn(9, 4))


@pytest.mark.parametrize("values", [3, 100, 10**6])
@pytest.mark.parametrize("n", [1, 2, 50, 1500])
def test_top_k_is_the_sorted_order_of_value_and_index(values, n):
    """With many ties, few and none, and with numbers that are none."""
    g = torch.Generator().manual_seed(n)
    for broken in (0, 1, 3):
        score = torch.randint(values, (n,), generator=g).float()
        score[torch.randint(n, (broken,), generator=g)] = float("nan")
        lowest = [-float("inf") if value != value else value for value in score.tolist()]
        for k in range(n + 1) if n < 100 else (1, 7, 640, n - 1, n):
            best = sorted(range(n), key=lambda i: (-lowest[i], i))[:k]
            assert vtc.top_k(score, k).tolist() == sorted(best)
