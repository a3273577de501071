"""Functions of the tasks in this folder; their score is that of `vtc eval`."""

from pathlib import Path

from PIL import Image

from vtc.eval.metrics import exact, objects
from vtc.eval.questions import Media, Question

DATA = Path("eval/data/tiny")


def doc_to_visual(doc):
    return [Image.open(DATA / doc["image"]).convert("RGB")]


def process_results(doc, results):
    media, named = Media("image", doc["image"], DATA / doc["image"]), tuple(doc["objects"] or ())
    question = Question(doc["id"], media, doc["question"], (doc["answer"],), doc["task"], objects=named)
    return {"vtc_score": (objects if named else exact)(results[0], question)}


def choices(doc):
    return ["red", "green", "blue", "yellow"]


def right_choice(doc):
    return choices(doc).index(doc["answer"])


def colors(dataset):
    return dataset.filter(lambda doc: doc["task"] == "color" and doc["answer"] in choices(doc))
