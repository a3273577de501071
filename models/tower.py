"""Tower: facts about one kind of vision tower, whichever family it serves."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from vtc.models import enter_before, enter_those_that_ship
from vtc.transfer import upload

Takes = Literal["square", "rectangle", "row", "packed"]


class Packing(NamedTuple):
    """How a packed row holds pictures: `merge` x `merge` neighbouring patches, which become a token, follow each other;
    a patch holds `frames` frames of `side` x `side` pixels, channels first."""

    merge: int
    frames: int
    side: int


class Groups(NamedTuple):
    """Sizes of the groups that a packed row is made of: as it came, and now."""

    whole: list[int]
    now: list[int]


class Tower:
    """Facts about the towers of some `config.model_type`; the defaults are those of CLIP and SigLIP.

    Every method is given the tower's module (or one of its attention modules) and keeps nothing.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    #: "module.Class" of towers that have no model type (timm's, open_clip's); subclasses of these count
    class_names: ClassVar[tuple[str, ...]] = ()
    #: whether the first token of each picture is a trained CLS token
    has_cls: ClassVar[bool] = False
    #: the pictures it takes: one a row, of config.image_size pixels squared, or of config.image_size (height, width);
    #: or pictures of any size, packed one after another into one row, alone or ("packed") with grids in `grid_thw`
    takes: ClassVar[Takes] = "square"
    #: whether its pictures come cut into patches, instead of as pixels
    patches_given: ClassVar[bool] = False
    #: whether how many of its patches become a token is said picture by picture
    varies: ClassVar[bool] = False
    #: what the published processors of its family subtract from each channel's pixels in [0, 1], and divide them by
    mean: ClassVar[tuple[float, float, float]] = (0.48145466, 0.4578275, 0.40821073)
    deviation: ClassVar[tuple[float, float, float]] = (0.26862954, 0.26130258, 0.27577711)

    def of(self, tower: Any) -> Tower:
        """The facts about this tower of the kind, where not all are alike: these, or others."""
        return self

    def packing(self, tower: Any) -> Packing:
        """How its rows hold pictures, of towers that take packed ones."""
        raise TypeError(f"{type(self).__name__} takes packed pictures, but does not define packing().")

    def blocks(self, tower: Any) -> Any:
        """Its transformer blocks, first one first."""
        return tower.encoder.layers

    def encoder(self, tower: Any) -> nn.Module:
        """What is handed the embedded patches and runs the blocks on them, of towers that take no packed pictures."""
        return tower.encoder

    def attentions(self, tower: Any) -> list[Any]:
        """The attention module of each block."""
        return [block.self_attn for block in self.blocks(tower)]

    def feature_layer(self, tower: Any) -> int:
        """The last block (0-based) in which all patches of a picture see each other."""
        return len(self.blocks(tower)) - 1

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        """Modules of an attention whose outputs `queries_keys` reads; twice the same one where it is fused."""
        return attention.q_proj, attention.k_proj

    def patch_side(self, tower: Any) -> int:
        """Pixels along a side of a patch."""
        size = tower.config.patch_size
        return size[0] if isinstance(size, list | tuple) else size

    def states(self, output: Any) -> Tensor:
        """[B, T, D]: what a block puts out, of each patch; packed rows are one."""
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states if states.dim() == 3 else states[None]

    # -- between its blocks (the stage `encoder`) ----------------------------------------------------------------

    def prefix(self, tower: Any) -> int:
        """How many tokens stand before a picture's patches: CLS, registers, a distillation token."""
        return int(self.has_cls)

    def cls_first(self, tower: Any) -> bool:
        """Whether the first of them is a trained CLS token."""
        return self.has_cls

    def listened(self, block: Any, attention: Any) -> tuple[nn.Module, nn.Module]:
        """Modules of a block that run before its first residual addition, whose outputs `heads` makes queries and keys
        of: the `projections`, or what comes before them where they are no modules."""
        return self.projections(attention)

    def heads(self, attention: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, H, T, d] before any rotation, of the outputs of what is `listened` to."""
        queries, keys = (x.unflatten(-1, (self.heads_of(attention), -1)).transpose(1, 2) for x in (q, k))
        return queries, keys

    def heads_of(self, attention: Any) -> int:
        """How many heads an attention has."""
        return attention.num_heads

    def metric(self, attention: Any, k: Tensor) -> Tensor:
        """[B, T, d]: the keys of `heads`, averaged over heads, from the second module's output alone."""
        return k.unflatten(-1, (self.heads_of(attention), -1)).mean(dim=-2)

    def width(self, attention: Any) -> int:
        """Width of an attention's queries, all heads together."""
        return self.heads_of(attention) * attention.head_dim

    def check(self, tower: Any) -> None:
        """Raise ValueError if nothing can merge inside of this one."""

    def check_cut(self, tower: Any) -> None:
        """Raise ValueError if no patch of a picture can be left out, and no picture made smaller, before this one."""

    def check_bias(self, tower: Any) -> None:
        """Raise ValueError if the attention takes no bias per key (`with_bias`)."""
        kind = str(getattr(getattr(tower, "config", None), "_attn_implementation", None) or "sdpa")
        if kind not in ("sdpa", "eager"):
            raise ValueError(
                f"the vision tower attends by {kind}, which takes no bias per key, but a merged patch is to weigh as "
                "much as the patches in it: give proportional=False, or load with attn_implementation='sdpa'."
            )

    def with_bias(self, attention: Any, kwargs: dict[str, Any], bias: Tensor) -> dict[str, Any]:
        """Keyword arguments of an attention's call under which bias [B, T] is added to the logits of each key."""
        given, bias = kwargs.get("attention_mask"), bias[:, None, None]
        return {**kwargs, "attention_mask": bias if given is None else given + bias}

    def checkpoints(self, tower: Any) -> bool:
        """Whether its blocks are computed again for their gradients."""
        return any(x.training and getattr(x, "gradient_checkpointing", False) for x in self.blocks(tower))

    def with_rows(self, kwargs: dict[str, Any], anchor: Tensor, prefix: int, groups: Groups | None) -> dict[str, Any]:
        """Keyword arguments of a block's call for the rows that are left.

        Args:
            anchor: LongTensor [B, T], which of the whole picture's tokens each row stands at, the `prefix` included.
            groups: what rows merge within, of packed rows; None elsewhere.
        """
        return kwargs

    # Of packed rows (one batch row, in which several patches make a token and stay together):

    def as_rows(self, x: Tensor) -> Tensor:
        """What a block is given or puts out -> [B, T, D] of what merges as a whole."""
        return x

    def from_rows(self, x: Tensor) -> Tensor:
        """The other way round."""
        return x

    def groups(self, tower: Any, kwargs: dict[str, Any]) -> list[int]:
        """Sizes of the stretches within which rows of `as_rows` merge, from the arguments of the first block's call:
        no larger than what any block attends within."""
        raise TypeError(f"{type(self).__name__} takes packed pictures, but does not define groups().")

    #: whether `with_bias` needs queries and keys of more channels, which `widened` makes, and `narrowed` cuts off
    widens: ClassVar[bool] = False

    def joints(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        """The module whose output is to be `widened`, and the one whose input is to be `narrowed`."""
        raise TypeError(f"{type(self).__name__} widens, but does not define joints().")

    def widened(self, attention: Any, output: Tensor, bias: Tensor) -> Tensor:
        """Queries, keys and values whose products have bias [B, T] of `as_rows` in them."""
        return output

    def narrowed(self, attention: Any, x: Tensor) -> Tensor:
        """Values without the channels that `widened` has added."""
        return x

    # -- its attention, as signals read it -----------------------------------------------------------------------

    def segments(self, inputs: dict[str, Any]) -> list[int] | None:
        """Lengths of the stretches of a packed row (pictures, frames, windows) that attend within themselves.

        None where each row of a batch is one. `inputs` are the keyword arguments of the attention's call.
        """
        return None

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Queries and keys [B, H, T, d], as the attention uses them, of each segment that attends within itself.

        softmax(q @ k^T / sqrt(d)) over a segment is the attention's own: a tower with another scale has it in its q.

        Args:
            q, k: outputs of the `projections`.
            inputs: keyword arguments of the attention's call.
            grid_thw: LongTensor [images, 3] of patches in main memory, for towers that take it.
        """
        return [self.heads(attention, q, k)]

    def order(self, tower: Any, grid_thw: Tensor) -> Tensor | None:
        """LongTensor [N]: the token that stands at each place while the blocks run; None: that of the place."""
        return None

    def cut_to(self, tower: Any, grid_thw: Tensor, kept: Tensor) -> dict[str, Tensor]:
        """Keyword arguments of its call by which it takes the patches of some tokens alone, of towers that take packed
        ones: what it would make of `grid_thw`, cut to them.

        Args:
            grid_thw: LongTensor [images, 3] of patches. kept: BoolTensor [N], the tokens; all in main memory.
        """
        raise TypeError(f"{type(self).__name__} takes packed pictures, but does not define cut_to().")

    def stretches(self, tower: Any, grid_thw: Tensor, kept: Tensor) -> list[list[int]]:
        """Per block, how many patches attend within themselves, stretch after stretch, of towers that take packed
        pictures; `grid_thw` and `kept` as in `cut_to`."""
        raise TypeError(f"{type(self).__name__} takes packed pictures, but does not define stretches().")

    def place_channels(self, attention: Any) -> int:
        """How many of the last channels of the keys of `queries_keys` say where a patch is, and nothing of what is in
        it: an attention that adds something for places is a product of wider queries and keys."""
        return 0

    def tokens_from_patches(
        self, tower: Any, values: Tensor, grid_thw: Tensor | None, mean: bool, kept: Tensor | None = None
    ) -> Tensor:
        """Values per patch [B, T, ...] (CLS left out, in the blocks' order) -> per token it hands over, [B, N, ...].

        Where several patches make one token their values are averaged (`mean`) or added up.

        Args:
            kept: BoolTensor in main memory, what `values` are there for, while all others get 0: of towers that take
                packed pictures the tokens, [N], of others the patches, [B, T], equally many a row. None = everything.
        """
        if kept is None:
            return values
        at = upload(kept.flatten().nonzero()[:, 0], values.device)
        full = values.new_zeros(kept.numel(), *values.shape[2:]).index_copy(0, at, values.flatten(0, 1))
        return full.view(*kept.shape, *values.shape[2:])


def unshared(values: Tensor, grid_thw: Tensor) -> Tensor:
    """Sums over all pictures of one row [1, T, ...] -> as if each picture were alone: attention in one must not depend
    on its neighbours."""
    sizes = grid_thw.prod(dim=1)
    share = (sizes / sizes.sum()).repeat_interleave(sizes)  # [T]
    return values / share.to(values).view(1, -1, *[1] * (values.dim() - 2))


_TOWERS: dict[str, Tower] = {}  # by model type
_CLASSES: dict[str, Tower] = {}  # by class, "module.Class"


def register_tower(cls: type[Tower]) -> type[Tower]:
    """Make a kind of tower known; usable as a class decorator in a user's own file."""
    enter_before(cls)
    for model_type in cls.model_types:
        _TOWERS[model_type] = cls()
    for name in cls.class_names:
        _CLASSES[name] = cls()
    return cls


def known_towers(takes: Takes | None = None) -> list[str]:
    """Model types (`config.model_type`) of the towers that vtc knows: all, or those that take such pictures. Towers of
    timm and open_clip have none: they are known by class."""
    enter_those_that_ship()
    return sorted(name for name, tower in _TOWERS.items() if takes in (None, tower.takes))


def tower_type(tower: nn.Module) -> str | None:
    """The tower's own `config.model_type`."""
    return type_of(getattr(tower, "config", None))


def type_of(config: object) -> str | None:
    """The model type of a tower's configuration, also where an old checkpoint calls it by the whole model's
    ("qwen2_5_vl" for "qwen2_5_vl_vision") and transformers lets that stand, as 5.19 does."""
    given, own = getattr(config, "model_type", None), getattr(type(config), "model_type", None)
    return own if own == f"{given}_vision" else given


def tower_for(tower: nn.Module) -> Tower:
    """Facts about a tower, by its own `config.model_type`; ValueError with the known ones if there are none."""
    model_type = tower_type(tower)
    enter_those_that_ship()
    if model_type in _TOWERS:
        return _TOWERS[model_type].of(tower)
    for cls in type(tower).__mro__:
        if found := _CLASSES.get(f"{cls.__module__}.{cls.__qualname__}"):
            return found
    inner = getattr(tower, "timm_model", tower)  # of timm, in transformers' wrapper
    if why := no_patches(inner):
        raise ValueError(f"{type(inner).__name__} {why}.")
    raise ValueError(
        f"{type(tower).__name__} (model type {model_type!r}) is no vision tower that vtc knows; "
        f"it knows {', '.join(known_towers())}, the vision transformers of timm and open_clip, and what "
        "vtc.models.register_tower adds."
    )


def find_tower(model: nn.Module) -> nn.Module:
    """The vision tower that `model` is, or that is inside of it (a whole CLIP, a classifier); ValueError if there is
    none, or more than one."""
    found, below = [], [model]
    while below:
        module = below.pop(0)
        if _is_tower(module):
            found.append(module)
        else:
            below.extend(module.children())
    if len(found) == 1:
        return found[0]
    name = type(model).__name__
    if found:
        raise ValueError(f"{name} holds {len(found)} vision towers: wrap one of them, not the whole.")
    if why := no_patches(model):
        raise ValueError(f"{name} {why}.")
    tower_for(model)  # raises
    raise ValueError(f"{name} is a part of a vision tower, or its blocks are not where those of its kind are.")


def no_patches(model: nn.Module) -> str | None:
    """Why nothing could merge or leave in a model of a kind that has no patch tokens; None if it is not of one."""
    name = type(model).__name__
    return next((why for words, why in NO_TOWERS.items() if any(word in name for word in words)), None)


#: what towers of other kinds cannot be compressed for, by what their classes are called
NO_TOWERS = {
    ("Swin", "Hiera", "MViT", "Mvit", "PVT", "Pvt", "PoolFormer"): (
        "is hierarchical: it shrinks a grid of patches stage by stage and attends within windows of it, so that single "
        "patches cannot leave"
    ),
    ("ConvNeXt", "ConvNext", "ResNet", "EfficientNet", "RegNet", "MobileNet", "VGG"): (
        "is convolutional: it has no patch tokens that could merge or leave"
    ),
    ("FastVit",): "is convolutional but for its last stages, whose squares of the picture stay a square",
    ("VQVAE",): "turns pictures into words of a codebook by convolutions: it has no patch tokens",
}


def _is_tower(module: nn.Module) -> bool:
    try:
        facts = tower_for(module)
        return len(facts.attentions(module)) > 0
    except (ValueError, AttributeError):
        return False


def facts_of(model_type: str) -> Tower:
    """Facts about the towers of a `config.model_type` out of `known_towers()`."""
    enter_those_that_ship()
    return _TOWERS[model_type]


class CLIPTower(Tower):
    model_types = ("clip_vision_model",)
    has_cls = True


class SiglipTower(Tower):
    """Its pooling head has a query of its own, but none of its tokens is a CLS token."""

    model_types = ("siglip_vision_model",)
    mean = deviation = (0.5, 0.5, 0.5)


class JanusTower(SiglipTower):
    """Norms of queries and keys, which no checkpoint has, would run on all pictures' heads at once."""

    model_types = ("janus_vision_model",)

    def check(self, tower: Any) -> None:
        if tower.config.use_qk_norm:
            raise ValueError("the attention of this tower normalises queries and keys, which vtc does not read.")

    def feature_layer(self, tower: Any) -> int:
        self.check(tower)
        return super().feature_layer(tower)


class Siglip2Tower(SiglipTower):
    """Pictures of any size, cut into patches, as many of each as the longest has, or padded to that."""

    model_types = ("siglip2_vision_model",)
    takes = "rectangle"
    patches_given = True

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        queries, keys = self.heads(attention, q, k)
        if grid_thw is None:
            return [(queries, keys)]
        sizes = grid_thw.prod(dim=1).tolist()  # each picture's own patches, of which none looks at padding
        return [(queries[i : i + 1, :, :n], keys[i : i + 1, :, :n]) for i, n in enumerate(sizes)]

    def tokens_from_patches(
        self, tower: Any, values: Tensor, grid_thw: Tensor | None, mean: bool, kept: Tensor | None = None
    ) -> Tensor:
        values = super().tokens_from_patches(tower, values, grid_thw, mean, kept)
        if mean or grid_thw is None or len(grid_thw) == 1 or len(values) > 1:
            return values
        sizes = grid_thw.prod(dim=1)  # attention of all pictures is one row; one must not depend on its neighbours
        share = (sizes / sizes.sum()).repeat_interleave(sizes)  # [T]
        return values / share.to(values).view(1, -1, *[1] * (values.dim() - 2))


class InternVLTower(Tower):
    """InternViT; folding 2 x 2 patches into a token (pixel shuffle) is done after it, by the family."""

    model_types = ("internvl_vision",)
    has_cls = True
    takes = "rectangle"
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def blocks(self, tower: Any) -> Any:
        return tower.encoder.layer

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attention for block in self.blocks(tower)]

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.q_norm, attention.k_norm  # identities where the checkpoint has no norm


class QianfanOcrTower(InternVLTower):
    """The same, without a module around its blocks."""

    model_types = ("qianfan_ocr_vision",)

    def blocks(self, tower: Any) -> Any:
        return tower.layers

    def encoder(self, tower: Any) -> nn.Module:
        raise ValueError("this tower has no module around its blocks, before which patches could be left out.")
