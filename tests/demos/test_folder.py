"""The folder of uploads: gone with its demo, and what a killed one left goes with the next."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vtc.demos.folder import sweep, temporary_folder

pytest.importorskip("fcntl")
HOLD = """
from vtc.demos.folder import temporary_folder
with temporary_folder() as folder:
    (folder / "a.png").write_bytes(b"a picture")
    print(folder.parent, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def start(place: Path) -> tuple[subprocess.Popen[str], Path]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], env={**os.environ, "TMPDIR": str(place)}, stdin=pipe, stdout=pipe, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_it_is_empty_and_goes(place):
    with temporary_folder() as folder:
        assert folder.is_dir()
        assert folder.is_relative_to(place)
        assert not [*folder.iterdir()]
        (folder / "a.png").write_bytes(b"a picture")
        assert folder.parent.stat().st_mode & 0o077 == 0  # nobody else looks in
    assert not [*place.iterdir()]


def test_a_killed_ones_folder_goes_with_the_next_and_a_living_ones_stays(place):
    alive, kept = start(place)
    killed, left = start(place)
    try:
        assert sweep(place) == []
        killed.kill()
        killed.wait()
        assert (left / "uploads" / "a.png").exists()
        with temporary_folder() as folder:
            assert not left.exists()
            assert {kept, folder.parent} == set(place.iterdir())
        assert (kept / "uploads" / "a.png").exists()
        alive.communicate("\n")
        assert not [*place.iterdir()]
    finally:
        alive.kill()
        killed.kill()


def test_what_is_not_of_a_demo_stays(place, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "lock").touch()
    (elsewhere / "precious").touch()
    (place / "vtc-demo-link").symlink_to(elsewhere)
    (place / "vtc-demo-file").touch()
    (place / "vtc-demo-no-lock").mkdir()
    inside = place / "vtc-demo-link-inside"
    inside.mkdir()
    (inside / "lock").symlink_to(elsewhere / "lock")
    new = place / "vtc-new-demo-young"
    new.mkdir()
    assert sweep(place) == []
    os.utime(new, (0, 0))  # it never got its name, an age ago
    assert sweep(place) == [new]
    assert (elsewhere / "precious").exists()
