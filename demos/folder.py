"""The folder that a demo keeps its uploads in: gone with the demo, and if that is killed, with the next one.

Each holds a lock on a file in its folder for as long as it lives, which the system takes away from a dead process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is swept
    fcntl = None

_NAME, _UNFINISHED, _LOCK = "vtc-demo-", "vtc-new-demo-", "lock"
_OLD = 3600.0  # s after which a folder that never got its name is a dead process's


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder, deleted at the end. Those of demos that were killed are deleted first."""
    sweep(Path(tempfile.gettempdir()))
    folder = lock = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED if fcntl else _NAME))
        if fcntl:
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            unfinished, folder = folder, folder.with_name(_NAME + folder.name.removeprefix(_UNFINISHED))
            unfinished.rename(folder)  # whoever sweeps sees it from now on, locked
        inner = folder / "uploads"
        inner.mkdir()
        yield inner
    finally:
        if folder is not None:
            _delete(folder / "uploads")
            _delete(folder)  # the lock last
        if lock is not None:
            os.close(lock)


def sweep(place: Path) -> list[Path]:
    """Delete the folders of demos that are dead, of this user only; returns what was deleted."""
    if not fcntl:
        return []
    swept = []
    for folder in [*place.glob(f"{_NAME}*"), *place.glob(f"{_UNFINISHED}*")]:
        with contextlib.suppress(OSError):
            state = folder.lstat()
            if folder.is_symlink() or not folder.is_dir() or state.st_uid != os.getuid():
                continue
            unfinished = folder.name.startswith(_UNFINISHED)
            if time.time() - state.st_mtime > _OLD if unfinished else _is_dead(folder / _LOCK):
                _delete(folder)
                swept.append(folder)
    return swept


def _is_dead(lock: Path) -> bool:
    held = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[union-attr]
    except BlockingIOError:
        return False
    finally:
        os.close(held)
    return True


def _delete(folder: Path) -> None:
    for _ in range(20):  # an upload may be writing into it
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
