"""One set of questions in every kind of file; what cannot be read is told with its place."""

import json

import pytest

from vtc.eval import files

FIELDS = [{"question": "Red, or not; what?", "answer": "yes"}, {"question": "Où?", "answer": "là-bas"}]
TEXTS = {
    "lines.jsonl": "\n".join(json.dumps(line) for line in FIELDS) + "\n",
    "raw.jsonl": "\r\n\r\n".join(json.dumps(line, ensure_ascii=False) for line in FIELDS),
    "array.json": json.dumps(FIELDS, indent=2),
    "array.jsonl": json.dumps(FIELDS),
    "lines.json": "\n".join(json.dumps(line) for line in FIELDS),
    "comma.csv": 'question,answer\n"Red, or not; what?",yes\nOù?,là-bas\n',
    "semicolon.csv": 'question;answer\n"Red, or not; what?";yes\nOù?;là-bas\n',
    "tab.csv": "question\tanswer\nRed, or not; what?\tyes\nOù?\tlà-bas\n",
    "tab.tsv": "question\tanswer\r\nRed, or not; what?\tyes\r\nOù?\tlà-bas\r\n",
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("name", TEXTS)
def test_every_kind_holds_the_same(tmp_path, name, mark):
    (tmp_path / name).write_bytes(mark + TEXTS[name].encode())
    rows = files.rows(tmp_path / name)
    assert [row.fields for row in rows] == FIELDS
    assert all(str(tmp_path / name) in row.place and str(row.number) in row.place for row in rows)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("coding", ["latin-1", "utf-16"])
def test_other_codings_are_refused(tmp_path, name, coding):
    (tmp_path / name).write_bytes(TEXTS["raw.jsonl" if "json" in name else name].encode(coding))
    guess = "UTF-16" if coding == "utf-16" else "perhaps Latin-1"
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8 text but {guess} \(byte \d+, in line \d+\): save it"):
        files.rows(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "place", "said"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": }\n', "line 2,", "malformed JSON"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 100_000, "line 2,", "malformed JSON .brackets within brackets go too deep"),
        ("a.csv", "a;b\n1;2\n1;2;3\n", "line 3,", "more cells .* put text with semicolons in quotes"),
        ("a.tsv", "a\tb\n1\t2\t3\n", "line 2,", "more cells .* put text with tabs in quotes"),
        ("a.csv", 'a,b\n"1"x,2\n', "line 2,", "malformed CSV"),
    ],
)
def test_a_bad_row_says_why(tmp_path, name, text, place, said):
    (tmp_path / name).write_text(text)
    (row,) = [row for row in files.rows(tmp_path / name) if isinstance(row.fields, ValueError)]
    assert row.place.endswith(place)
    with pytest.raises(ValueError, match=said):
        raise row.fields


def test_what_is_no_array_of_questions(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1},\n {"a": }]')
    with pytest.raises(ValueError, match=r"a\.json is malformed JSON \(Expecting value: line 2"):
        files.rows(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(
        ValueError, match=r"a\.json is malformed JSON \(brackets within brackets go too deep to be read"
    ):
        files.rows(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"info": {},\n "data": []}')
    with pytest.raises(ValueError, match="is one object with 'info', 'data': give the array of questions alone"):
        files.rows(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    assert [(row.place[-8:], row.fields) for row in files.rows(tmp_path / "a.json")] == [("entry 1,", 1)]


def test_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer,answer\nWhat?,a,b\n")
    with pytest.raises(ValueError, match="names the column 'answer' twice"):
        files.rows(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    (tmp_path / name).write_text("\n")
    assert files.rows(tmp_path / name) == []
