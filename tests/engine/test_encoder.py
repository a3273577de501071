"""The stage `encoder` on towers that are wrapped alone: what merges, what it is made of, and what stays as it was."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.engine.towers import PATCHES, SIZES, TOWERS, pictures, run, tower
from tests.methods.test_definition_encoder_stage import pairs
from vtc.models.tower import tower_for

NAMES = list(TOWERS)
ROTARY = ("dinov3", "eva-rotary", "eva-mixed")  # where copies at other places have other keys


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_handed_over_is_full_length_and_keep_is_exact(name: str):
    model = tower(name)
    whole = run(model, pictures())
    vtc.wrap(model, "tome", keep=0.375)
    short = run(model, pictures())
    assert short.shape == whole.shape
    assert not torch.allclose(short, whole, atol=1e-3)
    report = vtc.report(model)
    assert [span.tokens_out for span in report.spans] == [6, 6]
    for row, span in enumerate(report.spans):
        patches = short[row, -PATCHES:]
        torch.testing.assert_close(patches, patches[span.kept][span.source])
    assert report.tower is not None
    assert report.tower.tokens_by_block[-1] == 12


@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_changes_nothing_and_unwrapping_leaves_no_trace(name: str):
    model = tower(name)
    before, hooks = run(model, pictures()), count_hooks(model)
    vtc.wrap(model, "tome", keep=1.0)
    torch.testing.assert_close(run(model, pictures()), before, rtol=0, atol=0)
    vtc.wrap(model, "tome", keep=0.5)
    run(model, pictures())
    vtc.unwrap(model)
    torch.testing.assert_close(run(model, pictures()), before, rtol=0, atol=0)
    assert count_hooks(model) == hooks
    assert "_vtc_engine" not in vars(model)


def count_hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ROTARY])
def test_merging_exact_copies_changes_nothing(name: str):
    """Every second token after the embedding is a copy of the one before it: ToMe merges those, and with proportional
    attention nobody can tell."""
    model = tower(name)
    facts = tower_for(model)
    first, prefix = facts.blocks(model)[0], facts.prefix(model)

    def copied(module: Any, args: Any) -> Any:
        x = args[0].clone()
        start = prefix % 2 + prefix  # pairs (even, odd), as every second row looks at the others
        x[:, start + 1 :: 2] = x[:, start : -1 if (x.shape[1] - start) % 2 else None : 2]
        return (x, *args[1:])

    handle = first.register_forward_pre_hook(copied)
    whole = run(model, pictures())
    vtc.wrap(model, "tome", keep=9)
    torch.testing.assert_close(run(model, pictures()), whole, atol=1e-4, rtol=1e-4)
    vtc.wrap(model, "tome", keep=9, proportional=False)
    assert not torch.allclose(run(model, pictures()), whole, atol=1e-3)
    handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_do_not_meet(name: str):
    model = vtc.wrap(tower(name), "tome", keep=0.5)
    batch = pictures(3)
    together = run(model, batch)
    for row in range(3):
        torch.testing.assert_close(run(model, batch[row : row + 1])[0], together[row], atol=1e-5, rtol=1e-4)


def test_threads_do_not_meet():
    model = vtc.wrap(tower("timm"), "tome", keep=0.5)
    inputs = [pictures(1 + i % 3, seed=i) for i in range(6)]
    expected, found = [run(model, x) for x in inputs], {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = run(model, inputs[i]), len(vtc.report(model).spans)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(expected):
        torch.testing.assert_close(found[i][0], x)
        assert found[i][1] == len(inputs[i])


def test_a_deep_copy_is_wrapped_by_itself():
    model = vtc.wrap(tower("clip"), "tome", keep=0.5)
    short = run(model, pictures())
    other = copy.deepcopy(model)
    vtc.unwrap(model)
    whole = run(model, pictures())
    torch.testing.assert_close(run(other, pictures()), short)
    vtc.unwrap(other)
    torch.testing.assert_close(run(other, pictures()), whole)


def test_what_moves_inputs_between_devices_does_not_hide_a_block():
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = tower("clip")
    expected = run(vtc.wrap(model, "tome", keep=0.5), pictures())
    vtc.unwrap(model)
    for block in model.encoder.layers:
        add_hook_to_module(block, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    torch.testing.assert_close(run(vtc.wrap(model, "tome", keep=0.5), pictures()), expected)


@pytest.mark.full  # seconds of compiling
@pytest.mark.parametrize("name", ["timm", "clip"])
def test_compiled_towers_give_the_same(name: str):
    model = vtc.wrap(tower(name), "tome", keep=0.5)
    expected = run(model, pictures())
    compiled: Any = torch.compile(model, backend="eager")
    found = compiled(pictures())
    if name == "timm":
        torch.testing.assert_close(found, model(pictures()))
        assert vtc.report(compiled).tokens_out == 16
    else:
        torch.testing.assert_close(found.last_hidden_state, expected)
    vtc.unwrap(compiled)
    assert not torch.allclose(run(model, pictures()), expected)


def test_attention_that_takes_no_bias_is_refused():
    model = tower("clip")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ValueError, match=r"attends by flash_attention_2, which takes no bias per key, .*=False, or load"
    ):
        vtc.wrap(model, "tome")
    vtc.unwrap(vtc.wrap(model, "tome", proportional=False))
    vtc.unwrap(vtc.wrap(model, "vtc-cls"))


def test_hidden_states_of_transformers_are_full_length_plain_tensors():
    model = tower("clip")
    with torch.no_grad():
        model(pictures(), output_hidden_states=True)  # its own hooks are there first
        vtc.wrap(model, "tome", keep=0.5)
        states = model(pictures(), output_hidden_states=True).hidden_states
    assert [(type(x), x.shape[1]) for x in states] == [(Tensor, PATCHES + 1)] * 5
    assert not any(vars(x) for x in states)  # what passed from block to block is not kept with them


def test_parts_of_a_wrapped_tower_are_not_run_from_the_middle():
    model = vtc.wrap(tower("timm"), "tome", keep=0.5)
    with pytest.raises(
        RuntimeError, match=r"block 2 of the vision tower was not given what the block before it put out"
    ):
        model.blocks[2](torch.randn(1, PATCHES + 1, 24))


def test_a_block_of_another_kind_is_refused_and_not_run_uncompressed():
    model = tower("timm")
    block = model.blocks[0]

    class Copying(type(block)):
        def forward(self, x: Tensor, **more: Any) -> Tensor:
            y = x.clone() + self.attn(self.norm1(x), **more)
            return y + self.mlp(self.norm2(y))

    block.__class__ = Copying
    vtc.wrap(model, "tome", keep=0.5)
    with pytest.raises(RuntimeError, match=r"Copying does not add its attention to its input in a way that vtc knows"):
        run(model, pictures())


def test_intermediates_of_timm_are_full_grids():
    model = vtc.wrap(tower("timm"), "tome", keep=0.5)
    with torch.no_grad():
        final, states = model.forward_intermediates(pictures())
        (early,) = model.forward_intermediates(pictures(), indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(final, run(model, pictures()))
    assert [x.shape for x in states] == [(2, 24, 4, 4)] * 4
    torch.testing.assert_close(early, states[1])


def test_gradients_reach_the_pixels_and_the_weights():
    model = vtc.wrap(tower("timm"), "tome", keep=0.5)
    with torch.enable_grad():
        pixels = pictures().requires_grad_()
        model(pixels).sum().backward()
    assert pixels.grad is not None
    assert float(pixels.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in model.blocks.parameters())


def test_the_released_order_is_followed():
    """As the authors' code leaves them: those that looked in vain, then those that were looked at."""
    tokens = torch.tensor([[9.0, 0, 0], [0, 1, 0.2], [1, 0, 0], [0, 1, 0], [1, 0.1, 0], [0, 0, 1], [1, 1, 1]])
    joined = vtc.ToMe(order="released").join(block_of(tokens, prefix=1, gone=1))
    assert joined.stays is not None
    joins = pairs(tokens.tolist(), 1, 1)
    assert joined.target[0].tolist() == [joins.get(i, i) for i in range(7)]
    assert joined.stays[0].tolist() == [i for i in (0, 2, 4, 6) if i not in joins] + [1, 3, 5]


def block_of(keys: Tensor, prefix: int, gone: int, block: int = 0, depth: int = 1, **more: Any) -> vtc.BlockTokens:
    n = len(keys)
    ways: dict[str, Any] = {"attention": lambda: None, "pictures": list, **more}
    return vtc.BlockTokens(keys[None], torch.ones(1, n), prefix, prefix > 0, gone, n - prefix, block, depth, **ways)


# -- dropping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_dropped_patches_equal_masked_ones(name: str):
    """The tower that keeps all patches, but in which later blocks do not see those that were dropped."""
    model = tower(name)
    facts, at = tower_for(model), 1
    vtc.wrap(model, vtc.Random(keep=0.5, block=at))
    short = run(model, pictures())
    spans = vtc.report(model).spans
    vtc.unwrap(model)
    prefix = facts.prefix(model)
    hidden = torch.zeros(2, prefix + PATCHES)
    for row, span in enumerate(spans):
        assert span.tokens_out == PATCHES // 2
        hidden[row, prefix:] = torch.where(span.source < 0, -torch.inf, 0.0)
    handles = [
        attention.register_forward_pre_hook(
            lambda module, args, kwargs: (args, facts.with_bias(module, kwargs, hidden)), with_kwargs=True
        )
        for attention in facts.attentions(model)[at + 1 :]
    ]
    expected = run(model, pictures())
    for handle in handles:
        handle.remove()
    for row, span in enumerate(spans):
        kept = torch.cat([torch.arange(prefix), prefix + span.kept])
        torch.testing.assert_close(short[row, kept], expected[row, kept], atol=1e-4, rtol=1e-4)
        assert all(any(torch.equal(x, short[row, i]) for i in kept[prefix:]) for x in short[row, prefix:])


# -- whole models, and what is refused ---------------------------------------------------------------------------------


def test_a_whole_clip_and_classifiers_are_wrapped_by_the_same_call():
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    text = CLIPTextConfig(**SIZES, vocab_size=50, eos_token_id=49)
    vision = CLIPVisionConfig(**SIZES, image_size=16, patch_size=4)
    model: Any = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).eval()
    ids = torch.tensor([[1, 2, 49], [3, 4, 49]])
    whole = model(input_ids=ids, pixel_values=pictures(3))
    vtc.wrap(model, "tome", keep=0.5)
    short = model(input_ids=ids, pixel_values=pictures(3))
    assert short.logits_per_image.shape == (3, 2)
    torch.testing.assert_close(short.text_embeds, whole.text_embeds)
    assert not torch.allclose(short.image_embeds, whole.image_embeds)
    assert [span.tokens_out for span in vtc.report(model).spans] == [8, 8, 8]


def test_an_open_clip_is_wrapped_with_its_text_tower_left_alone():
    import open_clip

    vision: Any = dict(image_size=16, patch_size=4, width=24, layers=3, head_width=12)
    text: Any = dict(context_length=8, vocab_size=40, width=16, heads=2, layers=2)
    model: Any = open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text).eval()
    words = torch.randint(0, 40, (2, 8))
    whole, named = model.encode_image(pictures()), model.encode_text(words)
    vtc.wrap(model, "tome", keep=0.5)
    assert not torch.allclose(model.encode_image(pictures()), whole)
    assert torch.equal(model.encode_text(words), named)
    states = model.visual.forward_intermediates(pictures())["image_intermediates"]
    assert [x.shape for x in states] == [(2, 24, 4, 4)] * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_atto", r"ConvNeXt is convolutional: it has no patch tokens"),
        ("resnet10t", r"ResNet is convolutional: it has no patch tokens"),
        ("swin_tiny_patch4_window7_224", r"SwinTransformer is hierarchical: .* single patches cannot leave\.$"),
    ],
)
def test_towers_without_patch_tokens_are_refused(name: str, message: str):
    import timm

    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=message) as caught:
        vtc.wrap(model, "tome")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("divprune", r"divprune works at the stage 'input', and a vision tower alone has the stage 'encoder' only"),
        ("tome(stage=input)", r"tome works at the stage 'input', and a vision tower alone"),
        ("fastv", r"fastv works at the stage 'layer', and a vision tower alone"),
        (["tome", "vtc-cls"], r"tome and vtc-cls both act inside the vision tower: give one\."),
        ("vtc-cls(block=4)", r"block=4 of vtc-cls: only blocks 0 to 3 of this tower count\."),
        ("zerotprune(blocks=(1, 9))", r"only blocks 0 to 3 of this tower count\."),
    ],
)
def test_methods_that_cannot_act_in_a_tower_are_refused(method: Any, message: str):
    model = tower("timm")
    hooks = count_hooks(model)
    with pytest.raises(ValueError, match=message):
        vtc.wrap(model, method)
    assert count_hooks(model) == hooks


def test_a_budget_out_of_reach_is_refused_before_the_first_block():
    model = vtc.wrap(tower("timm"), "tome", keep=1)
    assert run(model, pictures()).shape[1] == PATCHES + 1  # 16 patches halve four times
    from timm import create_model

    short: Any = create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2)
    ran: list[int] = []
    short.blocks[0].norm1.register_forward_hook(lambda *_: ran.append(1))
    vtc.wrap(short, "tome", keep=1)
    with pytest.raises(ValueError, match=r"1 of 16 patches cannot be reached in 3 blocks .* keep 2 or more\.$"):
        short(pictures())
    assert not ran


def test_odd_numbers_of_patches_and_a_single_one():
    from timm import create_model

    for size, patches in ((20, 25), (4, 1)):
        model: Any = create_model(
            "vit_tiny_patch16_224", img_size=size, patch_size=4, embed_dim=24, depth=3, num_heads=2
        )
        vtc.wrap(model.eval(), "tome", keep=0.5)
        assert model.forward_features(torch.randn(2, 3, size, size)).shape[1] == patches + 1
        assert [span.tokens_out for span in vtc.report(model).spans] == [max(1, round(patches / 2))] * 2


def test_masks_and_checkpointing_are_refused():
    model = vtc.wrap(tower("timm"), "tome", keep=0.5)
    hidden = torch.zeros(17, 17).masked_fill_(torch.eye(17).bool(), -1.0)
    with pytest.raises(ValueError, match=r"an attention mask that hides some patches from others"):
        model(pictures(), attn_mask=hidden)
    torch.testing.assert_close(model(pictures(), attn_mask=torch.zeros(17, 17)), model(pictures()))
    model.set_grad_checkpointing(True)
    with (
        torch.enable_grad(),
        pytest.raises(ValueError, match=r"gradient checkpointing computes blocks .* switch it off"),
    ):
        model(pictures())


def test_a_tower_is_wrapped_once():
    model = tower("clip")

    class Around(torch.nn.Module):
        def __init__(self, inside: Any) -> None:
            super().__init__()
            self.inside = inside

    vtc.wrap(model, "tome")
    with pytest.raises(ValueError, match="already wrapped through another model object"):
        vtc.wrap(Around(model), "tome")
    vtc.unwrap(model)
    vtc.unwrap(vtc.wrap(Around(model), "tome"))


# -- the account -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip", "siglip", "timm-registers", "dinov3", "eva-rotary"])
def test_the_account_of_flops_is_what_torch_counts(name: str):
    from torch.utils.flop_counter import FlopCounterMode

    model = tower(name)
    facts = tower_for(model)
    vtc.wrap(model, "tome", keep=0.5)
    run(model, pictures())
    said = vtc.report(model).tower
    assert said is not None

    def counted() -> list[int]:
        found, handles = [], []
        for block in facts.blocks(model):
            mode = FlopCounterMode(display=False)
            handles.append(block.register_forward_pre_hook(lambda *_, m=mode: m.__enter__() and None))
            handles.append(block.register_forward_hook(lambda *_, m=mode: m.__exit__(None, None, None), prepend=True))
            found.append(mode)
        run(model, pictures())
        for handle in handles:
            handle.remove()
        return [mode.get_total_flops() for mode in found]

    shorter = counted()
    vtc.unwrap(model)
    assert [full for full, _ in said.flops_by_block] == counted()
    for (_, kept), own, left in zip(said.flops_by_block, shorter, said.tokens_by_block, strict=True):
        matching = own - kept  # products of keys with keys, and nothing else
        assert 0 <= matching <= 2 * 2 * (left + 2 * PATCHES) ** 2 * 24


def test_pictures_show_what_has_merged():
    from PIL import Image

    model = vtc.wrap(tower("timm"), "tome", keep=6)
    run(model, pictures(1))
    drawn = vtc.overlay(Image.new("RGB", (64, 64), "grey"), vtc.report(model).spans[0])
    assert drawn.width >= 64


# -- towers whose pictures have sizes of their own ---------------------------------------------------------------------


def test_siglip2_merges_where_nothing_is_padded():
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    model: Any = Siglip2VisionModel(Siglip2VisionConfig(**SIZES, patch_size=4, num_patches=16)).eval()
    assert model.config.model_type == "siglip2_vision_model"
    pixels = torch.randn(2, PATCHES, 48)
    inputs = {"pixel_values": pixels, "spatial_shapes": torch.tensor([[4, 4], [4, 4]])}
    whole = model(**inputs, pixel_attention_mask=torch.ones(2, PATCHES)).last_hidden_state
    vtc.wrap(model, "tome", keep=0.5)
    short = model(**inputs, pixel_attention_mask=torch.ones(2, PATCHES)).last_hidden_state
    assert short.shape == whole.shape
    assert [span.tokens_out for span in vtc.report(model).spans] == [8, 8]
    padded = torch.ones(2, PATCHES)
    padded[1, 12:] = 0
    with pytest.raises(ValueError, match=r"an attention mask that hides some patches from others \(padding, "):
        model(pixel_values=pixels, spatial_shapes=torch.tensor([[4, 4], [3, 4]]), pixel_attention_mask=padded)


def test_pixtral_merges_one_picture_at_a_time():
    from transformers import PixtralVisionConfig, PixtralVisionModel

    model: Any = PixtralVisionModel(PixtralVisionConfig(**SIZES, image_size=32, patch_size=4)).eval()
    assert model.config.model_type == "pixtral"
    pixels = torch.randn(1, 3, 16, 24)
    whole = model(pixels).last_hidden_state
    vtc.wrap(model, "tome", keep=1.0)
    torch.testing.assert_close(model(pixels).last_hidden_state, whole)
    vtc.wrap(model, vtc.Random(keep=0.5, block=1))
    short = model(pixels).last_hidden_state
    (span,) = vtc.report(model).spans
    vtc.unwrap(model)
    hidden = torch.where(span.source < 0, -torch.inf, 0.0)[None, None, None]
    for layer in model.transformer.layers[2:]:
        layer.attention.register_forward_pre_hook(
            lambda m, args, kwargs: (args, {**kwargs, "attention_mask": hidden}), with_kwargs=True
        )
    torch.testing.assert_close(short[0, span.kept], model(pixels).last_hidden_state[0, span.kept])
    vtc.wrap(model, "tome", keep=0.5)
    with pytest.raises(ValueError, match=r"an attention mask that hides some patches from others .* one picture a row"):
        model(torch.randn(2, 3, 16, 16))
