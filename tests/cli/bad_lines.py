"""Command lines that will not do, and what is said about each. They run in a folder that holds what `make` makes."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

SHIPPED = Path(__file__).resolve().parents[2] / "eval" / "data"
PICTURE = str(SHIPPED / "tiny" / "pictures" / "0001.webp")
CLIP = str(SHIPPED / "tiny-video" / "clips" / "0001.mp4")


def make(folder: Path) -> None:
    """Files that are not what they are taken for."""
    (folder / "taken").mkdir()
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not a picture")
    (folder / "text.mp4").write_text("not a video")
    (folder / "broken.jsonl").write_text("{]\n")
    (folder / "lost.jsonl").write_text(json.dumps({"image": "gone.png", "question": "What?", "answer": "a"}) + "\n")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "nan.jsonl").write_text('{"image": "a.png", "question": "What?", "answer": NaN}\n')
    (folder / "broken.toml").write_text("keep = = 3")
    (folder / "unknown.toml").write_text("kep = 3")
    (folder / "broken.py").write_text("nothing_of_the_sort\n")
    (folder / "notes.txt").write_text("some notes")
    (folder / "good.jsonl").write_text(json.dumps({"image": "a.png", "question": "What?", "answer": "a"}) + "\n")
    _models(folder)
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    Image.new("RGB", (2000, 1), "red").save(folder / "line.png")


def _models(folder: Path) -> None:
    """Folders of models whose config.json will not do."""
    pixtral = {"model_type": "llava", "vision_config": {"model_type": "pixtral"}}
    for name, config in {
        "other": json.dumps({"model_type": "mllama"}),
        "old": json.dumps({"model_type": "llava", "mm_vision_tower": "openai/clip"}),
        "pixtral": json.dumps(pixtral),
        "list": "[]",
        "cut": '{"model_type": "lla',
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(config)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")


def _ask(*more: str) -> list[str]:
    return ["ask", "--image", PICTURE, "--question", "What?", *more]


def _drawn(name: str, *more: str) -> list[str]:
    return _ask("--method", "divprune", "--save", name, *more)


def _train(*more: str) -> list[str]:
    return ["train", "--data", "good.jsonl", "--method", "vqtoken", "--out", "new", *more]


def _serve(*more: str) -> list[str]:
    return ["serve-args", "tiny-llava", *more]


def _calibrate(*more: str) -> list[str]:
    return ["calibrate", "--data", "good.jsonl", "--method", "vflowopt", "--out", "new.json", *more]


#: (command line, a part of what is said); exit status 2, before torch is imported
EARLY: list[tuple[list[str], str]] = [
    ([], "COMMAND"),
    (["sing"], "invalid choice: 'sing'"),
    (_ask("--model", "./none"), "there is no model folder './none'"),
    (["ask", "--question", "What?"], "give --image or --video"),
    (["ask", "--image", "none.png", "--question", "What?"], "there is no picture at none.png"),
    (_ask("--method", "divprun"), "Did you mean 'divprune'?"),
    (_ask("--method", "fastv(kep=3)"), "fastv has no option 'kep'"),
    (_ask("--method", "fastv(keep=3"), "does not name a method"),
    (_ask("--method", "pool + fastv", "--keep", "3"), "are several methods"),
    (_ask("--keep", "64"), "give --method too"),
    (["eval", "--data", "none"], "there is no data set 'none'"),
    (["eval", "--methods", "pool,nope"], "there is no method 'nope'"),
    (["eval", "--keep", "many"], "keep='many' is not a number in (0, 1]"),
    (["eval", "--limit", "0"], "'0' is not a whole number"),
    (["eval", "--timing", "-1"], "'-1' is not a whole number"),
    (["eval", "--tasks", "colour"], "no task 'colour'"),
    (["eval", "--metric", "exat"], "Did you mean 'exact'?"),
    (["eval", "--frames", "4", "--fps", "2"], "give frames or fps, not both"),
    (["eval", "--config", "none.toml"], "no settings file at none.toml"),
    (["compare"], "RUN"),
    (["compare", "none"], "there is no folder none"),
    (["bench", "model", "--methods", "pool + fastv"], "'pool + fastv' are several methods, where one is expected"),
    (["ask", "--image", PICTURE, "--question", " "], "the question is empty"),
    (["ask", "--image", PICTURE, "--question", "What is <image>?"], "placeholder '<image>'"),
    (_ask("--save", "a.png"), "give --method too"),
    (_ask("--method", "pool", "--save", "a.xyz"), "a.xyz"),
    (_ask("--device", "warp"), "'warp' is not a device"),
    (["eval", "--plugin", "none.py"], "there is no plugin file"),
    (["eval", "--fps", "0"], "fps=0.0 is not a number in"),
    (["eval", "--methods", "todre(mode=kcenter, mod=1)"], "there is no option of todre 'mod'"),
    (["train", "--data", "none", "--out", "none", "--method", "pool(keep=3)"], "pool has no parameters to train"),
    (["calibrate", "--data", "none", "--out", "none", "--method", "pool(keep=3)"], "pool has nothing to calibrate"),
    (["calibrate", "--data", "none", "--out", "a.json", "--method", "vflowopt"], "there is no data set 'none'"),
    (_ask("--method", "fastv(keep=0)"), "keep=0 is not a whole number"),
    (_ask("--method", "downsample(keep=0)"), "keep=0 is not a whole number"),
    (_ask("--method", "downsample", "--keep", "0.0"), "keep=0.0 is not"),
    (["eval", "--keep", "0"], "keep=0 is not a "),
    (["eval", "--keep", "-3"], "keep=-3 is not a "),
    (["eval", "--keep", "1.5"], "keep=1.5 is not a "),
    (["eval", "--keep", "nan"], "keep=nan is not a "),
    (["eval", "--keep", "inf"], "keep=inf is not a "),
    (["eval", "--keep", "0.0"], "keep=0.0 is not a "),
]
#: the same, and those that only what takes longer to import can refuse
LINES: list[tuple[list[str], str]] = [
    *EARLY,
    # commands and options
    (["aks"], "Did you mean 'ask'?"),
    (["bench"], "ops|model"),
    (["bench", "modle"], "Did you mean 'model'?"),
    (["--bogus"], "--bogus"),
    (["ask"], "--question"),
    (["ask", "--imge", "a.png"], "there is no option --imge. Did you mean '--image'?"),
    (_ask("stray.png"), "'stray.png' is not expected here"),
    (_ask("--keep"), "expected one argument"),
    (["methods", "divprun"], "Did you mean 'divprune'?"),
    (["methods", "divprune", "todre"], "'todre' is not expected here"),
    (["families", "lava"], "Did you mean 'llava'?"),
    (["completion", "basch"], "Did you mean 'bash'?"),
    (["completion"], "shell"),
    # models and devices
    (_ask("--model", "tiny-lava"), "there is no model 'tiny-lava'. Did you mean 'tiny-llava'?"),
    (_ask("--model", "nothing"), "Give a folder, a Hub id (owner/name), or one of the shipped models"),
    (_ask("--model", "a/b/c"), "there is no model folder 'a/b/c'"),
    (_ask("--model", "taken"), "the folder 'taken' holds no model"),
    (_ask("--model", "notes.txt"), "there is no model 'notes.txt'"),
    (_ask("--model", ""), "there is no model ''"),
    (_ask("--model", "tiny-llava", "--model", "tiny-qwen"), "--model: given twice"),
    (_ask("--device", "meta"), "'meta' is not a device"),
    (_ask("--device", "gpu"), "'gpu' is not a device"),
    (_ask("--device", "cuda:9"), "--device cuda:9: "),
    (_ask("--device", "xpu"), "--device xpu: "),
    (_ask("--dtype", "float31"), "Did you mean 'float32'?"),
    # pictures, videos and questions
    (["ask", "--image", "taken", "--question", "What?"], "taken is not a file"),
    (["ask", "--image", "empty.png", "--question", "What?"], "empty.png is empty"),
    (["ask", "--image", "text.png", "--question", "What?"], "is not a picture"),
    (["ask", "--image", "line.png", "--question", "What?"], "crop it first"),
    (["ask", "--image", CLIP, "--question", "What?"], "is not a picture"),
    (["ask", "--image", "ftp://here/a.png", "--question", "What?"], "only http:// and https:// are fetched"),
    (["ask", "--image", "https://", "--question", "What?"], "cannot be fetched: no host given"),
    (["ask", "--image", "http://127.0.0.1:9/a.png", "--question", "What?"], "cannot be fetched"),
    (["ask", "--video", "none.mp4", "--question", "What?"], "there is no video at none.mp4"),
    (["ask", "--video", "text.mp4", "--question", "What?"], "cannot be read as a video"),
    (["ask", "--video", CLIP, "--model", "tiny-llava", "--question", "What?"], "tiny-llava does not read videos"),
    (["ask", "--video", CLIP, "--frames", "3", "--fps", "1", "--question", "What?"], "not both"),
    (["ask", "--video", CLIP, "--fps", "0", "--question", "What?"], "'0' is not a number above 0"),
    (["ask", "--video", CLIP, "--fps", "nan", "--question", "What?"], "'nan' is not a number above 0"),
    (["ask", "--video", CLIP, "--frames", "0", "--question", "What?"], "'0' is not a whole number of 1 or more"),
    (["ask", "--image", PICTURE, "--question", "  "], "the question is empty"),
    (["ask", "--image", PICTURE, "--question", "a <image>?"], "placeholder '<image>'"),
    (_ask("--question", "And?"), "--question: given twice"),
    (_ask("--frames", "3"), "--frames is about videos"),
    (_ask("--any-size"), "--any-size is about videos"),
    (_ask("--max-new-tokens", "-3"), "'-3' is not a whole number of 1 or more"),
    # methods and budgets
    (_ask("--method", ""), "does not name a method"),
    (_ask("--method", "evs"), "evs acts on videos only: give --video, or another method"),
    (_ask("--method", "fastv(keep=)"), "no value"),
    (_ask("--method", "todre(mode=sum)"), "mode='sum' is not one of"),
    (_ask("--method", "fastv(layers=(0,))"), "layers=0 is not a whole number"),
    (_ask("--method", "pool", "--method", "fastv"), "--method: given twice"),
    (_ask("--method", "pool", "--keep", "0"), "keep=0 is not a"),
    (_ask("--method", "pool", "--keep", "1.5"), "Did you mean keep=2?"),
    (_ask("--method", "pool", "--keep", "half"), "keep='half' is not a number"),
    (_ask("--weights", "taken"), "give --method too"),
    (_ask("--method", "divprune", "--weights", "taken"), "divprune has no option 'weights'"),
    (_ask("--method", "vqtoken", "--weights", "taken"), "there are no weights in taken"),
    (_ask("--plugin", "none.py"), "there is no plugin file"),
    (_ask("--plugin", "notes.txt"), "is not a Python file"),
    (_ask("--plugin", "broken.py"), "the plugin broken.py failed: NameError"),
    # what cannot be written
    (_ask("--save", "new.png"), "give --method too"),
    (_drawn("new.xyz"), "end the name in .png"),
    (_drawn("taken"), "'taken' is a folder"),
    (_drawn(""), "'' is empty"),
    (_drawn("notes.txt/new.png"), "'notes.txt' is a file, not a folder"),
    (_drawn("/proc/none/new.png"), "cannot be written"),
    (_drawn("x" * 300 + ".png"), "cannot be written: file name too long"),
    (["eval", "--out", "notes.txt"], "--out 'notes.txt' cannot be written"),
    (["eval", "--out", "notes.txt/new"], "'notes.txt' is a file, not a folder"),
    (["eval", "--out", ""], "--out '' is empty"),
    (_train("--out", "notes.txt"), "--out: given twice"),
    (["train", "--data", "good.jsonl", "--method", "vqtoken", "--out", "a.png"], "--out 'a.png' cannot be written"),
    (["bench", "ops", "--csv", "taken"], "--csv 'taken' is a folder"),
    (["bench", "imports", "--markdown", "notes.txt/new.md"], "--markdown 'notes.txt/new.md' cannot be written"),
    (["bench", "model", "--plot", "new.xyz"], "end the name in .png, .svg or .pdf"),
    (["compare", "taken", "--json", "taken"], "--json 'taken' is a folder"),
    (["compare", "taken", "--plot", "new.xyz"], "end the name in .png, .svg or .pdf"),
    (["compare", "taken", "--html", "/proc/none/new.html"], "cannot be written"),
    # vtc eval and vtc compare
    (["eval", "--data", "broken.jsonl"], "broken.jsonl"),
    (["eval", "--methods", "todre(mod=1)"], "there is no option of todre 'mod'"),
    (["eval", "--keep", ""], "argument --keep: '' is an empty list"),
    (["eval", "--methods", ","], "argument --methods: ',' is an empty list"),
    (["eval", "--tasks", ""], "argument --tasks: '' is an empty list"),
    (["eval", "--data", "deep.json"], "brackets within brackets go too deep"),
    (["eval", "--data", "nan.jsonl"], "'answer' is nan, which is no number"),
    (["eval", "--metric", ""], "metric is ''"),
    (["eval", "--config", ""], "there is no settings file at ."),
    (["bench", "ops", "--only", ""], "argument --only: '' is an empty list"),
    (["bench", "model", "--batch", ""], "argument --batch: '' is an empty list"),
    (["eval", "--timing", "²"], "'²' is not a whole number of 0 or more"),
    (["eval", "--model", "tiny-quen"], "Did you mean 'tiny-qwen'?"),
    (["eval", "--config", "broken.toml"], "broken.toml"),
    (["eval", "--config", "unknown.toml"], "Did you mean 'keep'?"),
    # vtc train, vtc bench and vtc demo
    (_train("--data", "none.jsonl"), "--data: given twice"),
    (["train", "--data", "lost.jsonl", "--method", "vqtoken", "--out", "new"], "which does not exist"),
    (["train", "--data", "broken.jsonl", "--method", "vqtoken", "--out", "new"], "line 1, is not a sample"),
    (["train", "--data", "good.jsonl", "--method", "pool", "--out", "new"], "pool has no parameters to train"),
    (["train", "--data", "good.jsonl", "--method", "vqtoken(cells=(1, 2))", "--out", "new"], "is not a grid"),
    (_train("--lr", "-1"), "'-1' is not a number above 0"),
    (_train("--seed", "x"), "'x' is not a whole number of 0 or more"),
    (_train("--frames", "4", "--fps", "2"), "not both"),
    (_train("--model", "tiny-lava"), "Did you mean 'tiny-llava'?"),
    (["calibrate", "--data", "lost.jsonl", "--method", "vflowopt", "--out", "new"], "there is no image at gone.png"),
    (["calibrate", "--data", "broken.jsonl", "--method", "vflowopt", "--out", "new"], "broken.jsonl"),
    (["calibrate", "--data", "tiny", "--out", "taken", "--method", "vflowopt"], "taken is a folder"),
    (_calibrate("--pairs", "0"), "'0' is not a whole number of 1 or more"),
    (_calibrate("--trials", "x"), "'x' is not a whole number of 1 or more"),
    (_calibrate("--frames", "4", "--fps", "2"), "not both"),
    (_calibrate("--model", "tiny-lava"), "Did you mean 'tiny-llava'?"),
    (["calibrate", "--data", "good.jsonl", "--method", "vflowopt(r1=2.0)", "--out", "new"], "r1=2.0 is not"),
    (["bench", "ops", "--device", "auto"], "name the one to measure"),
    (["bench", "ops", "--only", "nope"], "no such op here"),
    (["bench", "model", "--arch", "nope"], "invalid choice: 'nope'"),
    (["bench", "engine", "--grid", "3"], "--grid 3 is odd"),
    (["bench", "engine", "--stages", "nope"], "no such stage"),
    (["bench", "clip", "--video", "none.mp4"], "there is no video at none.mp4"),
    (["demo", "--port", "0"], "'0' is not a whole number of 1 or more"),
    (["demo", "--port", "70000"], "--port=70000 is not a whole number in [1, 65535]"),
    (["demo", "--model", "tiny-lava"], "Did you mean 'tiny-llava'?"),
    (["demo", "--method", "divprun"], "Did you mean 'divprune'?"),
    (["demo", "--method", "pool + fastv"], "are several methods"),
    (
        ["demo", "--method", "late-step"],
        "late-step is for models of diffusion_gemma alone, which the demo does not run",
    ),
    (["bench", "model", "--methods", "late-step"], "diffusion_gemma alone, which vtc bench does not run"),
    (["eval", "--methods", "late-step"], "late-step is for models of diffusion_gemma alone, which are not measured"),
    (
        ["ask", "--image", "a.png", "--question", "?", "--method", "late-step"],
        "late-step is for models of diffusion_gemma alone, which tiny-llava does not run",
    ),
    (["demo", "--method", "todre(keep=0.1)"], "leave keep out, which the page has a slider for"),
    (["demo", *(["--method", "pool"] * 6)], "6 times --method, and 5 fit side by side"),
    (["demo", "--allow-host", "http://a.org/"], "'http://a.org/' is not the name of a host"),
    (["demo", "--allow-frame", "a.org"], "--allow-frame 'a.org' is not an origin"),
    (["demo", "--uploads", "3"], "--uploads=3 is not a whole number in [64, 100000]"),
    (["demo", "--memory", "0"], "'0' is not a whole number of 1 or more"),
    (["demo", "--waiting", "200000"], "--waiting=200000 is not a whole number in [1, 100000]"),
    (["demo", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
    # vtc serve-args
    (["serve-args", "--method", "pool"], "NAME_OR_PATH"),
    (_serve(), "the following arguments are required: --method"),
    (_serve("--method", "divprun"), "there is no method 'divprun'. Did you mean 'divprune'?"),
    (_serve("--method", "divprune", "--keep", "577"), "keep=577 is more than the 576 visual tokens"),
    (_serve("--method", "divprune", "--keep", "0"), "keep=0 is not a "),
    (_serve("--method", "divprune(kep=3)"), "divprune has no option 'kep'"),
    (_serve("--method", "divprune + pool"), "are several methods"),
    (_serve("--method", "divprune", "--weights", "none"), "divprune has no option 'weights'"),
    (_serve("--method", "vqtoken", "--weights", "none"), "there are no weights in none"),
    (_serve("--method", "fastv"), "acts between the language model's layers"),
    (_serve("--method", "tome(stage=encoder)"), "acts inside the vision tower"),
    (_serve("--method", "mmtok"), "mmtok reads the question"),
    (_serve("--method", "evs"), "how many tokens evs keeps is for the picture to say"),
    (_serve("--method", "divprune(positions=original)"), 'positions="original" cannot be had for llava'),
    (["serve-args", "tiny-lava", "--method", "pool"], "there is no model 'tiny-lava'. Did you mean 'tiny-llava'?"),
    (["serve-args", "tiny-vit", "--method", "pool"], "tiny-vit tells classes of pictures"),
    (["serve-args", "taken", "--method", "pool"], "the folder 'taken' holds no model"),
    (["serve-args", "other", "--method", "pool"], "serves no 'mllama'"),
    (["serve-args", "list", "--method", "pool"], "its config.json is not that of a model"),
    (["serve-args", "cut", "--method", "pool"], "its config.json is not JSON"),
    (["serve-args", "adapter", "--method", "pool"], "holds an adapter"),
    (["serve-args", "old", "--method", "pool"], "names no vision tower"),
    (["serve-args", "pixtral", "--method", "pool"], "the vision tower of this llava is a 'pixtral'"),
    # values of options, which only the method itself can check
    (["bench", "model", "--methods", "fastv(layers=(0,))"], "layers=0 is not a whole number"),
    (["train", "--data", "none", "--out", "none", "--method", "vqtoken(cells=(1, 2))"], "cells=(1, 2) is not a grid"),
]
