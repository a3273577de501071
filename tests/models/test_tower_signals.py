"""Tapped signals, against the attention weights that the vision towers themselves compute under eager attention."""

import sys
from typing import Any, ClassVar

import pytest
import torch
from transformers.vision_utils import get_vision_window_index

import vtc
from tests.families import FAMILIES, batch, model_of
from vtc.models import adapter_for, tower_for

pytestmark = pytest.mark.core

DEPTH = 3
FEATURE_LAYER = {name: 2 for name in FAMILIES} | {"llava": 1, "llava_siglip": 1, "llava_next": 1, "llava_next_video": 1}
PER_LAYER = ("received_attention", "cls_attention", "joined_cls_attention", "joined_keys")
HAS_CLS = ("clip_vision_model", "internvl_vision")  # types of towers


class Probe(vtc.Method):
    """Keeps what it is shown."""

    needs: ClassVar[tuple[str, ...]] = (
        "cls_attention",
        "received_attention",
        "joined_cls_attention",
        "joined_keys",
        "keys",
        "text",
    )
    seen: ClassVar[list[dict[str, torch.Tensor]]] = []

    def tower_layers(self, depth, feature_layer):
        assert depth == DEPTH
        return tuple(range(depth))

    def select(self, tokens):
        self.seen.append({name: tokens.signal(name).clone() for name in self.needs})
        return vtc.Selection.identity(tokens.total)


def tapped(model: Any, inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """What a method is shown, per image."""
    Probe.seen.clear()
    with vtc.wrapped(model, Probe()):
        model(**inputs)
    return list(Probe.seen)


def vision_inputs(inputs):
    return {k: v for k, v in inputs.items() if k in ("pixel_values", "image_sizes", "image_grid_thw")}


def weights_and_keys(monkeypatch, model, inputs) -> list[list[tuple[torch.Tensor, ...]]]:
    """Per layer, one (weights [B, H, T, T], keys, queries [B, H, T, d]) per call of the model's own eager attention."""
    tower = adapter_for(model).tower(model)
    attentions = tower_for(tower).attentions(tower)
    calls: list[list[Any]] = [[] for _ in attentions]
    source = sys.modules[type(attentions[0]).__module__]
    eager = source.eager_attention_forward

    def spy(module, query, key, *args, **kwargs):
        output, weights = eager(module, query, key, *args, **kwargs)
        if module in attentions:
            calls[attentions.index(module)].append((weights, key, query))
        return output, weights

    with monkeypatch.context() as patch:
        patch.setattr(source, "eager_attention_forward", spy)
        model.model.get_image_features(**vision_inputs(inputs), return_dict=True)
    return calls


def expected(monkeypatch, family, model, inputs) -> list[dict[str, torch.Tensor]]:
    """The signals of each image, from weights and keys of the model itself."""
    calls = weights_and_keys(monkeypatch, model, inputs)
    spread: dict[str, Any] = {name: [] for name in PER_LAYER}
    for layer, made in enumerate(calls):
        own = per_image(family, model, inputs, made)
        for name in PER_LAYER:
            spread[name].append(own[name])
        if layer == FEATURE_LAYER[family]:
            spread["keys"] = own["keys"]
    images = len(spread["keys"])
    return [
        {name: torch.stack([rows[i] for rows in spread[name]]) for name in PER_LAYER} | {"keys": spread["keys"][i]}
        for i in range(images)
    ]


def per_image(family, model, inputs, made) -> dict[str, list[torch.Tensor]]:
    """One layer: signal -> one [N] or [N, d] per image."""
    if family.startswith("qwen"):
        return packed(model, inputs["image_grid_thw"], made)
    ((weights, keys, queries),) = made
    cls = model.config.vision_config.model_type in HAS_CLS
    first = int(cls)
    whole = keys.transpose(1, 2).flatten(2)  # [B, T, H d]
    products = (whole * queries.transpose(1, 2).flatten(2)[:, :1]).sum(dim=-1) / whole.shape[-1] ** 0.5
    patches = {
        "received_attention": weights.mean(dim=(1, 2))[:, first:],  # [B, T]
        "cls_attention": weights.mean(dim=1)[:, 0, first:] if cls else weights.mean(dim=(1, 2)),
        "joined_cls_attention": products.softmax(dim=-1)[:, first:] if cls else weights.mean(dim=(1, 2)),
        "joined_keys": whole[:, first:],
        "keys": keys.mean(dim=1)[:, first:],  # [B, T, d]
    }
    if family == "internvl":
        return {name: shuffled(model, inputs, x, name.endswith("keys")) for name, x in patches.items()}
    if "image_sizes" in inputs:
        return {name: mosaicked(model, inputs, x) for name, x in patches.items()}
    return {name: list(x) for name, x in patches.items()}


def packed(model, grids, made) -> dict[str, list[torch.Tensor]]:
    """Qwen: chunks of one packed sequence, in window order where there are windows; four patches make a token."""
    received = torch.cat([w.mean(dim=1).sum(dim=1)[0] for w, *_ in made])  # [T], summed over the queries of its chunk
    whole = torch.cat([k[0].transpose(0, 1).flatten(1) for _, k, _ in made])
    keys = torch.cat([k.mean(dim=1)[0] for _, k, _ in made])
    received, keys, whole = received.view(-1, 4).sum(1), *(x.view(-1, 4, x.shape[1]).mean(1) for x in (keys, whole))
    vision = model.config.vision_config
    if hasattr(vision, "window_size"):
        index, _ = get_vision_window_index(grids, vision.spatial_merge_size, vision.window_size, vision.patch_size)
        back = index.argsort()
        received, keys, whole = received[back], keys[back], whole[back]
    tokens = (grids.prod(dim=1) // 4).tolist()
    rows = [x / (4 * n) for x, n in zip(received.split(tokens), tokens, strict=True)]  # mean over the image's queries
    parts = {"keys": list(keys.split(tokens)), "joined_keys": list(whole.split(tokens))}
    return {name: rows for name in PER_LAYER if name != "joined_keys"} | parts


def shuffled(model, inputs, x, mean) -> list[torch.Tensor]:
    """InternVL: the model's own pixel shuffle, one channel at a time, tells which four patches make a token."""
    x = x if x.dim() == 3 else x.unsqueeze(-1)
    channels = [
        model.model.pixel_shuffle(c.reshape(len(c), 6, 6, 1), scale_factor=0.5).flatten(1, 2) for c in x.unbind(-1)
    ]
    folded = torch.stack([c.mean(-1) if mean else c.sum(-1) for c in channels], dim=-1)  # [tiles, 9, d]
    starts = (inputs["input_ids"] == 3).nonzero()
    ends = (inputs["input_ids"] == 4).nonzero()
    tiles = [(int(e[1] - s[1]) - 1) // 9 for s, e in zip(starts, ends, strict=True)]
    return [part.flatten(0, 1).squeeze(-1) if not mean else part.flatten(0, 1) for part in folded.split(tiles)]


def mosaicked(model, inputs, x) -> list[torch.Tensor]:
    """LLaVA-NeXT, OneVision: the model's own packing of patch coordinates tells where each token comes from."""
    x = x if x.dim() == 3 else x.unsqueeze(-1)
    newline, extra = torch.full((3,), -1.0), {}
    if model.config.model_type in ("llava_next", "llava_next_video"):
        extra["vision_feature_select_strategy"] = "default"
    else:
        extra["vision_aspect_ratio"] = model.config.vision_aspect_ratio
    out, start = [], 0
    for size in inputs["image_sizes"]:
        rows, cols = grid_of(size, model)
        crops = 1 + rows * cols
        place = coordinates(rows, cols, 6)
        (tokens,), _ = model.model.pack_image_features([place], size[None], image_newline=newline, **extra)
        crop, y, xx = (tokens + 0.5).floor().long().unbind(-1)
        body = tokens[:, 0] > 0
        crop = torch.where(body, 1 + (y // 6) * cols + xx // 6, crop)
        values = x[start : start + crops][crop.clamp(min=0), (y % 6) * 6 + xx % 6]
        values[(tokens == -1).all(-1)] = 0
        out.append(values.squeeze(-1) if values.shape[-1] == 1 else values)
        start += crops
    return out


def grid_of(size, model):
    from transformers.image_processing_utils import select_best_resolution

    height, width = select_best_resolution(size.tolist(), model.config.image_grid_pinpoints)
    side = model.config.vision_config.image_size
    return height // side, width // side


def coordinates(rows, cols, side):
    """[1 + rows * cols, side * side, 3]: 0 and the place in the thumbnail; 1 and the place in the whole mosaic."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    crops = [torch.stack([torch.zeros_like(y), y, x], -1)]
    crops += [
        torch.stack([torch.ones_like(y), y + side * r, x + side * c], -1) for r in range(rows) for c in range(cols)
    ]
    return torch.stack(crops).flatten(1, 2).float()


def same(got, want):
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_image(monkeypatch, family, seed, attention):
    inputs = batch(family, [[seed]])
    want = expected(monkeypatch, family, model_of(family, "eager"), inputs)
    same(tapped(model_of(family, attention), inputs), want)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch(monkeypatch, family):
    inputs = batch(family, [[1, 0], [], [2]])
    want = expected(monkeypatch, family, model_of(family, "eager"), inputs)
    same(tapped(model_of(family), inputs), want)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_s_signals_do_not_depend_on_its_neighbours(family):
    model = model_of(family)
    together = tapped(model, batch(family, [[1, 0], [2]]))
    alone = [tapped(model, batch(family, [[seed]]))[0] for seed in (1, 0, 2)]
    same(together, [{k: v for k, v in one.items() if k != "text"} for one in alone])


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_a_picture_adds_up(family):
    """Received attention hands out 1 per crop, less what the CLS token and hidden patches get."""
    (seen,) = tapped(model_of(family), batch(family, [[0]]))
    total = seen["received_attention"].sum(-1)
    if family in ("llava_siglip", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        torch.testing.assert_close(total, torch.ones(DEPTH))
    elif family in ("llava", "internvl"):
        assert (total < 1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_the_row_s_own(family):
    inputs = batch(family, [[0], [1, 2]])
    seen = tapped(model_of(family), inputs)
    embed = model_of(family).get_input_embeddings()
    for i, row in enumerate([0, 1, 1]):
        keep = (inputs["input_ids"][row] != 2) & inputs["attention_mask"][row].bool()
        assert torch.equal(seen[i]["text"], embed(inputs["input_ids"][row][keep]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_without_cls_is_noted(family):
    model = model_of(family)
    with vtc.wrapped(model, "vtc-cls", keep=4):
        model(**batch(family, [[0]]))
        notes = vtc.report(model).notes
    assert (notes == []) == (model.config.vision_config.model_type in HAS_CLS)
    assert all("no CLS token; received attention stands in" in note for note in notes)


class Logits(vtc.Method):
    """Keeps the logits of all blocks that it is shown."""

    needs: ClassVar[tuple[str, ...]] = ("cls_logits",)
    seen: ClassVar[list[torch.Tensor]] = []

    def tower_layers(self, depth, feature_layer):
        return tuple(range(depth))

    def select(self, tokens):
        self.seen.append(tokens.signal("cls_logits").clone())
        return vtc.Selection.identity(tokens.total)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_the_cls_token(monkeypatch, family, attention):
    """Of every block, the last included, whichever the features come from; no row where there is no CLS token."""
    model, inputs = model_of(family, "eager"), batch(family, [[1, 0], [], [2]])
    tower = adapter_for(model).tower(model)
    attentions = tower_for(tower).attentions(tower)
    source = sys.modules[type(attentions[0]).__module__]
    eager, made = source.eager_attention_forward, [[] for _ in attentions]

    def spy(module, query, key, *args, **kwargs):
        if module in attentions:
            products = torch.einsum("bhd,bhtd->bht", query[:, :, 0], key) * kwargs["scaling"]
            made[attentions.index(module)].append(products.mean(dim=1)[:, 1:])
        return eager(module, query, key, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(source, "eager_attention_forward", spy)
        model.model.get_image_features(**vision_inputs(inputs), return_dict=True)
    Logits.seen.clear()
    with vtc.wrapped(model_of(family, attention), Logits()) as wrapped:
        wrapped(**inputs)
        notes = vtc.report(wrapped).notes
    if model.config.vision_config.model_type not in HAS_CLS:
        assert [len(one) for one in Logits.seen] == [0, 0, 0]
        (note,) = notes
        assert note.endswith("has no CLS token, and so there are no CLS logits.")
        return
    assert notes == []
    for layer, ((products,), *_) in enumerate(zip(made, strict=True)):
        if family == "internvl":
            want = [x.flatten() for x in shuffled(model, inputs, products[..., None], mean=True)]
        elif "image_sizes" in inputs:
            want = mosaicked(model, inputs, products)
        else:
            want = list(products)
        for one, own in zip(Logits.seen, want, strict=True):
            torch.testing.assert_close(one[layer], own, atol=1e-5, rtol=1e-4)


def test_internvl_reads_queries_and_keys_after_their_norms(monkeypatch):
    config = FAMILIES["internvl"].config()
    config.vision_config.use_qk_norm = True
    torch.manual_seed(0)
    model = type(model_of("internvl"))._from_config(config, attn_implementation="eager").eval()
    for attention in tower_for(model.model.vision_tower).attentions(model.model.vision_tower):
        for part in (attention.q_norm, attention.k_norm):
            torch.nn.init.uniform_(part.weight, 0.5, 2.0)
    inputs = batch("internvl", [[1]])
    same(tapped(model, inputs), expected(monkeypatch, "internvl", model, inputs))


class Features(vtc.Method):
    """Keeps what the tower makes of the tokens."""

    needs: ClassVar[tuple[str, ...]] = ("tower_features",)
    seen: ClassVar[list[torch.Tensor]] = []

    def select(self, tokens):
        self.seen.append(tokens.signal("tower_features").clone())
        return vtc.Selection.identity(tokens.total)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_the_tower(family):
    """What the block puts out that the projector's input comes from, as a hook on it sees it."""
    model, inputs = model_of(family), batch(family, [[1, 0], [], [2]])
    tower = adapter_for(model).tower(model)
    heard: list[Any] = []
    block = tower_for(tower).blocks(tower)[FEATURE_LAYER[family]]
    hook = block.register_forward_hook(lambda module, args, output: heard.append(output))
    model.model.get_image_features(**vision_inputs(inputs), return_dict=True)
    hook.remove()
    states = heard[0][0] if isinstance(heard[0], tuple) else heard[0]
    if family.startswith("qwen"):
        vision, grids = model.config.vision_config, inputs["image_grid_thw"]
        rows = states.view(-1, 4, states.shape[-1]).mean(1)
        if hasattr(vision, "window_size"):
            merge, size = vision.spatial_merge_size, vision.window_size
            rows = rows[get_vision_window_index(grids, merge, size, vision.patch_size)[0].argsort()]
        want = list(rows.split((grids.prod(dim=1) // 4).tolist()))
    else:
        patches = states[:, int(model.config.vision_config.model_type in HAS_CLS) :]
        if family == "internvl":
            want = shuffled(model, inputs, patches, mean=True)
        elif "image_sizes" in inputs:
            want = mosaicked(model, inputs, patches)
        else:
            want = list(patches)
    Features.seen.clear()
    with vtc.wrapped(model, Features()):
        model(**inputs)
    assert len(Features.seen) == len(want) == 3
    for got, right in zip(Features.seen, want, strict=True):
        torch.testing.assert_close(got, right)
