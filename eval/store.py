"""One folder per run: config.json, samples.jsonl (appended as answers come), metrics.json (written when it is done)."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from vtc.eval.files import read_json
from vtc.lock import alone as locked

Line = dict[str, Any]
CONFIG, SAMPLES, METRICS, LOCK = "config.json", "samples.jsonl", "metrics.json", ".lock"
_HOW = "how"  # the part of a config that may differ: it says where and how, not what


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder of an evaluation if it is not there, and keep others out; a kill at any moment lets them in.

    Raises:
        ValueError: another process is at work in it. OSError: nothing can be written there.
    """
    busy = f"another `vtc eval` is at work in {folder}: wait until it has ended, or give another --out"
    try:
        with ExitStack() as held:
            try:
                with _space(folder):
                    held.enter_context(locked(folder / LOCK, busy))
            except (PermissionError, FileExistsError, NotADirectoryError) as error:
                raise OSError(f"results cannot be written to {folder} ({error.strerror}): give another --out") from None
            yield
    finally:
        with suppress(OSError):  # it goes if nothing is in it, as if nothing had been asked
            folder.rmdir()


class RunFolder:
    """The results of one configuration. Nothing in it is ever changed but by appending, or by replacing a file whole.

    Each process appends to a file of its own, `samples.jsonl` or `samples-<rank>.jsonl`; `finish` makes them one.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path, self.rank = path, rank
        self._own = path / (SAMPLES if rank == 0 else f"samples-{rank}.jsonl")
        self.lines: dict[str, Line] = {}  # by question id: what this process knows of
        self.config: Mapping[str, Any] = {}  # that the run was begun with

    def check(self, config: Mapping[str, Any]) -> None:
        """ValueError if the folder holds another configuration; keys that `config` lacks are not looked at."""
        file = self.path / CONFIG
        if not file.is_file():
            if self.path.exists() and any(not file.name.endswith(".part") for file in self.path.iterdir()):
                raise ValueError(f"{self.path} is no folder of an evaluation, and not empty: give another --out")
            return
        there = _read_json(file)
        for name, value in json.loads(json.dumps(config)).items():
            if name != _HOW and there.get(name) != value:
                raise ValueError(
                    f"{self.path} holds another configuration: {name} is {there.get(name)!r} there and {value!r} here; "
                    "give another --out, or remove that folder"
                )

    def open(self, config: Mapping[str, Any]) -> None:
        """Make the folder if it is not there, and read what was answered before; a torn last line is dropped."""
        self.check(config)
        with _space(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self.rank == 0 and not (self.path / CONFIG).is_file():
                write_json(self.path / CONFIG, config)
        self.config = _read_json(self.path / CONFIG)
        for file in sorted(self.path.glob("samples*.jsonl")):
            _mend(file, write=file == self._own)
            for line in read_lines(file, torn=True):
                self.lines.setdefault(line["id"], line)

    @property
    def finished(self) -> bool:
        return (self.path / METRICS).is_file()

    @property
    def answered(self) -> int:
        """How many questions have an answer, broken ones not counted."""
        return sum("error" not in line for line in self.lines.values())

    def lacks(self, ids: Iterable[str]) -> bool:
        return any(identity not in self.lines for identity in ids)

    def append(self, lines: Sequence[Line]) -> None:
        """Add what is new of `lines`, in one write, so that a kill tears at most the last line."""
        new = [line for line in lines if line["id"] not in self.lines]
        if not new:
            return
        with _space(self.path), self._own.open("ab", buffering=0) as file:
            rest = memoryview("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in new).encode())
            while rest:  # a full disk may take a part
                rest = rest[file.write(rest) :]
        self.lines.update((line["id"], line) for line in new)

    def drop(self) -> None:
        """Forget what this process has appended: nothing of it is worth keeping."""
        self._own.unlink(missing_ok=True)
        self.lines.clear()

    def finish(self, order: Sequence[str], metrics: Mapping[str, Any]) -> None:
        """Put the samples in the order of the data set, in one file, and write the metrics."""
        with _space(self.path):
            text = "".join(json.dumps(self.lines[identity], ensure_ascii=False) + "\n" for identity in order)
            _replace(self.path / SAMPLES, text)
            for file in self.path.glob("samples-*.jsonl"):
                file.unlink()
            write_json(self.path / METRICS, metrics)


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, and not of, say, a model, which also has a config.json."""
    try:
        config = read_json((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"format", "method", "digest"} <= config.keys()


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file at once or not at all."""
    _replace(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _replace(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def read_run(path: Path) -> tuple[dict[str, Any], list[Line], dict[str, Any]]:
    """Config, samples and metrics of a finished run."""
    return _read_json(path / CONFIG), list(read_lines(path / SAMPLES)), _read_json(path / METRICS)


def read_lines(file: Path, torn: bool = False) -> Iterable[Line]:
    """The samples of a file; with `torn` its last line may be cut off. ValueError with the line's number otherwise."""
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line or (torn and number == len(lines)):
            continue
        try:
            sample = read_json(line)
            sample["id"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{file}, line {number}, is not a sample: remove the folder {file.parent}") from None
        yield sample


def _mend(file: Path, write: bool) -> None:
    """Cut off a last line that a kill has torn, if the file is this process's own."""
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if write and whole < len(content):
        os.truncate(file, whole)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: remove the folder {file.parent}, and its run starts again")
    return found


@contextmanager
def _space(path: Path) -> Iterator[None]:
    """Turns "no space left" into a sentence that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"no space is left to write to {path}: what was answered before is kept; "
            "make room and give the same command again"
        ) from error
