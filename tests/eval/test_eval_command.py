"""`vtc eval` from outside: what it does by default, several models, sets of other forms, and how it refuses."""

import json
import re

import pytest
from PIL import Image

from tests.eval.runs import few
from tests.small_qwen import save
from vtc.cli.main import main
from vtc.eval import cli, runner
from vtc.eval.settings import Settings

QUICK = ["--methods", "pool", "--keep", "9", "--timing", "0", "--max-new-tokens", "2", "--device", "cpu"]
ROWS = [("a.png", "What color is it?", "red"), ("a.png", "Is it red?", "yes")]


@pytest.fixture
def asked(monkeypatch):
    """The settings that the command comes to; nothing is run."""
    found = []

    def stop(settings, *more):
        found.append(settings)
        raise ValueError("enough")

    monkeypatch.setattr(runner, "evaluate", stop)

    def settings(*options):
        assert main(["eval", *options]) == 2
        return found[-1]

    return settings


def test_without_options_it_is_a_glance(asked):
    assert asked() == Settings(limit=cli._GLANCE)
    assert asked("--limit", "7") == Settings(limit=7)
    assert asked("--data", "tiny") == Settings(data="tiny")


def test_a_file_of_settings_decides_itself(asked, tmp_path):
    (tmp_path / "a.toml").write_text("keep = 3")
    assert asked("--config", str(tmp_path / "a.toml")) == Settings(keep=(3,))


def test_models_and_columns(asked):
    given = asked("--model", "tiny-llava", "--model", "tiny-qwen", "--columns", "image=picture, question=the question")
    assert given.models == ("tiny-llava", "tiny-qwen")
    assert given.columns == {"image": "picture", "question": "the question"}


def test_two_models_are_counted_together(tmp_path, capsys):
    save(tmp_path / "small")
    models = ["--model", "tiny-llava", "--model", str(tmp_path / "small")]
    out = tmp_path / "runs"
    assert main(["eval", *models, *QUICK, "--data", str(few(tmp_path, 2)), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert {folder.name for folder in out.iterdir() if folder.is_dir()} == {"tiny-llava", "small"}
    assert captured.out.count("few: 2 questions on") == 2  # a table each
    answers = 2 * len(list(out.glob("*/*/samples.jsonl")))
    assert re.findall(r"answers .*?(\d+/\d+)", captured.err)[-1] == f"{answers}/{answers}"


def test_a_semicolon_file_under_other_names(tmp_path, capsys):
    Image.new("RGB", (50, 50), "red").save(tmp_path / "a.png")
    text = "\n".join(";".join(row) for row in [("picture", "q", "label"), *ROWS])
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8-sig")
    columns = "image=picture,question=q,answer=label"
    run = ["eval", *QUICK, "--data", str(tmp_path / "mine.csv"), "--out", str(tmp_path / "runs")]
    assert main([*run, "--columns", columns]) == 0
    assert "mine: 2 questions on 1 pictures" in capsys.readouterr().out
    lines = (tmp_path / "runs" / "tiny-llava" / "full" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["references"] for line in lines] == [["red"], ["yes"]]


def test_columns_that_are_not_read_are_named(tmp_path, capsys):
    data = few(tmp_path, 2, choises=["a", "b"])
    assert main(["eval", *QUICK, "--data", str(data), "--out", str(tmp_path / "runs")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "few.jsonl: not read, as no field of a question is called so: 'choises' (Did you mean 'choices'?)" in said


REFUSED = [
    (["--columns", "picture"], "'picture' does not name columns by field: write image=picture,question=q"),
    (["--columns", "image=a,image=b"], "does not name columns by field"),
    (["--columns", "imgae=picture"], "a question has no field 'imgae'. Did you mean 'image'?"),
    (["--columns", "q=question"], "a question has no field 'q'. Did you mean question=q?"),
    (["--columns", "image=picture"], "has no column 'picture', which was to be 'image'. There are: id, image"),
    (["--model", "tiny-llava", "--model", "tiny-llava"], "models is ('tiny-llava', 'tiny-llava'): expected each once"),
    (["--data", "tiny-vido"], "no data set 'tiny-vido'. Did you mean 'tiny-video'?"),
    (["--data", "latin.csv"], "latin.csv is not UTF-8 text but perhaps Latin-1 (byte 31, in line 2): save it as UTF-8"),
    (["--data", "object.json"], "object.json is one object with 'data': give the array of questions alone"),
    (["--data", "names.csv"], "'image' or 'video' is missing (there are 'picture': name what it is called with"),
    (["--data", "a.png"], "a.png is none of .jsonl, .json, .csv, .tsv"),
    (["--config", "a.png"], "a.png: settings are read from files whose names end in .toml, .json, .yaml, .yml"),
    (["--config", "keys.json"], "keys.json: there is no setting 'method'. Did you mean 'methods'?"),
    (["--config", "cut.json"], "cut.json: malformed JSON"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=[" ".join(options) for options, _ in REFUSED])
def test_a_refusal_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("a.png")
    for name, text in {
        "latin.csv": "image,question,answer\na.png,caf\xe9?,x\n",
        "object.json": '{"data":\n []}',
        "names.csv": "picture,question,answer\na.png,What?,x\n",
        "keys.json": '{"method": "pool"}',
        "cut.json": '{"keep": ',
    }.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    before = sorted(path.name for path in tmp_path.iterdir())
    try:
        status = main(["eval", *options])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
