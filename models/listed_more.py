"""More families that the default one carries: Qwen's and others' with sound, on latent attention, with four position
rows, or whose pictures are read by learned queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtc.layout import Tile
from vtc.models.decoder import Decoder, Tables, register_decoder
from vtc.models.default import DefaultAdapter
from vtc.models.family import Adapter, Companions, ImageLayout, Known
from vtc.models.listed import GlmVAdapter, GotOcr2Adapter, Idefics3Adapter, SquareAdapter
from vtc.models.qwen_vl import Qwen3VLAdapter, QwenVLAdapter


class Cosmos3OmniAdapter(Qwen3VLAdapter):
    """Qwen3-VL under a name of its own."""

    model_types = ("cosmos3_omni",)


class Cosmos3EdgeAdapter(DefaultAdapter):
    """A SigLIP 2 that packs pictures, 2 x 2 patches a token, before a Nemotron with (t, h, w) positions."""

    model_types = ("cosmos3_edge",)
    mrope = True


class GlmGaAdapter(GlmVAdapter):
    """GLM-4.6V under a name of its own."""

    model_types = ("glmga",)


class PpChart2TableAdapter(GotOcr2Adapter):
    """GOT-OCR 2 under a name of its own."""

    model_types = ("pp_chart2table",)


class HyperClovaXAdapter(DefaultAdapter):
    """Qwen2.5-VL's tower before a language model with one position per token."""

    model_types = ("hyperclovax_vision_v2",)


class GraniteDoclingAdapter(Idefics3Adapter):
    """Idefics 3's crops; features of some tower blocks are added to visual tokens in early decoder layers."""

    model_types = ("granite_docling",)
    companions = Companions(mask="visual_pos_masks", rows="deepstack_visual_embeds")

    def fold(self, model: nn.Module) -> int:
        config: Any = model.config
        return config.vision_config.scale_factor


class _Omni(Adapter):
    """Qwen's models that also hear: positions follow the words and sounds around a picture, which token types do not
    tell."""

    typed = False

    def prompt_positions(
        self, model: nn.Module, ids: Tensor, types: Tensor, mask: Tensor, grids: dict[str, Tensor], seconds: Any
    ) -> Tensor:
        config: Any = model.config
        if bool((ids == config.audio_token_id).any()):
            raise ValueError("a prompt with sound has positions that vtc does not know: leave one of both out.")
        given = (grids.get("image"), grids.get("video"), mask.long())
        return self.base(model).get_rope_index(ids, *given, second_per_grids=seconds)[0]


class Qwen25OmniAdapter(_Omni, QwenVLAdapter):
    model_types = ("qwen2_5_omni_thinker",)


class Qwen3OmniAdapter(_Omni, Qwen3VLAdapter):
    model_types = ("qwen3_omni_moe_thinker",)


class KimiAdapter(DefaultAdapter):
    """Pictures of any size, whose patches lie row by row; the frames of a video become one."""

    model_types = ("kimi_k25",)

    def merge(self, model: nn.Module) -> int:
        config: Any = model.config
        return config.vision_config.merge_kernel_size[0]

    def merged(self, model: nn.Module, values: Tensor, grid_thw: Tensor | None, mean: bool) -> Tensor:
        values = super().merged(model, values, grid_thw, mean)
        if grid_thw is None:
            return values
        grids = grid_thw.tolist()
        parts = values.split([t * h * w // self.merge(model) ** 2 for t, h, w in grids])
        films = [x.unflatten(0, (t, -1)) for x, (t, _, _) in zip(parts, grids, strict=True)]
        return torch.cat([x.mean(dim=0) if mean else x.sum(dim=0) for x in films])

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        if known.thw is not None:
            known = known._replace(thw=(1, *known.thw[1:]))
        return super().layout(model, features, known)


@register_decoder
class HunYuanVLDecoder(Decoder):
    """Queries and keys are normalised behind the rotation; four position rows."""

    model_types = ("hunyuan_vl_text",)

    def queries(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        return attention.query_layernorm(super().queries(attention, x, tables))

    def keys(self, attention: Any, x: Tensor, tables: Tables) -> Tensor:
        return attention.key_layernorm(super().keys(attention, x, tables))


class HunYuanVLAdapter(DefaultAdapter):
    """A learned token at the end of each row of a picture, one before and one behind it; four position rows: place in
    the row, column, line, number of the picture."""

    model_types = ("hunyuan_vl",)
    mrope = True

    def axes(self, model: nn.Module) -> int:
        return len(self.language_model(model).config.rope_parameters["mrope_section"])

    def position_rows(self, text: Tensor, positions: Tensor) -> Tensor:
        return positions  # a row for the mask beside them is one too many

    def check(self, model: nn.Module) -> None:
        rope = self.language_model(model).config.rope_parameters
        if len(rope.get("mrope_section") or ()) != 4:
            raise ValueError("this hunyuan_vl has other position rows than HunyuanOCR's four, which is not supported.")

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        if known.thw is None:
            raise ValueError("image_grid_thw is missing: pass it as the processor returned it.")
        merge = self.merge(model)
        h, w = known.thw[1] // merge, known.thw[2] // merge
        if len(features) != h * (w + 1) + 2:
            raise ValueError(
                f"a picture of grid {(1, h, w)} has {h * (w + 1) + 2} tokens, but {len(features)} were found."
            )
        ends = torch.full((h, 1), -1)
        patch = torch.cat([torch.arange(h * w).view(h, w), ends], dim=1).flatten()
        patch = torch.nn.functional.pad(patch, (1, 1), value=-1)
        return ImageLayout((1, h, w), (Tile(1, 1, h, w, newline=True),), patch, patch.clamp(max=0), h * w)


class DeepseekOcr2Adapter(DefaultAdapter):
    """Learned queries read each view of a page; a learned token ends the page. A query sees the patches and the queries
    before it, which no signal has room for: the tower is not read."""

    model_types = ("deepseek_ocr2",)
    apart = False
    queries = True

    def entering(self, model: nn.Module, features: Any, given: Mapping[str, Any], modality: str) -> Any:
        pixels = given.get("pixel_values")
        if features is not None or pixels is None:
            return features  # the tower hands over views, not pages: how long a page is follows from their sizes
        config: Any = model.config
        patch, local = config.vision_config.sam_config.patch_size, given.get("pixel_values_local")
        whole, part = (0 if x is None else 144 if x.shape[-1] // patch // 4 <= 12 else 256 for x in (pixels, local))
        parts = given.get("num_local_patches") if local is not None else None
        counts = [0] * len(pixels) if parts is None else torch.as_tensor(parts).tolist()
        return [pixels.new_empty(part * n + whole + 1, 0) for n in counts]


class Idefics2Adapter(DefaultAdapter):
    """Learned queries read each picture; features of all pictures of a row are handed out together."""

    model_types = ("idefics2",)
    queries = True
    joins_pieces = True
    apart = False


class DeepseekVLHybridAdapter(SquareAdapter):
    """One square crop per picture, seen by SigLIP and, larger, by SAM: a token is made of what both say of a place."""

    model_types = ("deepseek_vl_hybrid",)
    apart = False

    def tower(self, model: nn.Module) -> Any:
        return self.base(model).high_res_vision_model

    def entering(self, model: nn.Module, features: Any, given: Mapping[str, Any], modality: str) -> Any:
        pixels = given.get("pixel_values")
        if features is not None or pixels is None:
            return features
        return [pixels.new_empty(self.crop_tokens(model) or 0, 0) for _ in pixels]


LISTED_MORE: tuple[type[Adapter], ...] = (
    Cosmos3OmniAdapter,
    Cosmos3EdgeAdapter,
    GlmGaAdapter,
    PpChart2TableAdapter,
    HyperClovaXAdapter,
    GraniteDoclingAdapter,
    Qwen25OmniAdapter,
    Qwen3OmniAdapter,
    KimiAdapter,
    HunYuanVLAdapter,
    DeepseekOcr2Adapter,
    Idefics2Adapter,
    DeepseekVLHybridAdapter,
)
