"""A page per method, and their index: from the class, the table of signals, docs/fidelity.md and the results."""

from __future__ import annotations

from typing import Any

from docs.generate import fidelity, results
from docs.generate.markdown import block, code, escaped, line, prose, table
from vtc.cli.listing import CALIBRATED, CHECKPOINTS, STAGES, alone, example_text, in_order, instead, kinds
from vtc.methods.base.index import MethodInfo, shipped
from vtc.methods.base.notation import write_method
from vtc.methods.base.patches import PatchMethod
from vtc.methods.base.registry import find
from vtc.models.families import SHIPPED
from vtc.signals import SIGNALS, of_place
from vtc.stages import stage_names

PICTURE = ("eval/data/tiny/pictures/0009.webp", "What word is printed?")
CLIP = ("eval/data/tiny-video/clips/0001.mp4", "Which way does the orange circle move?")
_PLACES = {
    "tower": "in the vision tower",
    "text": "from the text's embeddings",
    "layer": "in a decoder layer",
    "cache": "in the KV cache",
    "layout": "known of every picture",
}
_MEANING = "../evaluate.md#what-the-table-says"
_EXACT = {True: "exactly `keep`, to the token", False: "`keep`, or as its own rules have it"}


def pages() -> dict[str, str]:
    """methods/index.md and methods/NAME.md of every method that ships."""
    infos = list(shipped().values())
    return {"methods/index.md": _index(infos)} | {f"methods/{info.name}.md": page(info) for info in infos}


def _index(infos: list[MethodInfo]) -> str:
    lines = [
        *("# Methods", ""),
        "What each method does, grouped by the place where it acts first; a method that acts at several, or can act at",
        "another, says so. Each has a page with its options, what it needs, its paper, where it deviates from it, and",
        "its measured results.",
        *("", *block("bash", "vtc methods", "vtc methods divprune  # the same on the command line")),
    ]
    for stage in stage_names():
        own = [info for info in infos if info.stage.split("+")[0] == stage]
        if own:
            title = STAGES.get(stage, "")
            lines += [f"## {title[0].upper() + title[1:] if title else stage}", "", f"Stage `{stage}`.", ""]
            lines += _guests(infos, stage)
            lines += [*table(("method", "what it keeps", "for", "reads the question", "paper"), map(_row, own)), ""]
    return "\n".join(lines)


def _guests(infos: list[MethodInfo], stage: str) -> list[str]:
    """Which methods of other sections can act here instead."""
    names = ", ".join(f"[`{info.name}`]({info.name}.md)" for info in infos if stage in instead(info))
    return [f"With the option `stage={stage}` these act here, too: {names}.", ""] if names else []


def _row(info: MethodInfo) -> tuple[str, ...]:
    later = info.stage.split("+")[1:]
    also = f" Then: `{'`, `'.join(later)}`." if later else ""
    also += "".join(f" Or: `{place}`, by `stage={place}`." for place in instead(info))
    paper = _paper(info, short=True)
    return (
        f"[`{info.name}`]({info.name}.md)",
        prose(info.summary) + also,
        kinds(info.modality),
        "yes" if info.query_aware else "no",
        paper,
    )


def page(info: MethodInfo) -> str:
    """Everything about one method."""
    return "\n".join(
        [
            *(f"# {info.name}", "", f"**{prose(info.summary)}**", ""),
            *_about(info),
            *("", "## At a glance", "", *_facts(info)),
            *("", "## Use it", "", *_example(info)),
            *("## Options", "", *_options(info)),
            *("", "## What it reads", "", *_needs(info)),
            *("", "## Beside the paper and the authors' code", "", *_fidelity(info)),
            *("## Results", "", *_results(info)),
        ]
    )


def _about(info: MethodInfo) -> list[str]:
    """The docstring; a list stays a list."""
    lines: list[str] = []
    for paragraph in info.about.split("\n"):
        item = paragraph.startswith("* ")
        if lines and not (item and lines[-1].startswith("* ")):
            lines.append("")
        lines.append(f"* {prose(paragraph[2:])}" if item else prose(paragraph))
    return lines


def _paper(info: MethodInfo, short: bool = False) -> str:
    if info.paper is None:
        return "none"
    address = f"https://arxiv.org/abs/{info.paper.arxiv}"
    return f"[{info.paper.arxiv if short else escaped(info.paper.title)}]({address})"


def _facts(info: MethodInfo) -> list[str]:
    stages = ", then ".join(f"`{stage}`, {STAGES.get(stage, stage)}" for stage in info.stage.split("+"))
    stages += "".join(f"; or, by `stage={place}`, {STAGES.get(place, place)}" for place in instead(info))
    facts = {
        "Acts": stages,
        "On": kinds(info.modality),
        "Families": _families(info),
        "Reads the question": "yes" if info.query_aware else "no",
        "Count": _EXACT[info.exact_count],
        "Merges": "yes: what goes lives on in what stays" if info.merges else "no: what goes is gone",
        "Positions": f"`{info.positions}`, by default",
        "Trained": "`vtc train` trains its own weights" if info.trained else "no, nothing is trained",
        "Paper": _paper(info),
        "Class": f"`vtc.{info.class_name}`, defined in `{info.module}`",
    }
    return [f"* **{name}:** {said}" for name, said in facts.items()]


def runs_on(info: MethodInfo) -> list[str]:
    """Model types of the families that a method runs on."""
    from docs.generate.families import facts
    from vtc.models.registry import adapter_of

    if info.only:
        return list(info.only)
    find(info.name)  # some methods bring signals of their own
    known = [one for one in facts() if set(info.modality) & set(SHIPPED[one.model_type].modality)]
    if of_place(info.needs, "tower"):
        known = [one for one in known if SHIPPED[one.model_type].read]
    if "grid" in info.needs:
        known = [one for one in known if SHIPPED[one.model_type].grid]
    if info.places == ("encoder",):
        packs = find(info.name)().packs  # pyright: ignore[reportAttributeAccessIssue]
        return [x.model_type for x in known if "encoder" in SHIPPED[x.model_type].stages and (packs or not x.packed)]
    if "pixels" not in info.stage.split("+"):
        return [one.model_type for one in known]
    # PixelStage refuses the others before towers of a fixed grid
    crops = issubclass(find(info.name), PatchMethod) and "image" in info.modality
    known = [one for one in known if "pixels" in SHIPPED[one.model_type].stages]
    if not issubclass(find(info.name), PatchMethod):
        return [one.model_type for one in known if one.resizes]
    if "image" not in info.modality:
        known = [one for one in known if not adapter_of(one.model_type).frames_alone]
    return [one.model_type for one in known if one.packed or (crops and "image" not in one.mixes)]


def _families(info: MethodInfo) -> str:
    names = runs_on(info)
    if info.only:
        return f"{', '.join(f'`{name}`' for name in names)} alone"
    said = "all" if len(names) == len(SHIPPED) else ", ".join(f"`{name}`" for name in names)
    return f"{said}; see [families](../families.md)"


def model_for(info: MethodInfo) -> str:
    """The model that ships which an example can use; one of the Hub where none can."""
    if info.only:
        return CHECKPOINTS[info.only[0]]
    return "tiny-llava" if "image" in info.modality and "llava" in runs_on(info) else "tiny-qwen"


def _example(info: MethodInfo) -> list[str]:
    video, model, text = "image" not in info.modality, model_for(info), example_text(info)
    (file, question), asked = (CLIP, f"--video {CLIP[0]} --frames 8") if video else (PICTURE, f"--image {PICTURE[0]}")
    given = f'clips=[vtc.load_clip("{file}", frames=8)]' if video else f'pictures=[vtc.load_picture("{file}")]'
    other = "" if model == "tiny-llava" else f"--model {model} "
    finds, found, named, said = "", [], "", text
    if info.name in CALIBRATED:  # not on what is then asked, but the page is to be short
        out = f"runs/{info.name}.json"
        found = [f'vtc.calibrate(model, "{text}", [("{file}", "{question}")], out="{out}", processor=processor)']
        finds = f'vtc calibrate --data eval/data/tiny --pairs 1 --method "{text}" --out {out}'
        named, said = f', calibration="{out}"', f"{text[:-1]}, calibration={out})"
    return [
        "As a string, which is how every command, file and function takes it:",
        *("", *block("text", text)),
        *("In Python:", ""),
        *(["<!-- not run: no such model ships -->"] if info.only else []),
        *block(
            "python",
            "import vtc",
            "",
            f'model, processor = vtc.load("{model}")  # or any checkpoint of a family it runs on',
            f'inputs = vtc.prepare(processor, "{question}", {given})',
            *found,
            f'with vtc.wrapped(model, "{text}"{named}):',
            "    model.generate(**inputs, max_new_tokens=8)",
            "    print(vtc.report(model))",
        ),
        *("On the command line:", "", "<!-- not run: the page's Python asks the same -->"),
        *block(
            "bash", *finds.splitlines(), f'vtc ask {asked} --question "{question}" \\', f'  {other}--method "{said}"'
        ),
    ]


def _options(info: MethodInfo) -> list[str]:
    """A list, as names of options and their words do not fit the columns of a table on a phone."""
    lines = []
    for name in in_order(info):
        default: Any = info.default_keep if name == "keep" else info.defaults[name]
        kind = escaped(info.types.get(name, "").replace(" | ", " or "))
        said = prose(info.help.get(name, ""))
        lines.append(f"* **{code(name)}** = {code(_value(default))}, {kind}: {said}")
    return lines


def _value(default: Any) -> str:
    """As the string form of a method has it; fractions to four digits."""
    if isinstance(default, float):
        return f"{default:.4g}"
    return write_method("", {"option": default})[1:-1].partition("=")[2]


def _needs(info: MethodInfo) -> list[str]:
    find(info.name)  # its module may add signals of its own
    if not info.needs:
        inside = info.stage == "encoder"
        return [f"No signals: {alone(info)}." if inside else "The tokens alone: no attention, no text, no grid."]
    lines = ["Signals, which are measured only where a wrapped method asks for them:", ""]
    for name in info.needs:
        signal = SIGNALS[name]
        shape = f"{code('[' + ', '.join(signal.shape) + ']')}, " if signal.shape else ""
        lines.append(f"* **{code(name)}** {shape}{_PLACES.get(signal.place, signal.place)}: {prose(signal.doc)}")
    return lines


def _fidelity(info: MethodInfo) -> list[str]:
    row, options = fidelity.compared(info.name), fidelity.options(info.name)
    said = {
        "Authors' code": row["authors' code"],
        "Compared": row["compared"],
        "Agreement when it was reviewed": row["agreement at f65360d"],
        "Now": row["now"],
    }
    lines = [f"* **{name}:** {cell}" for name, cell in said.items()]
    if options:
        lines += ["", "Options that do what the released code does where that is not the default:", ""]
        lines += [line(("option", "the released code", "the default")), "|---|---|---|", *map(line, options)]
    return [*lines, "", "How this was compared, and what holds for all methods: [fidelity](../fidelity.md).", ""]


def _results(info: MethodInfo) -> list[str]:
    found = results.rows_of(info.name)
    if info.only:
        return ["It is in none of the committed tables: no model that ships can run it."]
    if not found:
        kind = "--data tiny-video " if "image" not in info.modality else ""
        return [
            "It is in none of the committed tables. To measure it here:",
            "",
            "<!-- not run: takes minutes -->",
            *block("bash", f"vtc eval {kind}--limit 100 --methods {info.name} --keep 0.5,0.1 --out runs/{info.name}"),
        ]
    lines = [
        "On the models that ship, measured by the commands named; each row's own command, all intervals and all other",
        "methods are in the [leaderboard](../leaderboard.md), and what the columns mean in [results](../results.md).",
        "",
    ]
    for name, columns in found.items():
        title, made = results.groups()[name].title, results.TABLES[name][1]
        rows = [[escaped(cell.strip()) for cell in cells] for cells in zip(*columns.values(), strict=True)]
        heads = [f"[{head}]({_MEANING})" if head not in ("method", "keep") else head for head in columns]
        lines += [f"### {title}", "", f"By `{made}`.", "", *table(heads, rows, numbers=True), ""]
    return lines
