"""Where tokens come from: adapters' layouts against transformers' own packing, run on coordinates."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from vtc.models.family import Known
from vtc.models.internvl import InternVLAdapter
from vtc.models.llava import LlavaAdapter
from vtc.models.llava_next import LlavaNextAdapter, LlavaOnevisionAdapter
from vtc.models.qwen_vl import QwenVLAdapter

pytestmark = pytest.mark.core

NEWLINE = torch.full((3,), -7.0)
CHECKPOINTS = {  # pinpoints, crop size in pixels, patches along a crop
    "llava_next": ([[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]], 336, 24),
    "llava_onevision": ([[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)], 384, 27),
}


def checkpoint(family: str) -> tuple[Any, Any, Any]:
    """(adapter, stand-in model with the released checkpoint's configuration, transformers' packing function)."""
    pinpoints, pixels, side = CHECKPOINTS[family]
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=pixels, patch_size=pixels // side),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_9",
    )
    model: Any = SimpleNamespace(config=config, model=SimpleNamespace(image_newline=NEWLINE, config=config))
    if family == "llava_next":
        return (
            LlavaNextAdapter(),
            model,
            lambda f, s: LlavaNextModel.pack_image_features(model, f, s, "default", NEWLINE),
        )
    return LlavaOnevisionAdapter(), model, lambda f, s: LlavaOnevisionModel.pack_image_features(model, f, s, NEWLINE)


def mosaic_of(family: str, size: tuple[int, int]) -> tuple[int, int]:
    pinpoints, pixels, _ = CHECKPOINTS[family]
    height, width = select_best_resolution(size, pinpoints)
    return height // pixels, width // pixels


def packed_places(family: str, size: tuple[int, int]) -> torch.Tensor:
    """[N, 3]: (0, y, x) in the thumbnail, (1, y, x) in the whole mosaic, as transformers packs them."""
    _, _, pack = checkpoint(family)
    rows, cols = mosaic_of(family, size)
    side = CHECKPOINTS[family][2]
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    crops = [torch.stack([torch.zeros_like(y), y, x], -1)]
    crops += [
        torch.stack([torch.ones_like(y), y + side * r, x + side * c], -1) for r in range(rows) for c in range(cols)
    ]
    (tokens,), _ = pack([torch.stack(crops).flatten(1, 2).float()], [size])
    return tokens


def layout_places(layout: Any, side: int, cols: int) -> torch.Tensor:
    """The same of a layout's `patch`."""
    crop, patch = layout.patch // side**2, layout.patch % side**2
    y, x = patch // side, patch % side
    inside = crop > 0
    places = torch.stack(
        [
            inside.long(),
            torch.where(inside, (crop - 1) // cols * side + y, y),
            torch.where(inside, (crop - 1) % cols * side + x, x),
        ],
        -1,
    ).float()
    places[layout.patch < 0] = NEWLINE
    return places


def sizes(smallest: int, count: int) -> list[tuple[int, int]]:
    rng = random.Random(0)
    common = [(s, s) for s in (smallest, 500, 672, 1000, 1327, 2400, 3000)] + [(1080, 1920), (1920, 1080), (480, 640)]
    free = [(rng.randint(smallest, 3000), rng.randint(smallest, 3000)) for _ in range(count // 2)]
    low = [(rng.randint(smallest, 700), rng.randint(smallest, 700)) for _ in range(count - count // 2)]
    return common + free + low


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_mosaic_recovery_equals_transformers(family):
    """With the number of crops known, every token is traced to the patch that transformers put there.

    OneVision scales large mosaics down; there several cuts leave the same tokens, and the traced patch may be one
    beside the nearest.
    """
    adapter, model, _ = checkpoint(family)
    side = CHECKPOINTS[family][2]
    for size in sizes(350, 400):
        rows, cols = mosaic_of(family, size)
        want = packed_places(family, size)
        layout = adapter.layout(model, want, Known(crops=1 + rows * cols))
        assert layout.crops == 1 + rows * cols, size
        assert layout.tower_tokens == layout.crops * side * side
        got = layout_places(layout, side, cols)
        newlines = (want == NEWLINE).all(-1)
        assert torch.equal(newlines, layout.patch < 0), size
        scaled = family == "llava_onevision" and rows * cols > 9
        assert (got - want).abs().max() <= (1.501 if scaled else 0.0), size
        assert torch.equal(layout.crop, torch.where(newlines, -1, layout.patch // side**2)), size


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_pictures_smaller_than_a_crop(family):
    """Below one crop the number of crops need not be told: the smallest mosaic is the right one."""
    adapter, model, _ = checkpoint(family)
    side = CHECKPOINTS[family][2]
    for size in [(300, 300), (100, 100), (1, 1), (200, 330), (330, 200), (60, 320), (320, 60)]:
        _, cols = mosaic_of(family, size)
        want = packed_places(family, size)
        assert torch.equal(layout_places(adapter.layout(model, want, Known()), side, cols), want), size


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_grid_and_tiles_hold_every_token_once(family):
    adapter, model, _ = checkpoint(family)
    side = CHECKPOINTS[family][2]
    for size in [(600, 900), (900, 600), (1000, 1000), (400, 1900)]:
        rows, cols = mosaic_of(family, size)
        want = packed_places(family, size)
        layout = adapter.layout(model, want, Known(crops=1 + rows * cols))
        thumbnail, mosaic = layout.tiles
        assert (thumbnail.role, mosaic.role, mosaic.newline) == ("thumbnail", "mosaic", True)
        assert layout.grid == (1, mosaic.h, mosaic.w)
        inside = torch.cat([tile.indices().flatten() for tile in layout.tiles])
        assert inside.tolist() == (layout.patch >= 0).nonzero().flatten().tolist()
        assert thumbnail.length + mosaic.length == len(want)
        assert thumbnail.length == side * side


@pytest.mark.parametrize("family", CHECKPOINTS)
@pytest.mark.parametrize("size", [(2800, 20), (20, 2800)])
def test_pictures_too_thin_for_a_patch(family, size):
    """Cut to nothing, the mosaic leaves newlines or no token at all: only the thumbnail shows the picture."""
    adapter, model, _ = checkpoint(family)
    side = CHECKPOINTS[family][2]
    rows, cols = mosaic_of(family, size)
    want = packed_places(family, size)
    layout = adapter.layout(model, want, Known(crops=1 + rows * cols))
    assert torch.equal(layout_places(layout, side, cols)[: side**2], want[: side**2])
    if (want[side**2 :] == NEWLINE).all():
        assert (layout.patch[side**2 :] == -1).all()
    assert layout.tower_tokens == side**2 * (1 + rows * cols)


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_one_crop_of_several_images(family):
    """OneVision gives each of several images one crop, closed by one newline."""
    adapter, model, pack = checkpoint(family)
    side = CHECKPOINTS[family][2]
    crop = torch.arange(3.0 * side * side).view(1, side * side, 3)
    (tokens,), _ = pack([crop], [(500, 500)])
    layout = adapter.layout(model, tokens, Known())
    assert layout.patch.tolist() == [*range(side * side), -1]
    assert (layout.grid, layout.crops, layout.tower_tokens) == ((1, side, side), 1, side * side)
    assert layout.tiles[0].role == "image"


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_tokens_that_are_no_picture_are_refused(family):
    adapter, model, _ = checkpoint(family)
    want = packed_places(family, (700, 1000))
    for broken in (want[:-1], want[:100], torch.cat([want, want[-1:]])):
        with pytest.raises(ValueError, match="visual tokens"):
            adapter.layout(model, broken, Known())


def test_llava_is_one_square():
    model: Any = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(image_size=336, patch_size=14)))
    layout = LlavaAdapter().layout(model, torch.zeros(576, 2), Known())
    assert layout.grid == (1, 24, 24)
    assert layout.patch.tolist() == list(range(576))
    with pytest.raises(ValueError, match="an image has 576 visual tokens, but 575 were found together"):
        LlavaAdapter().layout(model, torch.zeros(575, 2), Known())


def test_internvl_puts_the_thumbnail_last():
    vision = SimpleNamespace(image_size=[448, 448], patch_size=[14, 14])
    model: Any = SimpleNamespace(config=SimpleNamespace(vision_config=vision, downsample_ratio=0.5))
    one = InternVLAdapter().layout(model, torch.zeros(256, 2), Known())
    assert (one.grid, one.crops, [t.role for t in one.tiles]) == ((1, 16, 16), 1, ["image"])
    three = InternVLAdapter().layout(model, torch.zeros(768, 2), Known())
    assert [t.role for t in three.tiles] == ["crop", "crop", "thumbnail"]
    assert [t.start for t in three.tiles] == [0, 256, 512]
    assert [t.box is None for t in three.tiles] == [True, True, False]
    assert three.crop.tolist() == [0] * 256 + [1] * 256 + [2] * 256
    with pytest.raises(ValueError, match="no multiple of the 256"):
        InternVLAdapter().layout(model, torch.zeros(300, 2), Known())


def test_qwen_reads_the_grid():
    model: Any = SimpleNamespace(model=SimpleNamespace(visual=SimpleNamespace(spatial_merge_size=2)))
    layout = QwenVLAdapter().layout(model, torch.zeros(15, 2), Known(thw=(1, 6, 10)))
    assert layout.grid == (1, 3, 5)
    assert layout.patch.tolist() == list(range(15))
    with pytest.raises(ValueError, match="has 4 tokens, but 15 were found"):
        QwenVLAdapter().layout(model, torch.zeros(15, 2), Known(thw=(1, 4, 4)))
    with pytest.raises(ValueError, match="image_grid_thw is missing"):
        QwenVLAdapter().layout(model, torch.zeros(15, 2), Known())
