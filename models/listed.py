"""Families that the default one carries: what each has of its own, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtc.layout import Tile
from vtc.models.default import DefaultAdapter, FramesAdapter, row_layout
from vtc.models.family import Adapter, ImageLayout, Known, square_layout
from vtc.models.pixtral import PixtralAdapter
from vtc.models.qwen_vl import Qwen3VLAdapter


class SquareAdapter(DefaultAdapter):
    """VIP-LLaVA, which concatenates several layers of its tower; DeepSeek-VL and Janus: one square crop per picture."""

    model_types = ("vipllava", "deepseek_vl", "janus")


class VideoLlavaAdapter(DefaultAdapter):
    """Pictures and videos have towers of their own; frames bring their CLS token along, so that they are no grid."""

    model_types = ("video_llava",)

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        return row_layout(len(features)) if known.modality == "video" else super().layout(model, features, known)

    def joins(self, modality: str) -> bool:
        return modality == "video"


class GlmVAdapter(FramesAdapter):
    """A video's tokens are written as a picture's."""

    model_types = ("glm4v", "glm46v", "glm4v_moe", "glm_ocr")
    mrope = True

    def token_id(self, model: nn.Module, modality: str) -> int:
        return super().token_id(model, "image")  # of both


class ErnieVLAdapter(DefaultAdapter):
    """Two frames of a video become one; experts are chosen by what kind of token each is."""

    model_types = ("ernie4_5_vl_moe",)
    mrope = True
    temporal_merge = 2
    aligned = (*DefaultAdapter.aligned, "moe_mm_token_type_ids")

    def merged(self, model: nn.Module, values: Tensor, grid_thw: Tensor | None, mean: bool) -> Tensor:
        values = super().merged(model, values, grid_thw, mean)
        grids = [] if grid_thw is None else grid_thw.tolist()
        if all(t == 1 for t, _, _ in grids):
            return values
        parts = values.split([t * h * w // self.merge(model) ** 2 for t, h, w in grids])
        pairs = [x.unflatten(0, (-1, min(t, 2), len(x) // t)) for x, (t, _, _) in zip(parts, grids, strict=True)]
        return torch.cat([(x.mean(dim=1) if mean else x.sum(dim=1)).flatten(0, 1) for x in pairs])


class PaddleOcrVLAdapter(DefaultAdapter):
    """Its configuration names a video's placeholder, of which the model makes nothing."""

    model_types = ("paddleocr_vl",)
    mrope = True

    def reads_videos(self, model: nn.Module) -> bool:
        return False


class VideoLlama3Adapter(DefaultAdapter):
    """Frames of a video are merged more than pictures are, by what the processor says, which also leaves out what has
    not changed since the frame before: what is left lies on no grid."""

    model_types = ("video_llama_3",)

    def tower_grids(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """And how many patches a side become a token: [pictures, (t, h, w, merge)]."""
        grids: Tensor = kwargs["grid_thw"]
        return torch.cat([grids, kwargs["merge_sizes"][:, None].to(grids)], dim=1)

    def picture_grids(self, model: nn.Module, grids: list[list[int]], sizes: list[int], modality: str) -> list[Any]:
        return [grid[:3] for grid in grids]

    def entering(self, model: nn.Module, features: Any, given: Mapping[str, Any], modality: str) -> Any:
        mask = given.get("video_compression_mask")
        if features is None or mask is None or modality != "video" or bool(mask.all()):
            return features
        return [x[own.to(x.device)] for x, own in zip(features, mask.split([len(x) for x in features]), strict=True)]

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        t, h, w = known.thw or (0, 0, 0)
        merge = round((t * h * w / len(features)) ** 0.5)
        if merge not in (1, 2) or t * h * w != merge**2 * len(features):
            return row_layout(len(features))
        return super().layout(model, features, known._replace(thw=(t, h // merge, w // merge)))


class Ovis2Adapter(DefaultAdapter):
    """Tokens are mixtures of a visual vocabulary; a picture's tiles have indicator tokens between them, so that each is
    a picture of its own here."""

    model_types = ("ovis2",)
    apart = False

    def fold(self, model: nn.Module) -> int:
        config: Any = model.config
        return config.vision_config.hidden_stride


class GotOcr2Adapter(DefaultAdapter):
    """Two convolutions make a token of 4 x 4 patches of SAM's tower; several pages or tiles stand side by side."""

    model_types = ("got_ocr2",)
    joins_pieces = True

    def fold(self, model: nn.Module) -> int:
        return 4


class Exaone45Adapter(DefaultAdapter):
    """Qwen2.5-VL's kind of tower, with fewer keys than queries; positions in a row."""

    model_types = ("exaone4_5",)


class FastVlmAdapter(DefaultAdapter):
    """A convolutional tower, whose output is a square."""

    model_types = ("fast_vlm",)

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        return square_layout(len(features))


class QianfanOcrAdapter(DefaultAdapter):
    """InternVL's tiles and tower, four patches folded into a token."""

    model_types = ("qianfan_ocr",)
    joins_pieces = True

    def fold(self, model: nn.Module) -> int:
        config: Any = model.config
        return round(1 / config.downsample_ratio)


class Idefics3Adapter(DefaultAdapter):
    """Features of all crops of a row are handed out together; crops stand apart, between words that say where in the
    picture they are, so that each is a picture of its own here."""

    model_types = ("idefics3", "smolvlm")
    joins_pieces = True
    apart = False

    def fold(self, model: nn.Module) -> int:
        config: Any = model.config
        return config.scale_factor


class AriaAdapter(DefaultAdapter):
    """Learned queries read the tower: a token lies nowhere in the picture."""

    model_types = ("aria",)
    queries = True


class Emu3Adapter(DefaultAdapter):
    """Pictures are words of a codebook, row by row; every row ends with a word for the end of the row."""

    model_types = ("emu3",)

    def separator(self, model: nn.Module) -> Tensor | None:
        words: Any = self.base(model)
        return self.language_model(model).embed_tokens.weight[words.vocabulary_mapping.eol_token_id]

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        n, ends = len(features), known.separators
        rows = 0 if ends is None else int(ends.sum())
        if not rows or n % rows or ends is None or not bool(ends.view(rows, -1)[:, -1].all()):
            return row_layout(n)
        width = n // rows - 1
        tile = Tile(0, 1, rows, width, newline=True)
        nowhere = torch.full((n,), -1)
        crop = torch.where(ends, -1, 0)
        return ImageLayout((1, rows, width), (tile,), nowhere, crop, 0)


class PerceptionLMAdapter(DefaultAdapter):
    """Tiles and frames of timm's Perception Encoder, averaged over squares of patches."""

    model_types = ("perception_lm",)
    joins_pieces = True

    def side(self, model: nn.Module) -> int | None:
        config: Any = model.config
        made = config.vision_config.model_args
        size, patch = (x[0] if isinstance(x, list | tuple) else x for x in (made["img_size"], made["patch_size"]))
        return size // patch

    def fold(self, model: nn.Module) -> int:
        config: Any = model.config
        return config.projector_pooling_ratio


class Qwen3VLMoeAdapter(Qwen3VLAdapter):
    model_types = ("qwen3_vl_moe",)


LISTED: tuple[type[Adapter], ...] = (
    SquareAdapter,
    VideoLlavaAdapter,
    PixtralAdapter,
    GlmVAdapter,
    ErnieVLAdapter,
    PaddleOcrVLAdapter,
    VideoLlama3Adapter,
    Ovis2Adapter,
    GotOcr2Adapter,
    FastVlmAdapter,
    Exaone45Adapter,
    QianfanOcrAdapter,
    Idefics3Adapter,
    AriaAdapter,
    Emu3Adapter,
    PerceptionLMAdapter,
    Qwen3VLMoeAdapter,
)
