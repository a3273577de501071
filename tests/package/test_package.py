"""Wheel and sdist, built from a copy of the checkout; the wheel is installed and used outside of it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import vtc

pytestmark = pytest.mark.package
ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys\nfrom setuptools import build_meta\nprint(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, out: Path) -> Path:
    done = subprocess.run([sys.executable, "-c", BUILD, kind, out], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path
    direct: Path  # the wheel that is built without an sdist between


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (copy / name).symlink_to(os.readlink(ROOT / name))
        else:
            (copy / name).write_bytes((ROOT / name).read_bytes())
    sdist = build("build_sdist", copy, out)
    unpacked = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    return Built(
        build("build_wheel", source, out), sdist, build("build_wheel", copy, tmp_path_factory.mktemp("direct"))
    )


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, which looks into this one for what the wheel needs; commands run in `folder`."""

    bin: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / command[0], *command[1:]], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )

    def said(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def package(self) -> Path:
        return Path(self.said("python", "-c", "import vtc; print(vtc.__file__)").strip()).parent


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Installed:
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    found = Installed(home / "bin", tmp_path_factory.mktemp("elsewhere"))
    site = Path(found.said("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "main.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found.said("python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(built.wheel))
    assert found.package == site / "vtc"
    return found


def files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_what_a_user_runs(built):
    inside = files(built.wheel)
    assert inside == files(built.direct)
    linked = {name.split("/")[1] for name in tracked() if (ROOT / name).is_symlink() and name.startswith("vtc/")}
    assert linked == {"demos", "eval", "kernels", "models", "serving"}
    reached = {f"vtc/{name}" if name.split("/")[0] in linked else name for name in tracked()}
    wanted = {name for name in reached if name.startswith("vtc/")} - {f"vtc/{name}" for name in linked}
    logs = {name for name in wanted if name.endswith("log.jsonl")}
    assert len(logs) >= 3
    sweeps = {name for name in wanted if name.startswith("vtc/eval/sweeps/")}
    assert wanted - inside == logs | sweeps  # what made this repository's own files
    assert {name.split("/")[0] for name in inside} == {"vtc", f"vtc_vlm-{vtc.__version__}.dist-info"}
    assert {"vtc/py.typed", "vtc/eval/data/tiny/questions.jsonl", "vtc/models/tiny/tiny-qwen/config.json"} <= inside


def test_the_sdist_holds_the_same_and_no_tests(built):
    with tarfile.open(built.sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in files(built.wheel) if name.startswith("vtc/")} <= inside
    assert not {name for name in inside if name.startswith("tests") or name.endswith("log.jsonl")}
    assert {"LICENSE", "README.md", "pyproject.toml"} <= inside


def described(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return archive.read(name).decode()


def test_the_description_is_the_readme(built):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for wheel in (built.wheel, built.direct):
        assert described(wheel).partition("\n\n")[2].strip() == readme.strip()


def test_its_links_are_absolute_once_there_are_addresses(built, tmp_path):
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    project, urls = source / "pyproject.toml", '[project.urls]\nSource = "https://example.org/o/vtc"\n'
    text = project.read_text().replace("[project.scripts]", f"{urls}\n[project.scripts]")
    project.write_text(text)
    (out := tmp_path / "out").mkdir()
    said = described(build("build_wheel", source, out))
    assert "](https://example.org/o/vtc/raw/HEAD/docs/opening.png)" in said
    assert "](https://example.org/o/vtc/blob/HEAD/docs/cli.md)" in said
    assert not re.findall(r"\]\((?!https://|#)", said)


def test_the_version(installed):
    assert installed.said("vtc", "--version") == f"vtc {vtc.__version__}\n"
    code = "from importlib.metadata import version; print(version('vtc-vlm'))"
    assert installed.said("python", "-c", code) == f"{vtc.__version__}\n"


def test_ask(installed, tmp_path):
    picture = installed.package / "eval" / "data" / "tiny" / "pictures" / "0006.webp"
    options = ["--method", "divprune", "--keep", "0.1", "--save", str(tmp_path / "overlay.png")]
    said = installed.said("vtc", "ask", "--image", str(picture), "--question", "What color is the heart?", *options)
    assert "58 (10 %)" in said
    assert (tmp_path / "overlay.png").stat().st_size > 1000


@pytest.mark.parametrize("data", ["tiny", "tiny-video"])
def test_eval(installed, tmp_path, data):
    options = [
        "--limit",
        "5",
        "--methods",
        "divprune",
        "--keep",
        "0.1",
        "--timing",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    said = installed.said("vtc", "eval", "--data", data, *options)
    assert "divprune" in said
    assert f"results: {tmp_path / 'out'}" in said
    (config,) = (tmp_path / "out").glob("*/full/config.json")
    versions = json.loads(config.read_text())["how"]["versions"]
    assert (versions["vtc"], versions["commit"]) == (vtc.__version__, None)


def test_the_demo_answers(installed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [installed.bin / "vtc", "demo", "--port", str(port), "--device", "cpu"],
        cwd=installed.folder,
        env=installed.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert "<html" in answer(process, f"http://127.0.0.1:{port}/")
    finally:
        process.terminate()
        process.communicate(timeout=60)


def answer(process: subprocess.Popen[str], address: str, seconds: float = 180) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=30) as page:
                return page.read().decode()
        except OSError:
            time.sleep(0.5)
    process.terminate()
    raise AssertionError(f"{address} never answered: {process.communicate()[0]}")
