"""vtc.calibrate: what it finds, what it writes, how it goes on after a stop, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image

import vtc
from tests.families import batch, model_of
from tests.small_qwen import loaded_from, save
from vtc.calibration.calibrate import lock_of
from vtc.calibration.pairs import read_pairs
from vtc.cli.main import main
from vtc.engine.encoding import Remeasured
from vtc.lock import alone
from vtc.models.fingerprint import fingerprint_of

COLORS = ("red", "blue", "lime")
METHOD = "vflowopt(keep=0.5, threshold=1.0)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and three pictures of noise with a question each and no answers."""
    folder = save(tmp_path_factory.mktemp("qwen"))
    lines = []
    for i, color in enumerate(COLORS):
        picture = Image.effect_noise((112, 84), 60 + 40 * i).convert("RGB")
        picture.save(folder / f"{color}.png")
        lines.append({"image": f"{color}.png", "question": "what is there ?"})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return loaded_from(folder)


def calibrate(loaded, folder, out, method: Any = "vflowopt", **options):
    settings: Any = {"processor": loaded[1], "keep": 0.5, "pairs": 2, "trials": 4}
    return vtc.calibrate(loaded[0], method, folder / "data.jsonl", out=out, **{**settings, **options})


@pytest.fixture(scope="module")
def finished(loaded, folder, tmp_path_factory):
    return calibrate(loaded, folder, tmp_path_factory.mktemp("finished") / "deep" / "flow.json")


def test_what_is_written(finished, loaded):
    card = json.loads(finished.path.read_text())
    assert card["method"] == "vflowopt"
    assert card["keep"] == 0.5
    assert card["options"] == finished.options
    assert set(finished.options) == {"r1", "r2", "threshold", "cell", "alpha"}
    assert card["model"] == {"type": "qwen2_5_vl", "fingerprint": fingerprint_of(loaded[0])}
    assert len(card["trials"]) == len(finished.trials) == 5
    assert card["objective"] == {"before": finished.before, "after": finished.after}
    assert finished.after == max(trial.objective for trial in finished.trials) >= finished.before
    assert [file.name for file in finished.path.parent.iterdir()] == ["flow.json"]


def test_before_is_the_method_as_it_is_and_after_the_one_that_the_file_makes(finished, loaded, folder):
    """The cosine of the last token's state behind the last norm, as transformers itself hands it out."""
    model, processor = loaded
    chosen = read_pairs(folder / "data.jsonl", 2, 0).chosen
    for method, objective in (
        (vtc.VFlowOpt(keep=0.5), finished.before),
        (vtc.resolve("vflowopt", calibration=finished.path), finished.after),
    ):
        cosines = []
        for pair in chosen:
            inputs = pair.inputs(processor, None, None)
            with torch.no_grad():
                full = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1].tolist()
                with vtc.wrapped(model, method):
                    cut = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1].tolist()
            product = sum(a * b for a, b in zip(full, cut, strict=True))
            cosines.append(product / (sum(a * a for a in full) * sum(b * b for b in cut)) ** 0.5)
        assert objective == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)


def test_the_file_brings_its_budget_and_its_numbers(finished, loaded):
    file = str(finished.path)
    for method in (
        vtc.resolve("vflowopt", calibration=file),
        vtc.resolve(f"vflowopt(calibration='{file}')"),
        vtc.VFlowOpt(keep=0.5, calibration=finished.path),
        vtc.Method.from_dict(vtc.VFlowOpt(keep=0.5, calibration=file).as_dict()),
        vtc.resolve(str(vtc.VFlowOpt(keep=0.5, calibration=file))),
    ):
        assert method.keep == 0.5
        for name, value in finished.options.items():
            assert method.option(name) == value  # type: ignore[attr-defined]
    vtc.unwrap(vtc.wrap(loaded[0], "vflowopt", calibration=file))


def test_a_calibration_of_something_else_is_refused(finished, loaded, tmp_path):
    file = finished.path
    with pytest.raises(ValueError, match=r"is of another model \(qwen2_5_vl \w+; this one is llava \w+\): run"):
        vtc.wrap(model_of("llava"), "vflowopt", calibration=file)
    with pytest.raises(ValueError, match=r"keep=0.25, but .* was found for keep=0.5: give that"):
        vtc.VFlowOpt(keep=0.25, calibration=file)
    with pytest.raises(ValueError, match=r"cell=3.5, but .* says cell="):
        vtc.VFlowOpt(keep=0.5, cell=3.5, calibration=file)
    with pytest.raises(FileNotFoundError, match=r"there is no calibration at .*none.json: vtc.calibrate writes one"):
        vtc.wrap(loaded[0], "vflowopt", calibration=tmp_path / "none.json")
    card = json.loads(file.read_text())
    for name, change, says in (
        ("method", {"method": "razor"}, "is a calibration of razor in format 1; expected vflowopt"),
        ("format", {"format": 9}, "in format 9; expected vflowopt in format 1"),
        ("options", {"options": {"seed": 3}}, "says 'seed', which vflowopt does not calibrate"),
        ("model", {"model": 3}, "is no calibration"),
    ):
        wrong = tmp_path / f"{name}.json"
        wrong.write_text(json.dumps(card | change))
        with pytest.raises(ValueError, match=says):
            vtc.VFlowOpt(keep=0.5, calibration=wrong)
    (tmp_path / "text.json").write_text("{]")
    with pytest.raises(ValueError, match="is no calibration"):
        vtc.VFlowOpt(keep=0.5, calibration=tmp_path / "text.json")


def test_one_checkpoint_has_one_fingerprint_in_every_precision(loaded, folder):
    own = fingerprint_of(loaded[0])
    assert fingerprint_of(vtc.load(folder, dtype="bfloat16")[0]) == own
    other, _ = vtc.load(folder)
    with torch.no_grad():
        other.model.language_model.norm.weight.mul_(1.5)
    assert fingerprint_of(other) != own
    families = [fingerprint_of(model_of(family)) for family in ("llava", "llava_next", "llava_siglip", "qwen2_vl")]
    assert len(set(families)) == 4


class Stopped(Exception):
    pass


def stopping(after):
    def progress(what, done, total):
        if what == "trials" and done == after:
            raise Stopped

    return progress


@pytest.mark.parametrize("after", [1, 3])
def test_a_stopped_run_goes_on_to_the_same_end(after, finished, loaded, folder, tmp_path):
    out = tmp_path / "flow.json"
    with pytest.raises(Stopped):
        calibrate(loaded, folder, out, progress=stopping(after))
    kept = tmp_path / "flow.json.trials"
    assert not out.exists()
    with kept.open("a") as file:
        file.write('{"values": {"r1": 0.5')  # a kill in the middle of a line
    with pytest.raises(ValueError, match="holds a calibration with trials=4, not 9"):
        calibrate(loaded, folder, out, trials=9)
    asked = []
    again = calibrate(loaded, folder, out, progress=lambda *told: asked.append(told))
    assert [done for what, done, _ in asked if what == "trials"] == [*range(after, 6)]
    assert again.trials == finished.trials
    assert json.loads(out.read_text()) == json.loads(finished.path.read_text())
    assert not kept.exists()
    with pytest.raises(ValueError, match="is there already"):
        calibrate(loaded, folder, out)


def test_two_at_once_are_kept_apart(loaded, folder, tmp_path):
    out = tmp_path / "flow.json"
    says = r"another calibration is at work on .*flow.json: wait for it"
    with alone(lock_of(out), "busy"), pytest.raises(ValueError, match=says):
        calibrate(loaded, folder, out)
    assert calibrate(loaded, folder, out, trials=1).path == out


def test_a_model_that_is_not_in_memory_has_no_fingerprint(folder):
    model, _ = vtc.load(folder)
    model.model.language_model.norm.to("meta")
    with pytest.raises(ValueError, match="is not in memory as a whole"):
        fingerprint_of(model)


def test_the_model_is_left_as_it_was(finished, loaded):
    model, _ = loaded
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model._forward_hooks
    assert "_vtc_engine" not in model.__dict__


def test_one_pair_and_pictures_that_are_looked_at_anew(loaded, folder, tmp_path):
    one = calibrate(loaded, folder, tmp_path / "a.json", pairs=1, trials=2)
    again = calibrate(loaded, folder, tmp_path / "b.json", pairs=1, trials=2, cache_bytes=0)
    assert one.trials == again.trials
    listed = [(Image.open(folder / "red.png"), "what is there ?"), (folder / "blue.png", "what moves ?")]
    settings: Any = dict(processor=loaded[1], keep=0.5, trials=1)
    assert len(vtc.calibrate(loaded[0], "vflowopt", listed, out=tmp_path / "c.json", **settings).trials) == 2


def test_a_count_is_calibrated_for_as_a_count(loaded, folder, tmp_path):
    found = calibrate(loaded, folder, tmp_path / "count.json", keep=6, trials=3)
    assert isinstance(found.options["r1"], int)
    assert 6 <= found.options["r1"] <= 9
    method = vtc.resolve("vflowopt", calibration=found.path)
    assert (method.keep, method.option("r1")) == (6, found.options["r1"])  # type: ignore[attr-defined]
    method.parts()[1].counts(12, 3)  # type: ignore[attr-defined]


def test_no_pairs_and_what_else_is_refused(loaded, folder, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    out = tmp_path / "out.json"
    for wrong, says in (
        (dict(pairs=0), "pairs=0 is not a whole number of 1 or more"),
        (dict(trials=0), "trials=0 is not a whole number of 1 or more"),
        (dict(seed=-1), "seed=-1"),
        (dict(method="vflowopt(average=False)"), "is calibrated for an average over the layers"),
        (dict(method="fastv"), "fastv has nothing to calibrate; methods that have: .*vflowopt"),
        (dict(out=tmp_path), "is a folder"),
    ):
        with pytest.raises((ValueError, TypeError), match=says):
            calibrate(loaded, folder, **{"out": out, **wrong})
    given: list[tuple[Any, str]] = [
        ([], "there are no pairs of a picture and a question"),
        ([("gone.png", "what ?")], "there is no picture at gone.png"),
        ([(folder / "red.png", " ")], "is no pair"),
        ([3], "is no pair"),
        (3, "data is int"),
        (tmp_path / "empty.jsonl", "holds no questions"),
    ]
    for data, says in given:
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match=says):
            vtc.calibrate(loaded[0], "vflowopt", data, out=out, processor=loaded[1], keep=0.5)
    with vtc.wrapped(loaded[0], "random"), pytest.raises(ValueError, match=r"is wrapped: vtc.unwrap it"):
        calibrate(loaded, folder, out)
    assert not out.exists()


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "internvl"])
def test_signals_measured_anew_are_those_of_a_run_of_their_own(family):
    model, inputs = model_of(family), batch(family, [[1]])
    first = Remeasured(model, vtc.VFlowOpt(alpha=1.0, threshold=1.0), dict(inputs))
    for threshold in (0.0, 1.3, 9.0, 1.3):
        method = vtc.VFlowOpt(threshold=threshold, alpha=0.1)
        again, own = first.of(method).take([0]), vtc.encode(model, method, **inputs).take([0])
        packed = [x["mm_encoder_outputs"]["image"]["vtc"]["signals"] for x in (again, own)]
        assert packed[0].keys() == packed[1].keys()
        for name, value in packed[0].items():
            torch.testing.assert_close(value, packed[1][name])
    assert first.size > 0


def test_a_method_of_ones_own_needs_no_search(loaded, folder, tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Longest(vtc.CalibratedMethod):
        """Keeps the longest features."""

        bar: float | None = None
        tuned = {"bar": 0.0}  # noqa: RUF012

        def score(self, tokens):
            return tokens.features.norm(dim=-1) - self.option("bar")

        def calibrated(self, work):
            return {"bar": sum(len(one.words["input_ids"][0]) for one in work.ready()) / len(work.pairs)}

    found = calibrate(loaded, folder, tmp_path / "bar.json", method=Longest(keep=0.5), keep=None)
    assert found.trials == ()
    assert found.before is found.after is None
    assert found.options["bar"] > 3
    assert Longest(keep=0.5, calibration=found.path).option("bar") == found.options["bar"]


def test_the_command(folder, tmp_path, capsys):
    out = tmp_path / "flow.json"
    line = ["calibrate", "--model", str(folder), "--data", str(folder), "--method", "vflowopt", "--keep", "0.5"]
    line += ["--pairs", "30", "--trials", "1", "--out", str(out)]
    assert main(line) == 0
    said = capsys.readouterr()
    assert f"calibration: {out}" in said.out
    assert "objective" in said.out
    assert "there are 3 pairs only" in said.err
    assert main(line) == 2
    assert "is there already" in capsys.readouterr().err
