"""Adapter: where things are in one family of vision-language models. A family is a page of facts, no algorithms.

What is inside its vision tower is not the family's: see `tower.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vtc.layout import Tile, VisualSpan
from vtc.models.tower import tower_for

#: What transformers calls the pixels and patch grids of each modality, in the order in which a model runs its tower.
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}
#: What it calls the seconds per time step of each video: Qwen's; those that also hear.
SECONDS = ("second_per_grid_ts", "video_second_per_grid")

#: The token ids that announce frame number 1, 2, ... of a video.
FrameMarks = Callable[[int], list[int]]


@dataclass
class TowerCall:
    """One run of the vision tower: what the engine's hooks saw of it, carried along with its output.

    Attributes:
        grid_thw: LongTensor [images, 3] of patches in main memory, for towers that take it (Qwen-VL).
        crops: how many pictures (crops, tiles) the tower saw.
        first: [crops, D], the projector's first token of each crop, for families whose prompts do not tell how many
            crops an image has.
        crop_tokens: how many of the run's tokens are one crop's, where a signal is measured once per crop.
        pictures: which image each image of the run is, where some are the same (`vtc.encode(...).take([0, 0, 1])`).
        signals: (signal name, layer) -> [tokens, ...], tokens of all crops one after another, as the projector
            leaves them (after pixel shuffle or patch merging), without CLS; [crops, ...] of what is once per crop.
    """

    grid_thw: Tensor | None = None
    crops: int = 0
    first: Tensor | None = None
    crop_tokens: int = 0
    pictures: tuple[int, ...] | None = None
    signals: dict[tuple[str, int], Tensor] = field(default_factory=dict)


class Known(NamedTuple):
    """What is known of one image or video besides its tokens: (t, h, w) grid of patches, number of crops, modality;
    which of its tokens are `Adapter.separator`, BoolTensor [N] in main memory; of a video that is written as one
    picture after another (`Adapter.frame_numbers`), how many frames these are of, None elsewhere; and how many of its
    tokens stand together in the prompt, one unbroken run after another."""

    thw: tuple[int, int, int] | None = None
    crops: int | None = None
    modality: str = "image"
    separators: Tensor | None = None
    frames: int | None = None
    runs: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class ImageLayout:
    """How the visual tokens of one image or video are arranged; a video's crops are its frames.

    Attributes:
        grid: (t, h, w) of the finest tile.
        tiles: blocks of tokens.
        patch: LongTensor [N], index into the tower's tokens of this image's crops, one crop after another; -1 for
            separators. Where the family interpolates (LLaVA-OneVision), the nearest tower token.
        crop: LongTensor [N], crop of each token, -1 for separators.
        crops: number of crops of this image.
        tower_tokens: number of tower tokens of all its crops, which `patch` points into.
    """

    grid: tuple[int, int, int]
    tiles: tuple[Tile, ...]
    patch: Tensor
    crop: Tensor
    tower_tokens: int
    crops: int = 1


@dataclass(frozen=True)
class Companions:
    """Which of the language model's keyword arguments hold rows that travel with its visual tokens.

    Attributes:
        mask: BoolTensor [B, L], or [B, L, 1], True at the visual tokens.
        rows: tensors [visual tokens, D], added to the visual tokens' hidden states: a list, entry i of decoder layer i,
            or a dictionary by layer.
        before: whether they are added before their layer, to places that are empty until then, so that the first of
            them is what a visual token is; else behind it, to what the token has become.
    """

    mask: str
    rows: str
    before: bool = False


class Blocks(NamedTuple):
    """Tokens that see each other, also those that follow: pictures, or a prefix.

    Attributes:
        number: LongTensor [B, L] in main memory, which block each token of a call is in; -1 = none.
        kinds: of the decoder layers in which this holds ("full_attention", "sliding_attention").
        whole: whether a token sees all of its block where a window ends within it.
        gaps: whether words may lie within a block, which do not see what follows: then there is one to a row, and no
            window.
    """

    number: Tensor
    kinds: frozenset[str] = frozenset({"full_attention", "sliding_attention"})
    whole: bool = False
    gaps: bool = False


class Held(NamedTuple):
    """A picture in a memory beside the row: `tokens` columns of that of batch row `row`, from `first` on."""

    row: int
    first: int
    tokens: int


class Memory(NamedTuple):
    """The memory that a model makes of a call's pictures, before anything is left out; all of main memory.

    Attributes:
        rows, length: its shape [B, M]. pictures: in reading order; columns of none of them are padding.
        each: how many columns a picture takes up, padding included.
    """

    rows: int
    length: int
    pictures: tuple[Held, ...]
    each: int

    @property
    def visual(self) -> Tensor:
        """BoolTensor [B, M], True at the tokens of pictures."""
        found = torch.zeros(self.rows, self.length, dtype=torch.bool)
        for row, first, tokens in self.pictures:
            found[row, first : first + tokens] = True
        return found

    def tokens(self, row: int) -> int:
        """Visual tokens of a row."""
        return sum(one.tokens for one in self.pictures if one.row == row)

    def whole(self, row: int) -> int:
        """Columns that a row has in the plain model, asked alone: those of its own pictures."""
        return self.each * sum(one.row == row for one in self.pictures)


class Adapter:
    """Facts about a family; subclasses fill in what differs. All paths are those of transformers."""

    model_types: ClassVar[tuple[str, ...]] = ()
    #: what the class of a whole model of the family is called, or its name ends with
    whole: ClassVar[str] = "ForConditionalGeneration"
    #: whether the language model's rotary embedding takes (t, h, w) position rows
    mrope: ClassVar[bool] = False
    #: whether those are told from `mm_token_type_ids`; else from the ids alone
    typed: ClassVar[bool] = True
    #: whether neighbouring pieces of features (InternVL's tiles) make up one image
    joins_pieces: ClassVar[bool] = False
    #: whether the frames of a video are packed into the tower one by one, each as if it were a picture
    frames_alone: ClassVar[bool] = False
    #: whether get_image_features and its like make an output of their own, with the tower's hidden states in it
    rebuilds: ClassVar[bool] = False
    #: whether the crops of pictures are all that one run of its tower sees
    counts_crops: ClassVar[bool] = True
    #: whether its code makes its tower's output anew of that output's own fields, which has no room for more
    remakes: ClassVar[bool] = False
    #: whether `vtc.encode` can take features apart, picture by picture, and hand them in again
    apart: ClassVar[bool] = True
    #: where its visual tokens live: "row", among the text; "memory", beside it (`models/cross.py`)
    placement: ClassVar[str] = "row"
    #: of which modalities tokens are mixed from neighbouring patches behind the tower, by pooling or interpolation
    mixes: ClassVar[tuple[str, ...]] = ()
    #: whether `cls_tokens` is there: the projector makes something of a CLS token on its own
    projects_cls: ClassVar[bool] = False
    #: whether visual tokens are learned queries, which lie nowhere in the picture
    queries: ClassVar[bool] = False
    #: what must be shortened along with the visual tokens (Qwen3-VL's DeepStack)
    companions: ClassVar[Companions | None] = None
    #: arguments of the language model, or of its layers, that hold values per token, [B, L, ...], and are shortened
    #: with the row
    aligned: ClassVar[tuple[str, ...]] = ("mm_token_type_ids",)
    #: whether the model makes the masks of its language model itself, as `blocks` says
    masks: ClassVar[bool] = False

    def of(self, model: nn.Module) -> Adapter:
        """The adapter of this model of the family, where not all are alike: this one, or another."""
        return self

    def check(self, model: nn.Module) -> None:
        """Raise ValueError with one sentence if this checkpoint's configuration is outside what the adapter knows."""

    def base(self, model: nn.Module) -> Any:
        """The model without its head: what turns ids and pixels into hidden states."""
        return model.model

    def tower(self, model: nn.Module) -> Any:
        """The vision tower's module; what is known of it is `vtc.models.tower_for(...)` of that."""
        return self.base(model).vision_tower

    def language_model(self, model: nn.Module) -> Any:
        """The language model without its head: what has the decoder layers."""
        return self.base(model).language_model

    def blocks(self, model: nn.Module, host: Mapping[str, Tensor], seen: int, length: int) -> Blocks | None:
        """Which tokens of a call see each other wherever they stand; None = each sees what came before it.

        Args:
            host: what came with the call, in main memory. seen: tokens before it. length: L, its own.
        """
        return None

    def tower_grids(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """LongTensor [images, 3] of patches (t, h, w), of what the tower is called with; None = it is given none."""
        return kwargs.get("grid_thw", args[1] if len(args) > 1 else None)

    def joins(self, modality: str) -> bool:
        """Whether neighbouring pieces of features of a modality make up one image or video."""
        return self.joins_pieces

    def picture_grids(self, model: nn.Module, grids: list[list[int]], sizes: list[int], modality: str) -> list[Any]:
        """The grid (t, h, w) of patches of each image or video, of those that the tower was given.

        Args:
            sizes: how many visual tokens each image or video has.
        """
        return grids

    def feature_layer(self, model: nn.Module) -> int:
        """The layer (0-based) whose output the projector reads; the tower says, where the configuration does not."""
        tower, chosen = self.tower(model), getattr(model.config, "vision_feature_layer", None)
        facts = tower_for(tower)
        if chosen is None:
            return facts.feature_layer(tower)
        depth = len(facts.blocks(tower))
        last = max(c % (depth + 1) for c in chosen) if isinstance(chosen, list | tuple) else chosen % (depth + 1)
        return max(last - 1, 0)  # hidden_states[i] is the output of layer i - 1

    def last_block(self, model: nn.Module) -> int:
        """The last block (0-based) of the tower that anything is made of: that of `feature_layer` where the
        configuration says which one the projector reads, else the last of all."""
        if getattr(model.config, "vision_feature_layer", None) is not None:
            return self.feature_layer(model)
        tower = self.tower(model)
        return len(tower_for(tower).blocks(tower)) - 1

    def one_patch_each(self, model: nn.Module, span: VisualSpan) -> bool:
        """Whether each token of the span (separators apart) is made of one of the tower's tokens and nothing else."""
        return False

    def features(self, model: nn.Module, output: Any) -> Any:
        """[N, D] of each image (or crop, or tile) or video, of what the tower or `get_image_features` has put out; None
        = it does not say."""
        return getattr(output, "pooler_output", None)

    def entering(self, model: nn.Module, features: Any, given: Mapping[str, Any], modality: str) -> Any:
        """What stands in the row of the features [N, D] of each image or video, None = not known: all, unless the
        processor leaves some out, as `given` says, the arguments of the model's call."""
        return features

    def token_id(self, model: nn.Module, modality: str) -> int:
        """The placeholder of one visual token of an "image" or "video" in `input_ids`."""
        config: Any = model.config
        if modality == "image":
            return config.image_token_id
        if not self.reads_videos(model):
            raise ValueError(f"{config.model_type} does not read videos: give it single frames as images.")
        return config.video_token_id

    def reads_videos(self, model: nn.Module) -> bool:
        """Whether it has a placeholder for a video's tokens; or writes videos in another way that vtc knows."""
        return getattr(model.config, "video_token_id", None) is not None

    def axes(self, model: nn.Module) -> int:
        """How many position rows the rotary embedding takes; 0 = one position per token."""
        return 3 if self.mrope else 0

    def position_rows(self, text: Tensor, positions: Tensor) -> Tensor:
        """What a language model with several position rows is handed: consecutive numbers `text` [B, L], which its mask
        is made from, before `positions` [A, B, L]."""
        return torch.cat([text[None], positions])

    def prompt_positions(
        self, model: nn.Module, ids: Tensor, types: Tensor, mask: Tensor, grids: dict[str, Tensor], seconds: Any
    ) -> Tensor:
        """[3, B, L]: the (t, h, w) positions that the model gives a prompt, of families whose tower takes packed rows.

        Args:
            ids, types: LongTensors [B, L], `input_ids` and `mm_token_type_ids`. mask: BoolTensor [B, L].
            grids: by modality, LongTensor [pictures, 3] of patches, row by row. seconds: `second_per_grid_ts` or None.
        """
        raise TypeError(f"{type(self).__name__} does not define prompt_positions().")

    def frame_numbers(self, ids: Tensor, visual: Tensor) -> Tensor | None:
        """Of families that hand out a video's features as those of one picture after another: which of them are one
        video. LongTensor [B, L], k at tokens of a video's frame number k (from 1), -k at those of its parts, 0
        elsewhere; None = what is handed out together is a video.

        Args:
            ids: LongTensor [B, L]. visual: BoolTensor [B, L], the tokens of videos. Both in main memory.
        """
        return None

    def frame_marks(self, processor: Any) -> FrameMarks | None:
        """Of families that write a video as numbered images: the ids of the words before its frame 1, 2, ..."""
        return None

    def tokens_from_patches(self, model: nn.Module, values: Tensor, mean: bool) -> Tensor:
        """Values per token the tower hands over [B, T, ...] (CLS left out) -> per token the projector emits, [N, ...].

        Crop by crop. Where several make one they are averaged (`mean`) or added up.
        """
        return values.flatten(0, 1)

    def merged(self, model: nn.Module, values: Tensor, grid_thw: Tensor | None, mean: bool) -> Tensor:
        """The same, of families for which it takes the pictures' grids of patches, LongTensor [images, 3]."""
        return self.tokens_from_patches(model, values, mean)

    def fold(self, model: nn.Module) -> int:
        """How many patches of a side of its tower, of a fixed grid, become one token."""
        return 1

    def cls_tokens(self, model: nn.Module, output: Any) -> Tensor:
        """[crops, D]: the CLS token of each crop in the tower's `output`, from the layer of the features, projected."""
        raise TypeError(f"{type(self).__name__} says projects_cls, but does not define cls_tokens().")

    def crop_projector(self, model: nn.Module) -> nn.Module | None:
        """The projector, [crops, P, D] out, of families that need `crop_counts`."""
        return None

    def separator(self, model: nn.Module) -> Tensor | None:
        """[D], the embedding that a family puts between visual tokens where only the tokens tell how many there are.

        `layout` finds which tokens it is in `known.separators`: this is looked up for all images at once, as the device
        has to be waited for.
        """
        return None

    def crop_counts(self, model: nn.Module, features: Tensor, known: Known) -> list[int]:
        """Numbers of crops that an image with tokens `features` [N, D] may have, the likeliest first.

        Only families that cannot tell from the tokens alone (any-resolution pictures) list any.
        """
        return []

    def memory(self, model: nn.Module, given: Mapping[str, Any]) -> Memory | None:
        """Where the pictures of a call with the arguments `given` will lie in a memory beside the row; None = not
        known, or they stand in the row."""
        return None

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        """Arrangement of the visual tokens `features` [N, D] of one image or, if `known.modality` says so, video."""
        raise TypeError(f"{type(self).__name__} does not define layout(); every family needs it.")


def square_layout(tokens: int, role: str = "image") -> ImageLayout:
    """One crop whose tokens form a square."""
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"{tokens} visual tokens do not form a square grid.")
    index = torch.arange(tokens)
    return ImageLayout((1, side, side), (Tile(0, 1, side, side, role=role),), index, torch.zeros_like(index), tokens)


def frames_layout(frames: int, side: int, places: Tensor, separators: int = 0) -> ImageLayout:
    """A video of square frames, pooled: row (and column) i of a frame's tokens shows row `places[i]` of `side`.

    `separators` tokens follow the last frame.
    """
    rows = len(places)
    patch = places[:, None] * side + places[None, :]  # [rows, rows]
    frame = torch.arange(frames)[:, None, None].expand(-1, rows, rows)
    ends = torch.full((separators,), -1)
    return ImageLayout(
        (frames, rows, rows),
        (Tile(0, frames, rows, rows, role="frames"),),
        torch.cat([(frame * side * side + patch).flatten(), ends]),
        torch.cat([frame.flatten(), ends]),
        frames * side * side,
        frames,
    )
