"""A checkout whose symbolic links git did not make: importing says how to mend it, and so it is mended."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINKS = sorted(path.name for path in (ROOT / "vtc").iterdir() if path.is_symlink())


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def imported(checkout: Path) -> subprocess.CompletedProcess[str]:
    code = "import vtc; print(vtc.__file__)"
    return subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)


def test_links_that_git_did_not_make(tmp_path):
    assert LINKS == ["demos", "eval", "kernels", "models", "serving"]
    first = tmp_path / "first"
    (first / "vtc").mkdir(parents=True)
    shutil.copy(ROOT / "vtc" / "__init__.py", first / "vtc")
    for name in LINKS:
        (first / name).mkdir()
        (first / name / "__init__.py").write_text("")
        (first / "vtc" / name).symlink_to(f"../{name}")
    git(first, "init", "--quiet")
    git(first, "add", ".")
    git(first, "commit", "--quiet", "-m", "all")
    git(tmp_path, "clone", "--quiet", "-c", "core.symlinks=false", str(first), "second")
    checkout = tmp_path / "second"
    assert (checkout / "vtc" / "eval").read_text() == "../eval"
    done = imported(checkout)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ImportError: ")
    assert "demos is a plain file where a symbolic link belongs" in said
    for command in re.findall(r"`(git .+?)`", said):
        git(checkout, *command.split()[1:])
    done = imported(checkout)
    assert (done.returncode, done.stdout.strip()) == (0, str(checkout / "vtc" / "__init__.py")), done.stderr


def test_any_one_of_them_is_missed(tmp_path):
    for name in LINKS:
        package = tmp_path / name / "vtc"
        package.mkdir(parents=True)
        shutil.copy(ROOT / "vtc" / "__init__.py", package)
        (package / name).write_text(f"../{name}")
        assert f"{name} is a plain file" in imported(package.parent).stderr
