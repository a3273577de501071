"""vtc.train: what it learns, what it writes, how it goes on after a kill, and what it refuses."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vtc
from tests.families import batch, model_of
from tests.small_qwen import loaded_from, save
from vtc.cli.main import main
from vtc.engine.encoded import Encoded
from vtc.methods.base import registry
from vtc.training import loop as training
from vtc.training.batches import IGNORED, Batches, expansion

pytest.importorskip("accelerate")
TINY = Path(__file__).resolve().parents[2] / "eval" / "data" / "tiny"
COLORS = {"red": "a", "blue": "b", "lime": "c", "white": "d"}
METHOD = vtc.VQToken(keep=4, cells=(2, 3, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and a toy task: which of four colours is it? Two questions about each."""
    folder = save(tmp_path_factory.mktemp("qwen"))
    lines = []
    for color, answer in COLORS.items():
        Image.new("RGB", (112, 84), color).save(folder / f"{color}.png")
        lines += [
            {"image": f"{color}.png", "question": question, "answer": answer}
            for question in ("what is there ?", "what moves ?")
        ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return loaded_from(folder)


def train(loaded, folder, out, **options):
    settings = {"processor": loaded[1], "steps": 8, "batch_size": 4, "lr": 1e-2, "checkpoint_every": 3, "log": None}
    return vtc.train(loaded[0], METHOD, folder / "data.jsonl", out=out, **{**settings, **options})


@pytest.fixture(scope="module")
def finished(loaded, folder, tmp_path_factory):
    return train(loaded, folder, tmp_path_factory.mktemp("finished") / "out", steps=40, batch_size=8, lr=2e-2)


# -- what it learns ------------------------------------------------------------------------------------------------


def test_the_loss_falls(finished, loaded, folder):
    assert len(finished.losses) == 40
    assert finished.losses[-1] < 0.5 * finished.losses[0]
    card = json.loads((finished.path / "module.json").read_text())
    assert (card["method"], card["model_type"], card["width"]) == ("vqtoken", "qwen2_5_vl", 32)
    assert card["tokens"] == [4, 4]
    assert card["training"]["steps"] == 40
    lines = [json.loads(line) for line in (finished.path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == finished.losses


def test_the_weights_that_come_back_are_those_that_were_trained(finished, loaded, folder):
    model, processor = loaded
    batches = Batches(model, processor, METHOD, vtc.read_samples(folder), 8, seed=5)
    with vtc.wrapped(model, "vqtoken", keep=4):
        before = float(training.answer_loss(model, batches(0)))
    with vtc.wrapped(model, "vqtoken", keep=4, weights=finished.path):
        after = float(training.answer_loss(model, batches(0)))
    assert after < 0.5 * before
    live = METHOD.training(vtc.VQToken(weights=finished.path).initial(32, 0))
    with vtc.wrapped(model, live):
        assert float(training.answer_loss(model, batches(0))) == after


def test_a_second_training_goes_on_where_the_weights_are(finished, loaded, folder, tmp_path):
    method = vtc.VQToken(keep=4, weights=finished.path)
    again = vtc.train(
        *(loaded[0], method, folder / "data.jsonl"),
        out=tmp_path / "out",
        processor=loaded[1],
        steps=1,
        batch_size=8,
        log=None,
    )
    assert again.losses[0] < 0.5 * finished.losses[0]
    assert vtc.VQToken(weights=again.path).option("cells") == (2, 3, 3)


def test_the_model_is_left_as_it_was(loaded, folder, tmp_path):
    model, _ = loaded
    model.lm_head.weight.requires_grad_(False)
    model.model.visual.train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    modes = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    with vtc.wrapped(model, "divprune", keep=3):
        engine = model._vtc_engine
        train(loaded, folder, tmp_path / "out", steps=2)
        assert model._vtc_engine is engine
    assert torch.get_rng_state().equal(state)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert [part.training for part in model.modules()] == modes
    assert all(before[name].equal(x) for name, x in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval().requires_grad_(True)


def test_a_function_of_the_step_is_data_too(tmp_path):
    model = model_of("llava")
    asked = []

    def data(step):
        asked.append(step)
        inputs = batch("llava", [[0], [1, 2]], side="right")
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        labels[0, 40], labels[1, 80] = 50, 51
        return {**inputs, "labels": labels}

    done = vtc.train(model, "vqtoken", data, out=tmp_path / "out", keep=4, steps=3, lr=1e-2, log=None)
    assert asked == [0, 1, 2]
    assert done.losses[2] < done.losses[0]


def test_it_logs(loaded, folder, tmp_path):
    lines = []
    train(loaded, folder, tmp_path / "out", steps=5, log_every=2, log=lines.append)
    assert [line.split("  ")[0] for line in lines] == ["step 2/5", "step 4/5", "step 5/5"]
    assert all("loss " in line and "lr " in line and "s/step" in line for line in lines)


def test_any_method_can_have_parameters(loaded, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @dataclass(frozen=True, kw_only=True)
    class Rescaled(vtc.TrainedMethod):
        """Every token that DivPrune keeps, times a learned vector."""

        name = "rescaled"

        def module(self, width):
            return torch.nn.Linear(width, width)

        def select(self, tokens):
            kept = vtc.DivPrune(keep=self.keep).select(tokens)
            net = self.net(tokens.features)
            return vtc.Selection(kept.anchor, kept.source, kept.weight, net(tokens.features[kept.anchor]))

    done = vtc.train(
        *(loaded[0], "rescaled", vtc.read_samples(folder)),
        out=tmp_path / "out",
        processor=loaded[1],
        keep=3,
        steps=4,
        batch_size=8,
        lr=1e-2,
        log=None,
    )
    assert done.losses[-1] < done.losses[0]
    with vtc.wrapped(loaded[0], "rescaled", keep=3, weights=done.path):
        assert loaded[0]._vtc_engine.methods[0].net(torch.zeros(2, 32)).weight.shape == (32, 32)


# -- kills ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["steps", "moves"])
def test_a_killed_run_ends_as_if_it_had_not_been(between, loaded, folder, tmp_path):
    whole = train(loaded, folder, tmp_path / "whole")

    def kill(line):
        if line.startswith("step 5/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(loaded, folder, tmp_path / "killed", log=kill, log_every=1)
    assert not (tmp_path / "killed" / "module.json").exists()
    assert "_vtc_engine" not in loaded[0].__dict__
    if between == "moves":  # the new checkpoint is whole, the old one gone, and the new one not yet in its place
        (tmp_path / "killed" / "checkpoint").rename(tmp_path / "killed" / "checkpoint.new")
    steps = []
    done = train(loaded, folder, tmp_path / "killed", log=steps.append, log_every=1)
    assert steps[0].startswith("step 4/8")  # the checkpoint was of step 3
    assert done.losses == whole.losses
    for name in ("module.safetensors", "module.json"):
        assert (done.path / name).read_bytes() == (whole.path / name).read_bytes()
    again = train(loaded, folder, tmp_path / "killed", log=steps.append)
    assert again.losses == whole.losses
    assert len(steps) == 5


def test_what_a_folder_already_holds(finished, loaded, folder, tmp_path):
    out = tmp_path / "out"
    train(loaded, folder, out, steps=1)
    with pytest.raises(ValueError, match=r"holds a training with lr=0\.01, not 0\.02: give another folder"):
        train(loaded, folder, out, steps=1, lr=0.02)
    with pytest.raises(ValueError, match="holds a training with steps=1, not 2"):
        train(loaded, folder, out, steps=2)
    same = {"processor": loaded[1], "steps": 1, "batch_size": 4, "lr": 1e-2, "checkpoint_every": 3}
    others = [vtc.Sample(one.question, "other", one.image, one.video) for one in vtc.read_samples(folder)]
    with pytest.raises(ValueError, match="holds a training with digest="):
        vtc.train(loaded[0], METHOD, others, out=out, **same)
    with pytest.raises(ValueError, match=r"holds a training with model='qwen2_5_vl of width \d+', not 'llava of width"):
        vtc.train(model_of("llava"), METHOD, folder, out=out, **same)
    for file in (out / "checkpoint").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="holds finished weights: give another folder"):
        train(loaded, folder, out, steps=1)


# -- batches -------------------------------------------------------------------------------------------------------


def test_rows_are_what_the_processor_makes(loaded, folder):
    model, processor = loaded
    samples = vtc.read_samples(folder)
    given = Batches(model, processor, METHOD, samples, 8, seed=0)(0)
    for ids, mask, types, labels in zip(
        *(given[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels")), strict=True
    ):
        (answer,) = processor.batch_decode([labels[labels != IGNORED][:-1]])
        color = {value: key for key, value in COLORS.items()}[answer.strip()]
        question = "what is there ?" if processor.tokenizer.convert_tokens_to_ids("there") in ids else "what moves ?"
        expected = processor(
            text=[vtc.prompt(processor, question)], images=[[Image.open(folder / f"{color}.png")]], return_tensors="pt"
        )
        length = expected["input_ids"].shape[1]
        own = mask.bool()
        assert labels[own][:length].eq(IGNORED).all()
        assert ids[own][:length].equal(expected["input_ids"][0])
        assert types[own][:length].equal(expected["mm_token_type_ids"][0].to(types))
        assert ids[own][length:].equal(labels[own][length:])
        assert ids[-1] == model.generation_config.eos_token_id


def test_rows_of_tiny_llava():
    model, processor = vtc.load("tiny-llava")
    samples = [vtc.Sample(s.question, s.answer, image=s.image) for s in vtc.read_samples(TINY)[:3]]
    given = Batches(model, processor, METHOD, samples, 3, seed=0)(0)
    for sample in samples:
        text = vtc.prompt(processor, sample.question)
        expected = processor(text=text, images=vtc.load_picture(str(sample.image)), return_tensors="pt")["input_ids"][0]
        rows = [
            ids[mask.bool()][: len(expected)]
            for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True)
        ]
        assert any(row.equal(expected) for row in rows)


@pytest.mark.parametrize(
    ("short", "full", "found"),
    [
        ([1, 9, 2], [1, 9, 9, 9, 2], (1, 1, [9, 9])),
        ([1, 9, 2], [1, 9, 2], (1, 1, [])),
        ([1, 7, 9, 8, 2], [1, 40, 7, 9, 9, 8, 41, 7, 9, 9, 8, 2], (-1, 0, [40, 7, 9, 9, 8, 41, 7, 9])),
        ([9], [5, 9, 9, 6], (0, 1, [5, 9, 9, 6])),
    ],
)
def test_how_a_placeholder_was_spelled_out(short, full, found):
    before, after, ids = expansion(short, full, 9)
    at = short.index(9)
    assert short[: at + before] + ids + short[at + after :] == full
    assert (before, after) == found[:2] or full == short


def test_every_sample_comes_once_in_an_epoch_and_the_order_is_a_matter_of_the_seed(loaded, folder):
    model, processor = loaded
    samples = vtc.read_samples(folder)

    def orders(seed):
        batches = Batches(model, processor, METHOD, samples, 3, seed)
        return [batches._shuffled(epoch) for epoch in range(4)]

    assert all(sorted(order) == list(range(8)) for order in orders(0))
    assert orders(0) == orders(0) != orders(1)
    assert orders(0)[0] != orders(0)[1]


def test_a_picture_is_encoded_once(loaded, folder):
    model, processor = loaded
    calls = []
    handle = model.model.visual.register_forward_pre_hook(lambda *_: calls.append(1))
    samples = vtc.read_samples(folder)
    kept, anew = (Batches(model, processor, METHOD, samples, 8, 0, cache_bytes=room) for room in (1e9, 0))
    for batches, expected in ((kept, 4), (anew, 12)):
        calls.clear()
        first = [batches(step) for step in (0, 1, 0)]
        assert len(calls) == expected
        assert first[0]["input_ids"].equal(first[2]["input_ids"])
    handle.remove()


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_runs_joined(family):
    model, rows = model_of(family), [[0], [1, 2], [1]]
    inputs = batch(family, rows)
    text = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")}
    parts = [vtc.encode(model, "vtc-cls", **batch(family, [own])) for own in ([0], [1, 2])]
    joined = Encoded.join(parts)
    assert len(joined) == 3
    assert joined.size == sum(part.size for part in parts)
    with vtc.wrapped(model, "vtc-cls", keep=0.3):
        expected = model(**inputs).logits
        logits = model(**text, **joined.take([0, 1, 2, 1])).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


# -- videos, from the command line ---------------------------------------------------------------------------------


def test_the_command_on_videos(folder, tmp_path, capsys):
    pytest.importorskip("av")
    from tests.media.test_video import write

    write(tmp_path / "clip.mp4", 16, (112, 84))
    write(tmp_path / "other.mp4", 12, (112, 84))
    lines = [
        {"video": "clip.mp4", "question": "what moves ?", "answers": ["a", "b"]},
        {"video": "other.mp4", "question": "what moves ?", "answer": "b"},
        {"image": str(folder / "red.png"), "question": "what is there ?", "answer": "c"},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = ["train", "--model", str(folder), "--data", str(tmp_path), "--method", "vqtoken", "--keep", "4"]
    rest = ["--out", str(tmp_path / "out"), "--steps", "2", "--batch-size", "3", "--frames", "4", "--log-every", "1"]
    assert main([*command, *rest]) == 0
    out = capsys.readouterr().out
    assert "step 2/2  loss " in out
    assert f"weights: {tmp_path / 'out'}" in out
    ask = ["ask", "--model", str(folder), "--question", "what moves ?", "--video", str(tmp_path / "clip.mp4")]
    trained = ["--method", "vqtoken", "--keep", "4", "--weights", str(tmp_path / "out"), "--max-new-tokens", "2"]
    assert main([*ask, "--frames", "4", *trained]) == 0
    assert " 4 (" in capsys.readouterr().out
    assert main([*ask, "--weights", str(tmp_path / "out")]) == 2
    assert "--weights is about what a method keeps" in capsys.readouterr().err


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"steps=0 is not a whole number of 1 or more"),
        ({"steps": 2.0}, r"steps=2\.0 is not a whole number"),
        ({"batch_size": -1}, r"batch_size=-1 is not a whole number"),
        ({"lr": float("nan")}, r"lr=nan is not a number of 0 or more"),
        ({"lr": "fast"}, r"lr='fast' is not a number"),
        ({"warmup": -0.1}, r"warmup=-0\.1 is not a number of 0 or more"),
        ({"checkpoint_every": 0}, r"checkpoint_every=0 is not a whole number of 1 or more: it is a number of steps"),
        ({"log_every": 0}, r"log_every=0 is not a whole number of 1 or more"),
        ({"processor": None}, r"samples are read with the model's processor: pass processor="),
        ({"keep": 1000}, r"nothing to train: no picture of batch 0 has more tokens than vqtoken keeps"),
    ],
)
def test_bad_numbers_are_one_sentence(options, message, loaded, folder, tmp_path):
    with pytest.raises((ValueError, TypeError), match=f"^{message}[^\n]*$"):
        train(loaded, folder, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "module.json").exists()
    assert "_vtc_engine" not in loaded[0].__dict__


def test_bad_methods_and_data(loaded, finished, folder, tmp_path, monkeypatch):
    model, processor = loaded

    def attempt(method: Any = "vqtoken", data: Any = folder / "data.jsonl", model=model, **options):
        vtc.train(model, method, data, out=tmp_path / "out", processor=processor, steps=1, log=None, **options)

    with pytest.raises(ValueError, match=r"divprune has no parameters to train; methods that have: vqtoken"):
        attempt("divprune")
    with pytest.raises(TypeError, match=r"vqtoken has no option 'rolls'"):
        attempt(rolls="codes")
    with pytest.raises(ValueError, match=r"weights in .* were trained for qwen2_5_vl of width 32; this model is llava"):
        attempt(vtc.VQToken(weights=finished.path), model=model_of("llava"))
    with pytest.raises(ValueError, match="the dataset is empty"):
        attempt(data=[])
    with pytest.raises(ValueError, match="is about nothing: give it an image or a video"):
        attempt(data=[vtc.Sample("what is there ?", "a")])
    with pytest.raises(FileNotFoundError, match="there is no file of samples at"):
        attempt(data=tmp_path / "none.jsonl")
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'vtc-vlm\[train\]'"):
        attempt()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2, is not a sample"),
        ('{"question": "q", "answer": "a"}', "it needs an 'image' or a 'video'"),
        ('{"image": "red.png", "video": "x.mp4", "question": "q", "answer": "a"}', "one of them"),
        ('{"image": "red.png", "answer": "a"}', "'question' is missing"),
        ('{"image": "red.png", "question": "q"}', "'answer' is missing"),
        ('{"image": "red.png", "question": "q", "answers": []}', "'answers' is .*, not a list of one or more"),
        ('{"image": "red.png", "question": "q", "answers": "left"}', "'answers' is 'left', not a list"),
        ('{"image": "red.png", "question": "q", "answer": null}', "its answer is None, not a word or a number"),
        ('{"image": "red.png", "question": "q", "answer": NaN}', "its answer is nan, not a word or a number"),
        ('{"image": "red.png", "question": "q", "answer": -1e999}', "its answer is -inf, not a word or a number"),
        ("[" * 100_000, "is not a sample: maximum recursion depth exceeded"),
        ('{"image": "red.png", "question": "q", "answer": ["a"]}', "its answer is .*, not a word or a number"),
        ('{"image": "red.png", "question": 3, "answer": "a"}', "its question is 3, not a text"),
        ('{"image": "red.png", "question": " ", "answer": "a"}', "its question is ' ', not a text"),
        ('{"image": 7, "question": "q", "answer": "a"}', "its 'image' is 7, not a path"),
        ('{"image": "gone.png", "question": "q", "answer": "a"}', r"names .*gone\.png, which does not exist"),
    ],
)
def test_bad_lines(line, message, folder, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "red.png")
    (tmp_path / "data.jsonl").write_text('{"image": "red.png", "question": "q", "answer": "a"}\n' + line + "\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        vtc.read_samples(tmp_path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"holds 0 \.jsonl files, not one"):
        vtc.read_samples(tmp_path)
    (tmp_path / "data.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no samples"):
        vtc.read_samples(tmp_path)


def test_labels_that_ask_for_nothing(tmp_path):
    inputs = batch("llava", [[0]])

    def data(step):
        return {**inputs, "labels": torch.full_like(inputs["input_ids"], IGNORED)}

    with pytest.raises(ValueError, match="the labels of a batch ask for nothing"):
        vtc.train(model_of("llava"), "vqtoken", data, out=tmp_path / "out", keep=4, steps=1, log=None)
