"""Which heads look things up, in loops over the attention of a plain model; what vtc.calibrate makes of it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import vtc
from tests.families import IMAGE, batch, model_of
from tests.small_qwen import loaded_from, save
from vtc.calibration import heads

PERIOD = 7


def looked_up(attention, earlier):
    """(echo, induction)[layer][KV head]: mean over distances of the mean attention to copies, and right behind them; of
    the two query heads that share a KV head the larger."""
    found = []
    for behind in (0, 1):
        layers = []
        for layer in attention:
            own = []
            for head in layer[0].double().tolist():
                means = [sum(head[q][k + behind] for q, k in pairs) / len(pairs) for pairs in earlier]
                own.append(sum(means) / len(means))
            layers.append([max(own[:2]), max(own[2:])])
        found.append(torch.tensor(layers))
    return found


def test_of_text():
    model = model_of("llava", "eager")
    ids = torch.randint(0, 99, (PERIOD,), generator=torch.Generator().manual_seed(5)).repeat(4)[None]
    with torch.no_grad():
        attention = model.model.language_model(input_ids=ids, output_attentions=True).attentions
        echo, induction = heads.of_text(model, PERIOD, 5)
    earlier = [[(q, q - d * PERIOD) for q in range(d * PERIOD, 4 * PERIOD)] for d in (1, 2, 3)]
    wanted = looked_up(attention, earlier)
    torch.testing.assert_close(echo, wanted[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(induction, wanted[1], rtol=1e-4, atol=1e-6)


def test_of_pictures():
    model, inputs = model_of("llava", "eager"), batch("llava", [[3, 3]])
    with torch.no_grad():
        attention = model(**inputs, output_attentions=True).attentions
        echo, induction = heads.of_pictures(model, inputs)
    slots = [i for i, token in enumerate(inputs["input_ids"][0].tolist()) if token == IMAGE]
    wanted = looked_up(attention, [list(zip(slots[36:], slots[:36], strict=True))])
    torch.testing.assert_close(echo, wanted[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(induction, wanted[1], rtol=1e-4, atol=1e-6)


def test_one_picture_is_not_twice_the_same():
    with pytest.raises(ValueError, match=r"^the prompt does not hold the same picture twice: calibrate on text "):
        heads.of_pictures(model_of("llava"), {"input_ids": torch.tensor([[1, IMAGE, 3]])})


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = save(tmp_path_factory.mktemp("qwen"))
    Image.effect_noise((112, 84), 80).convert("RGB").save(folder / "noise.png")
    return *loaded_from(folder), folder


def test_of_another_model(loaded, tmp_path):
    model, processor, folder = loaded
    pairs = [(folder / "noise.png", "what is there ?")]
    file = vtc.calibrate(model, "razor", pairs, out=tmp_path / "razor.json", processor=processor, period=9).path
    with pytest.raises(ValueError, match=r"^.*razor\.json is of another model \(qwen2_5_vl .*; this one is llava .*\)"):
        vtc.wrap(model_of("llava"), "razor", calibration=file)
    with pytest.raises(ValueError, match=r"^razor has heads= already: leave them out to find them\.$"):
        vtc.calibrate(model, vtc.Razor(heads=((0, 0),)), pairs, out=tmp_path / "x.json", processor=processor)
