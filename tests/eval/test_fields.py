"""Conversations become questions, one by one, whatever names the turns have."""

import json

import pytest
from PIL import Image

from vtc.eval import datasets

SHOWN, ASKED = {"type": "image"}, {"type": "text", "text": "What?"}


def turns(*texts, names=("human", "gpt"), keys=("from", "value")):
    return [{keys[0]: names[n % 2], keys[1]: text} for n, text in enumerate(texts)]


def written(folder, *entries):
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    (folder / "mine.json").write_text(json.dumps(entries))
    return folder / "mine.json"


def test_conversations_as_llava_writes_them(tmp_path):
    one = {"id": "7", "image": "a.png", "conversations": turns("<image>\nWhat is it?", "A star.")}
    two = {"id": "8", "image": "a.png", "conversations": turns("Which?\n<image>", "That.", "Why?", "So."), "task": "x"}
    data = datasets.load(written(tmp_path, one, two))
    found = [(q.id, q.media.name, q.question, q.answers, q.task) for q in data.questions]
    assert found == [
        ("7", "a.png", "What is it?", ("A star.",), "all"),
        ("8-1", "a.png", "Which?", ("That.",), "x"),
        ("8-2", "a.png", "Why?", ("So.",), "x"),
    ]
    assert data.notes == ()


def test_ids_that_conversations_share(tmp_path):
    entry = {"id": "7", "image": "a.png", "conversations": turns("What?", "A star.")}
    plain = {"image": "a.png", "conversations": turns("What?", "A star.")}
    data = datasets.load(written(tmp_path, entry, entry, plain))
    assert [q.id for q in data.questions] == ["7#1", "7#2", "3"]


def test_messages_under_another_name(tmp_path):
    said = [{"role": "system", "content": "Be brief."}]
    said += turns("What?", "A star.", names=("user", "assistant"), keys=("role", "content"))
    data = datasets.load(written(tmp_path, {"image": "a.png", "messages": said}), {"conversations": "messages"})
    assert [(q.question, q.answers) for q in data.questions] == [("What?", ("A star.",))]


@pytest.mark.parametrize(
    "parts",
    [
        [SHOWN, ASKED],
        [ASKED, SHOWN],
        [ASKED],
        [{"type": "video"}, ASKED],
        [{**SHOWN, "text": None}, {**ASKED, "index": None}],  # as tables hold them
    ],
)
def test_messages_in_parts_as_hugging_face_writes_them(tmp_path, parts):
    said = turns(
        parts, [{"type": "text", "text": "A star."}], [ASKED, {"type": "text", "text": "And why?"}], "So.",
        names=("user", "assistant"), keys=("role", "content"),
    )  # fmt: skip
    data = datasets.load(written(tmp_path, {"image": "a.png", "messages": said}), {"conversations": "messages"})
    assert [(q.question, q.answers) for q in data.questions] == [("What?", ("A star.",)), ("What?\nAnd why?", ("So.",))]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("What?", "'conversations' is not a list of turns"),
        ([3], "'conversations' is not a list of turns"),
        ([], "'conversations' holds no question"),
        (turns("What?"), "last question of 'conversations' has no answer"),
        (turns("What?", "a", names=("gpt", "human")), "turn 1 of 'conversations' is by 'gpt': expected 'human'"),
        (turns("What?", 3), "turn 2 of 'conversations' is no text, nor a list of parts such as"),
        (turns(["What?"], "a"), "turn 1 of 'conversations' is no text, nor a list of parts"),
        (turns([{"type": "text"}], "a"), "turn 1 of 'conversations' holds {'type': 'text'}: expected parts such as"),
        (turns([{"type": "audio"}, ASKED], "a"), "holds {'type': 'audio'}: .* or {\"type\": \"image\"}"),
        (turns([SHOWN, SHOWN, ASKED], "a"), "has 2 placeholders"),
        (turns([ASKED], [SHOWN]), "turn 2 of 'conversations' holds {'type': 'image'}: .*\"What.\"}$"),
        (turns([SHOWN], "a"), "'question' is empty"),
        (turns("<image> and <image>?", "a"), "has 2 placeholders"),
        (turns("<image>", "a"), "'question' is empty"),
    ],
)
def test_conversations_that_are_none(tmp_path, said, reason):
    with pytest.raises(ValueError, match=f"entry 1, is not a question: .*{reason}"):
        datasets.load(written(tmp_path, {"image": "a.png", "conversations": said}))


def test_a_conversation_about_nothing(tmp_path):
    with pytest.raises(ValueError, match="'image' or 'video' is missing"):
        datasets.load(written(tmp_path, {"conversations": turns("What?", "a")}))
