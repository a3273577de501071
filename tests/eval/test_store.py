"""Run folders: what they keep when a process dies, a disk is full, or somebody mixes settings."""

import errno
import json

import pytest

from vtc.eval.store import RunFolder, alone, is_run, read_run

CONFIG = {"format": 1, "method": "full", "digest": "d", "limit": 5, "how": {"batch_size": 64}}


def opened(path, rank=0, **changes):
    run = RunFolder(path, rank)
    run.open({**CONFIG, **changes})
    return run


def line(identity, **more):
    return {"id": identity, "answer": "é", **more}


def test_lines_come_back(tmp_path):
    run = opened(tmp_path / "run")
    run.append([line("a"), line("b")])
    run.append([line("b", answer="other"), line("c")])  # what is there stays
    again = opened(tmp_path / "run", how={"batch_size": 1})
    assert [own["answer"] for own in again.lines.values()] == ["é"] * 3
    assert not again.lacks("abc")
    assert again.lacks("abcd")
    assert not again.finished


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_torn_last_line_is_dropped(tmp_path, cut):
    opened(tmp_path).append([line("a"), line("b")])
    file = tmp_path / "samples.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    again = opened(tmp_path)
    assert list(again.lines) == ["a"]
    again.append([line("b"), line("c")])
    assert list(opened(tmp_path).lines) == ["a", "b", "c"]


def test_a_damaged_line_is_named(tmp_path):
    opened(tmp_path)
    (tmp_path / "samples.jsonl").write_text('{"id": "a"}\n{"id": "b\n{"id": "c"}\n')
    with pytest.raises(ValueError, match=r"samples\.jsonl, line 2, is not a sample"):
        opened(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged: remove"):
        opened(tmp_path)


def test_another_configuration_is_refused(tmp_path):
    opened(tmp_path)
    with pytest.raises(ValueError, match="another configuration: limit is 5 there and 6 here; give another --out"):
        opened(tmp_path, limit=6)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no folder of an evaluation, and not empty"):
        opened(other)


def test_killed_while_the_configuration_was_written(tmp_path):
    (tmp_path / ".config.json.part").write_text('{"lim')
    opened(tmp_path)


def test_processes_have_files_of_their_own(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path, rank=1)
    first.append([line("a")])
    second.append([line("b")])
    assert (tmp_path / "samples-1.jsonl").exists()
    again = opened(tmp_path)
    assert set(again.lines) == {"a", "b"}
    again.finish(["b", "a"], {"accuracy": 1})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "metrics.json", "samples.jsonl"]
    config, lines, metrics = read_run(tmp_path)
    assert (config["limit"], [own["id"] for own in lines], metrics) == (5, ["b", "a"], {"accuracy": 1})
    assert again.finished
    assert is_run(tmp_path)


class FullDisk:
    """A file on a disk with room for a few bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        taken = bytes(data)[: self.room]
        self.room -= len(taken)
        self.file.write(taken)
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(taken)


@pytest.mark.parametrize("room", [0, 10, 40])
def test_a_full_disk_loses_nothing_that_was_written(tmp_path, monkeypatch, room):
    from pathlib import Path

    run = opened(tmp_path)
    run.append([line("a")])
    normal = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *args, **more: FullDisk(normal(self, *args, **more), room))
        with pytest.raises(OSError, match=r"no space is left .*what was answered before is kept"):
            run.append([line("b"), line("c"), line("d")])
    again = opened(tmp_path)
    assert list(again.lines)[:1] == ["a"]
    again.append([line(name) for name in "bcd"])
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(own)["id"] for own in lines] == list("abcd")


def test_metrics_are_written_at_once_or_not_at_all(tmp_path, monkeypatch):
    run = opened(tmp_path)
    run.append([line("a")])

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space is left"):
            run.finish(["a"], {"accuracy": 1})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "samples.jsonl"]
    assert list(opened(tmp_path).lines) == ["a"]


def test_one_at_a_time(tmp_path):
    with alone(tmp_path / "new" / "runs"):
        with pytest.raises(ValueError, match=r"another `vtc eval` is at work in .*runs: wait until it has ended"):
            alone(tmp_path / "new" / "runs").__enter__()
        with alone(tmp_path / "other"):
            pass
        (tmp_path / "new" / "runs" / "full").mkdir()
    with alone(tmp_path / "new" / "runs"):
        pass


def test_a_fault_lets_the_next_in_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), alone(tmp_path / "runs"):
        raise KeyboardInterrupt
    assert not (tmp_path / "runs").exists()
    with alone(tmp_path / "runs"):
        pass


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"results cannot be written to .*: give another --out"), alone(folder):
            pass


def test_a_place_that_must_not_be_written_to(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(OSError, match=r"runs \(Permission denied\): give another --out"), alone(tmp_path / "runs"):
        pass
