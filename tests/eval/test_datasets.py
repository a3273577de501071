"""Question sets: shipped, published, and a user's own file or saved data set with its possible mistakes."""

import json
import sys

import pytest
from PIL import Image

from vtc.eval import datasets

GOOD = {"id": "7", "image": "a.png", "question": "What is it?", "answer": "star", "task": "object"}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return tmp_path


def written(folder, *lines, name="mine.jsonl"):
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_the_shipped_set_is_whole():
    data = datasets.load("tiny")
    assert len(data.questions) >= 2000
    assert len({question.media.name for question in data.questions}) >= 400
    assert {"color", "object", "existence", "count", "position", "reading", "caption"} <= set(data.tasks)
    assert all(bool(question.objects) == (question.task == "caption") for question in data.questions)
    assert data.kinds == ["image"]


def test_easy_vqa_is_the_published_test_split():
    data = datasets.load("easy-vqa")
    assert len(data.questions) == 9673
    assert set(data.tasks) == {"shape", "color", "existence", "negation"}
    assert {q.answers[0] for q in data.questions if q.task == "negation"} == {"yes", "no"}
    assert data.questions[0].media.picture().size == (64, 64)


def test_a_file_and_its_folder(folder):
    path = written(folder, GOOD, "", {**GOOD, "id": "8", "answers": ["a star", "star"]})
    data = datasets.load(path)
    assert data == datasets.Dataset("mine", datasets.load(folder).questions)
    assert [question.answers for question in data.questions] == [("star",), ("a star", "star")]
    assert data.questions[0].media.file == folder / "a.png"
    assert [question.id for question in data.first(1).questions] == ["7"]


def test_what_is_optional(folder):
    data = datasets.load(written(folder, {"image": "a.png", "question": "What?", "answer": 3}))
    assert (data.questions[0].id, data.questions[0].task, data.questions[0].answers) == ("1", "all", ("3",))


def test_videos_choices_and_metrics(folder):
    (folder / "clip.mp4").write_bytes(b"?")
    line = {"video": "clip.mp4", "question": "What?", "answer": "B", "choices": ["red", "blue"], "metric": "choice"}
    (found,) = datasets.load(written(folder, line)).questions
    assert (found.media.kind, found.answers, found.metric) == ("video", ("blue",), "choice")
    assert found.choices == ("red", "blue")


def test_a_csv_file(folder):
    text = (
        "\ufeffid,image,question,answer,answers,choices,task\n"
        '1,a.png,"Red, or not?",red,,"[""red"", ""green""]",color\n'
        ",a.png,How many?,,3|three,,count\n"
    )
    (folder / "mine.csv").write_text(text, encoding="utf-8")
    first, second = datasets.load(folder / "mine.csv").questions
    assert (first.id, first.question, first.choices, first.task) == ("1", "Red, or not?", ("red", "green"), "color")
    assert (second.id, second.answers, second.choices) == ("3", ("3", "three"), ())


def test_a_saved_data_set(folder):
    hub = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (4 + i, 4), "red") for i in range(2)]
    columns = {"image": pictures, "question": ["What?", "How?"], "answers": [["a", "b"], ["c"]], "task": ["x", "y"]}
    table = hub.Dataset.from_dict(columns).cast_column("image", hub.Image())
    table.save_to_disk(str(folder / "saved"))
    data = datasets.load(folder / "saved")
    assert [(q.id, q.answers, q.task) for q in data.questions] == [("0", ("a", "b"), "x"), ("1", ("c",), "y")]
    assert [q.media.picture().size for q in data.questions] == [(4, 4), (5, 4)]
    assert data.questions[0].media.name != data.questions[1].media.name
    for color in ("red", "blue"):  # saving keeps the last part of a path, so that both are picture.png
        (folder / color).mkdir()
        Image.new("RGB", (4, 4), color).save(folder / color / "picture.png")
    files = [str(folder / color / "picture.png") for color in ("red", "blue")]
    same = {"image": files, "question": ["a", "b"], "answer": ["a", "b"]}
    hub.Dataset.from_dict(same).cast_column("image", hub.Image()).save_to_disk(str(folder / "same"))
    data = datasets.load(folder / "same")
    assert data.questions[0].media.name != data.questions[1].media.name
    assert data.questions[0].media.picture().getpixel((0, 0)) != data.questions[1].media.picture().getpixel((0, 0))
    hub.DatasetDict({"test": table}).save_to_disk(str(folder / "splits"))
    with pytest.raises(ValueError, match=r"several splits: give one of .*test"):
        datasets.load(folder / "splits")
    assert len(datasets.load(folder / "splits" / "test").questions) == 2


def test_a_saved_data_set_with_a_bad_row(folder):
    hub = pytest.importorskip("datasets")
    table = hub.Dataset.from_dict({"image": ["b.png"], "question": ["?"], "answer": ["a"]})
    table.save_to_disk(str(folder / "saved"))
    with pytest.raises(FileNotFoundError, match=r"row 0, is not a question: there is no image at .*b\.png"):
        datasets.load(folder / "saved")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "malformed JSON"),
        ("[1, 2]", "it is a list"),
        ({"image": "a.png", "answer": "x"}, "'question' is missing"),
        ({"image": "a.png", "question": "What?"}, "'answer' is missing"),
        ({"question": "What?", "answer": "x"}, "'image' or 'video' is missing"),
        ({**GOOD, "video": "a.mp4"}, "both 'image' and 'video'"),
        ({**GOOD, "answers": []}, "at least one"),
        ({**GOOD, "answers": "star"}, "'answers' is text, not a list"),
        ({**GOOD, "answers": ["a", {"b": 1}]}, "an entry of 'answers' is an object"),
        ({**GOOD, "answer": True}, "'answer' is true or false"),
        ({**GOOD, "answer": float("nan")}, "'answer' is nan, which is no number: put it in quotes"),
        ({**GOOD, "answers": ["a", float("-inf")]}, "an entry of 'answers' is -inf, which is no number"),
        ({**GOOD, "id": float("inf")}, "'id' is inf, which is no number"),
        ({**GOOD, "question": 3}, "'question' is a number, not text"),
        ({**GOOD, "question": "  "}, "'question' is empty"),
        ({**GOOD, "image": 3}, "'image' is not the path of a file"),
        ({**GOOD, "task": ["a"]}, "'task' is a list"),
        ({**GOOD, "choices": ["red", "blue"]}, "none of the choices"),
        ({**GOOD, "choices": ["star", "star"]}, "some of them alike"),
        (GOOD, "its id '7' is that of .*line 1: ids must differ"),
    ],
)
def test_a_line_that_is_no_question(folder, line, said):
    with pytest.raises(ValueError, match=f"line 2, is not a question: .*{said}"):
        datasets.load(written(folder, GOOD, line))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,question,answer\na.png,Red, or not?,red\n", "more cells than the first line"),
        ("image,question,answer\na.png,What?\n", "'answer' is missing"),
        ('image,question,answers\na.png,What?,"[""a"""\n', "'answers' is not a JSON list"),
    ],
)
def test_a_bad_line_of_a_csv_file(folder, text, said):
    (folder / "mine.csv").write_text(text)
    with pytest.raises(ValueError, match=f"line 2, is not a question: .*{said}"):
        datasets.load(folder / "mine.csv")


def test_missing_things(folder):
    with pytest.raises(FileNotFoundError, match=r"no data set 'tinyy'\. Did you mean 'tiny'\? Give one of .*easy-vqa"):
        datasets.load("tinyy")
    with pytest.raises(FileNotFoundError, match=r"line 2, .*there is no image at .*b\.png"):
        datasets.load(written(folder, GOOD, {**GOOD, "id": "8", "image": "b.png"}))
    with pytest.raises(ValueError, match="no questions"):
        datasets.load(written(folder, ""))
    (folder / "second.csv").write_text("image,question,answer")
    with pytest.raises(ValueError, match="holds 2 files of questions, not one"):
        datasets.load(folder)
    with pytest.raises(ValueError, match=r"a\.png is none of \.jsonl, \.json, \.csv, \.tsv"):
        datasets.load(folder / "a.png")
    with pytest.raises(ValueError, match="'image' is an address: fetch it first"):
        datasets.load(written(folder, {**GOOD, "image": "https://a.example/a.png"}))


def test_tasks():
    data = datasets.load("tiny")
    assert set(data.only(["color", "count"]).tasks) == {"color", "count"}
    with pytest.raises(ValueError, match="no task 'colour'; it has caption"):
        data.only(["colour"])


def test_the_digest_knows_questions_and_files(folder):
    before = datasets.load(written(folder, GOOD)).digest()
    assert datasets.load(written(folder, GOOD)).digest() == before
    assert datasets.load(written(folder, {**GOOD, "answer": "x"})).digest() != before
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    assert datasets.load(written(folder, GOOD)).digest() != before


def test_the_shipped_clips_are_there():
    data = datasets.load("tiny-video")
    assert "video" in data.kinds
    assert {"tiny", "tiny-video"} <= set(datasets.shipped())


OTHER = {"picture": "a.png", "q": "What?", "label": "star", "split": "test"}
COLUMNS = {"image": "picture", "question": "q", "answer": "label"}


def test_columns_of_other_names(folder):
    data = datasets.load(written(folder, OTHER, {**OTHER, "image": "none.png"}), COLUMNS)
    assert [(q.media.name, q.question, q.answers) for q in data.questions] == 2 * [("a.png", "What?", ("star",))]
    assert len(data.notes) == 1
    assert "not read, as no field of a question is called so: 'split'" in data.notes[0]
    with pytest.raises(ValueError, match=r"no column 'pictur', which was to be 'image'\. Did you mean 'picture'"):
        datasets.load(folder, {**COLUMNS, "image": "pictur"})
    with pytest.raises(ValueError, match=r"no field 'imgae'\. Did you mean 'image'"):
        datasets.load(folder, {"imgae": "picture"})
    with pytest.raises(ValueError, match="easy-vqa is neither"):
        datasets.load("easy-vqa", COLUMNS)


def test_columns_of_a_table_may_be_empty_in_a_row(folder):
    (folder / "mine.csv").write_text("picture,q,label,kind,words\na.png,What?,star,,a|b\na.png,Who?,,x,c\n")
    columns = {"image": "picture", "question": "q", "answers": "words", "task": "kind"}
    data = datasets.load(folder, columns)
    assert [(q.answers, q.task) for q in data.questions] == [(("a", "b"), "all"), (("c",), "x")]
    assert "'label'" in data.notes[0]


def test_what_may_have_been_meant_is_said(folder):
    (line,) = datasets.load(written(folder, {**GOOD, "taks": 1, "choises": 2, "x": 3} | {"task": None})).notes
    assert line.endswith("'taks', 'choises' (Did you mean 'choices'?), 'x'")  # task is there, if empty
    assert datasets.load(written(folder, GOOD)).notes == ()
    with pytest.raises(
        ValueError, match=r"'question' is missing \(there are 'qestion': .* --columns question=qestion\)"
    ):
        datasets.load(written(folder, {"image": "a.png", "qestion": "What?", "answer": "x"}))
    with pytest.raises(ValueError, match=r"'image' or 'video' is missing \(there are 'picture', 'q': .*image=NAME\)"):
        datasets.load(written(folder, {"picture": "a.png", "q": "What?", "answer": "x"}))


def test_notes_stay_with_a_part(folder):
    data = datasets.load(written(folder, {**GOOD, "more": 1}))
    assert data.first(1).notes == data.only(["object"]).notes == data.notes != ()


def test_a_saved_data_set_under_other_names(folder):
    hub = pytest.importorskip("datasets")
    columns = {"picture": [Image.new("RGB", (5, 4), "red")], "q": ["What?"], "label": [1]}
    kinds = hub.Features(picture=hub.Image(), q=hub.Value("string"), label=hub.ClassLabel(names=["star", "cone"]))
    table = hub.Dataset.from_dict(columns, features=kinds)
    table.save_to_disk(str(folder / "saved"))
    table.to_parquet(str(folder / "mine.parquet"))
    for path in (folder / "saved", folder / "mine.parquet"):
        (found,) = datasets.load(path, COLUMNS).questions
        assert (found.question, found.answers) == ("What?", ("cone",))
        assert found.media.picture().size == (5, 4)
    with pytest.raises(ValueError, match=r"no column 'p', .* There are: picture, q, label"):
        datasets.load(folder / "saved", {"image": "p"})


def test_saved_sets_that_cannot_be_read(folder, monkeypatch):
    pytest.importorskip("datasets")
    (folder / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"cut\.parquet cannot be read as a saved data set"):
        datasets.load(folder / "cut.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"reading .*cut\.parquet needs datasets: pip install 'vtc-vlm\[datasets\]'"):
        datasets.load(folder / "cut.parquet")
