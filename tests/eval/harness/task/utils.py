"""Functions of the tasks in this folder; their score is that of `vtc eval`."""

from pathlib import Path

from PIL import Image

from vtc.eval.datasets import Question
from vtc.eval.metrics import score

DATA = Path("eval/data/tiny")


def doc_to_visual(doc):
    return [Image.open(DATA / doc["image"]).convert("RGB")]


def process_results(doc, results):
    question = Question(doc["id"], DATA / doc["image"], doc["question"], (doc["answer"],), doc["task"])
    return {"vtc_score": score(results[0], Question(**{**vars(question), "objects": tuple(doc["objects"] or ())}))}


def choices(doc):
    return ["red", "green", "blue", "yellow"]


def right_choice(doc):
    return choices(doc).index(doc["answer"])


def colors(dataset):
    return dataset.filter(lambda doc: doc["task"] == "color" and doc["answer"] in choices(doc))
