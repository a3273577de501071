"""`downsample`: a picture or a video so small that its processor makes at most so many visual tokens of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from vtc.budget import check_keep, fitted_frames, token_count
from vtc.media.pictures import MAX_ASPECT_RATIO, check_proportions
from vtc.media.prompts import as_named, prepare, seen, visual_ids
from vtc.media.video import Clip

_FILTER = Image.Resampling.BICUBIC  # Pillow widens it when it makes smaller, so that nothing aliases

Media = TypeVar("Media", bound=Image.Image | Clip)
_PROPORTION = 0.05  # a few pixels have proportions of their own, for which crops are laid out differently


@dataclass(frozen=True, eq=False)
class Resized(Generic[Media]):
    """What `downsample` made.

    Attributes:
        media: the picture, or the clip, to hand to the processor, together with
        options: keyword arguments of the processor: what else it needs so that it does not make more tokens of it
            (`processor(text=..., images=[small.media], **small.options)`; `vtc.prepare` takes them, too).
        tokens: visual tokens that come out. whole: that the media as it was has. wanted: that `keep` asked for.
    """

    media: Media
    tokens: int
    whole: int
    wanted: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def full_cost(self) -> bool:
        """Whether the processor cannot make so few tokens: then `media` holds what `wanted` tokens can show, made
        larger again by the processor, and costs `tokens`."""
        return self.tokens > self.wanted and not self.least

    @property
    def least(self) -> bool:
        """Whether `wanted` is below the number of a video's time steps, each of which keeps a token: it is cheap all
        the same, as nothing is made larger again."""
        return self.tokens > self.wanted and isinstance(self.media, Clip) and "videos_kwargs" in self.options

    @property
    def note(self) -> str:
        """What was done, in one sentence."""
        what = "a video" if isinstance(self.media, Clip) else "a picture"
        if self.full_cost:
            return (
                f"downsample: {what} becomes {self.tokens} tokens under this processor, more than the {self.wanted} "
                f"asked for: it was made to show what {self.wanted} can, at the cost of {self.tokens}."
            )
        width, height = _size(self.media)
        if self.least:
            return (
                f"downsample: {what} of {width} x {height} pixels, {self.tokens} of {self.whole} tokens: one token per "
                f"time step is the least, more than the {self.wanted} asked for."
            )
        return (
            f"downsample: {what} of {width} x {height} pixels, {self.tokens} of {self.whole} tokens, for a budget of "
            f"{self.wanted}."
        )


def downsample(media: Media, processor: Any, keep: int | float) -> Resized[Media]:
    """The largest size of a picture or a video of which its processor makes at most `keep` visual tokens.

    The baseline of VTC-Bench (arXiv 2510.07143): less of everything instead of a choice, and cheaper in the vision
    tower, too. The number of tokens is what the processor itself makes of the result, and depends on its kind:

    * grids that follow the picture (Qwen's): the grid of the whole picture, made smaller in proportion. The processor's
      least number of pixels is lifted by `options`;
    * tiles and any-resolution crops: fewer of them, by a smaller picture (LLaVA-NeXT, LLaVA-OneVision, Mllama) or by
      `options` (InternVL, whose tiles follow the shape of the picture alone);
    * fixed grids (LLaVA-1.5), and where the least that the above can do is still more than `keep`: a picture of as many
      pixels as `keep` tokens stand for, which the processor makes larger again. That costs what it did, and
      `full_cost` says so.

    Of a video all frames stay, with fewer pixels each; fewer frames are `uniform-frames`.

    Args:
        media: a PIL picture, or a Clip of `vtc.load_clip`.
        processor: as transformers loads it.
        keep: float in (0, 1] = fraction of the tokens that the media has as it is, int = count; at least one stays.
    Raises:
        ValueError, TypeError: `keep` means nothing, the processor takes no such media, or it is more than 200 times
            longer than wide.
    """
    return _downsample(media, processor, check_keep(keep), 1)


def downsample_all(
    media: Sequence[Image.Image | Clip], processor: Any, keep: int | float
) -> tuple[list[Resized], dict[str, Any]]:
    """`downsample` of each picture and clip of one prompt, and the options that suit all of them.

    Options are about a whole call of the processor: where two pictures want different numbers of tiles, the smaller
    one holds for both. Numbers of tokens are those of that call, in which LLaVA-OneVision, for one, crops no picture
    when there are several. What fits as it is keeps its grid: below the processor's least number of pixels, which the
    others' options lift, it comes back with the pixels that the processor would have given it.
    """
    keep = check_keep(keep)
    copies = min(2, sum(isinstance(one, Image.Image) for one in media))  # two stand for any number of pictures
    found = [_downsample(one, processor, keep, 1 if isinstance(one, Clip) else copies) for one in media]
    options: dict[str, Any] = {}
    for name, value in [pair for one in found for pair in one.options.items()]:
        options[name] = min(value, options.get(name, value)) if isinstance(value, int) else value
    return [_under(options, one, processor, 1 if isinstance(one.media, Clip) else copies) for one in found], options


def _downsample(media: Media, processor: Any, keep: int | float, copies: int) -> Resized[Media]:
    """`downsample` of one of so many pictures."""
    check_proportions(_size(media), "the video" if isinstance(media, Clip) else "the picture")
    made, whole = _tokens(processor, media, {}, copies)
    wanted = token_count(keep, whole)
    if wanted >= whole:
        return Resized(media, whole, whole, wanted)
    grid, options = _grid(made, media), {}
    small: Any = media
    if grid is not None:
        small, options = _packed(processor, media, grid, wanted)
    elif isinstance(media, Image.Image) and (copies == 1 or _tokens(processor, media)[1] == whole):
        small, options = _fewer_tiles(processor, media, whole, wanted)  # others are cropped only when alone
    made, tokens = _tokens(processor, small, options, copies)
    if tokens > wanted and grid is None:
        small = _less_in_it(processor, small, made, wanted / tokens, copies)
        tokens = _tokens(processor, small, options, copies)[1]
    return Resized(small, tokens, whole, wanted, options)


def _under(options: dict[str, Any], one: Resized, processor: Any, copies: int) -> Resized:
    """What became of one picture or clip, in a call with the `options` of all of them."""
    if one.options == options:
        return one
    media = one.media
    made, tokens = _tokens(processor, media, options, copies)
    own = _grid(_tokens(processor, media, one.options, copies)[0], media)
    if own is not None and own != _grid(made, media):  # the lifted minimum would make it smaller
        side = _own(processor, media).patch_size
        media = _resized(media, own[2] * side, own[1] * side)
        tokens = _tokens(processor, media, options, copies)[1]
    return replace(one, media=media, tokens=tokens, options=options)


def _tokens(
    processor: Any, media: Image.Image | Clip, options: dict[str, Any] | None = None, copies: int = 1
) -> tuple[Any, int]:
    """What a processor makes of so many copies of a picture or video under a question, and how many visual tokens each
    of them has."""
    given: dict[str, Any] = {"clips" if isinstance(media, Clip) else "pictures": [media] * copies}
    made = prepare(processor, "?", **given, **(options or {}))
    if "aspect_ratio_mask" in made:  # they stand beside the row
        return made, _of_tile(processor) * int(_filled(made).sum()) // copies
    return made, int(np.isin(np.asarray(made["input_ids"]), visual_ids(processor)).sum()) // copies


def _filled(made: Any) -> np.ndarray:
    """[1, pictures, tiles], which of Mllama's tiles hold something; a picture that is not there has no shape."""
    return np.asarray(made["aspect_ratio_mask"]) * (np.asarray(made["aspect_ratio_ids"]) > 0)[..., None]


def _of_tile(processor: Any) -> int:
    """Tokens of one of Mllama's tiles, its CLS token included."""
    patch = getattr(processor, "patch_size", None)
    if patch is None:
        raise ValueError(
            f"{type(processor).__name__} does not say how large the patches of a tile are: load it with vtc.load, or "
            "set processor.patch_size = model.config.vision_config.patch_size."
        )
    return (_tile(processor) // patch) ** 2 + 1


def _tile(processor: Any) -> int:
    """Pixels along a side of one of Mllama's tiles."""
    return _side(processor.image_processor.size, "height")


def _side(size: Any, name: str) -> int:
    return size[name] if isinstance(size, dict) else getattr(size, name)


def _grid(made: Any, media: Image.Image | Clip) -> list[int] | None:
    """The (t, h, w) in patches of a packed picture or video; None where grids do not follow the picture."""
    grids = made.get("video_grid_thw" if isinstance(media, Clip) else "image_grid_thw")
    return None if grids is None else grids[0].tolist()


def _own(processor: Any, media: Image.Image | Clip) -> Any:
    """The part of a processor that is about such media."""
    return processor.video_processor if isinstance(media, Clip) else processor.image_processor


def _packed(
    processor: Any, media: Image.Image | Clip, grid: Sequence[int], wanted: int
) -> tuple[Image.Image | Clip, dict[str, Any]]:
    """Media whose patches are exactly the cells of a smaller grid; `grid` is (t, h, w) in patches."""
    own, kind = _own(processor, media), "videos" if isinstance(media, Clip) else "images"
    merge, cell = own.merge_size, own.merge_size * own.patch_size
    _, height, width = fitted_frames((grid[0], grid[1] // merge, grid[2] // merge), wanted)
    height, width = min(height, MAX_ASPECT_RATIO * width), min(width, MAX_ASPECT_RATIO * height)  # as they take them
    size = own.size if isinstance(own.size, dict) else vars(own.size)
    smaller = _resized(media, width * cell, height * cell)
    if size.get("longest_edge") is None:  # Kimi's leaves small pictures as they are
        return smaller, {}
    # its least number of pixels would make the picture larger again
    lifted = {"shortest_edge": cell * cell, "longest_edge": size["longest_edge"]}
    return smaller, {f"{kind}_kwargs": {"size": lifted}}


def _fewer_tiles(processor: Any, picture: Image.Image, whole: int, wanted: int) -> tuple[Image.Image, dict[str, Any]]:
    """A picture, or options, of the most tokens up to `wanted`; of the fewest there are, where all are more."""
    width, height = picture.size
    tiled = hasattr(processor.image_processor, "max_image_tiles")
    if not tiled and not hasattr(processor, "_get_num_multimodal_tokens"):
        return picture, {}
    most = getattr(processor.image_processor, "max_patches", None)
    if most is not None:  # InternVL's tiles follow the shape of the picture, not its size
        tried = [{"max_patches": n} for n in range(most, 0, -1)]
        counts = [_count(processor, [picture.size], **options)[0] for options in tried]
    else:
        longest = max(width, height)
        sizes = [(_scaled(width, n / longest), _scaled(height, n / longest)) for n in range(longest, 0, -1)]
        sizes = [size for size in sizes if abs(size[0] * height / (size[1] * width) - 1) < _PROPORTION]
        counts = _count(processor, sizes)
    off = _count(processor, [picture.size])[0] - whole  # some count the tokens around a picture, too
    best = max(range(len(counts)), key=lambda i: (counts[i] - off <= wanted, -abs(counts[i] - off - wanted), -i))
    return (picture, tried[best]) if most is not None else (_resized(picture, *sizes[best]), {})


def _count(processor: Any, sizes: Sequence[tuple[int, int]], **options: Any) -> list[int]:
    """Tokens of pictures of such sizes (width, height), as the processor foretells them; Mllama's, which does not, is
    asked how it would cut them into tiles."""
    if hasattr(processor.image_processor, "max_image_tiles"):
        from transformers.models.mllama.image_processing_mllama import get_optimal_tiled_canvas

        most, tile = processor.image_processor.max_image_tiles, _tile(processor)
        areas = [math.prod(get_optimal_tiled_canvas(height, width, most, tile)) for width, height in sizes]
        return [int(area) // tile**2 * _of_tile(processor) for area in areas]
    return processor._get_num_multimodal_tokens([(height, width) for width, height in sizes], **options)[
        "num_image_tokens"
    ]


def _less_in_it(processor: Any, media: Image.Image | Clip, made: Any, share: float, copies: int) -> Image.Image | Clip:
    """Media with so few pixels that a `share` of the tokens could show all of them; `made` of so many copies.

    Example: LLaVA-1.5 shows 336 x 336 pixels by 24 x 24 tokens; for 64 tokens, a share of 1/9, what it sees of the
    picture becomes 112 x 112 pixels.
    """
    clip = isinstance(media, Clip)
    made = as_named(made)
    pixels = made["pixel_values_videos" if clip and "pixel_values_videos" in made else "pixel_values"]
    tiles = int(_filled(made).sum()) if "aspect_ratio_mask" in made else math.prod(pixels.shape[:-3])
    pictures = tiles / (len(media) if clip else copies)  # tiles or crops, of each frame
    width, height = _size(media) if clip else seen(media, processor).size
    scale = math.sqrt(share * pictures * pixels.shape[-1] * pixels.shape[-2] / (width * height))
    if scale >= 1:
        return media
    width, height = _size(media)
    return _resized(media, max(1, math.floor(width * scale + 1e-6)), max(1, math.floor(height * scale + 1e-6)))


def _size(media: Image.Image | Clip) -> tuple[int, int]:
    return media.size if isinstance(media, Image.Image) else (media.frames.shape[2], media.frames.shape[1])


def _scaled(side: int, scale: float) -> int:
    return max(1, round(side * scale))


def _resized(media: Any, width: int, height: int) -> Any:
    if _size(media) == (width, height):
        return media
    if isinstance(media, Image.Image):
        return media.resize((width, height), _FILTER)
    frames = [np.asarray(Image.fromarray(frame).resize((width, height), _FILTER)) for frame in media.frames]
    return replace(media, frames=np.stack(frames))
