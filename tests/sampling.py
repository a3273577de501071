"""Which cells of the large matrices run by default: others at every commit, all of them in `make test-all`.

Every family runs at every stage in `tests/models/test_listed.py`. Of all other tests that are marked `sampled`, the
families of `tests/listed.py` take part in a share, drawn by a seed that moves with the commit; the others in the share
that the mark says (`most`), and with all their core cells. The seed is printed, and

    VTC_TEST_SEED=SEED pytest ...

draws the same again.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

#: of a listed family's cells
SHARE = 0.012
#: what a method that reads or changes the vision tower is told where that is not for it
NOT_KNOWN = (
    "is no vision tower that vtc knows|pictures of any size in one row|cut into patches and padded|"
    "no module around its blocks|hides some patches from others|in a way that leaves no room|"
    "makes tokens of whole pictures|several of its blocks|of several patches each|learned queries|is not known; choose|"
    "within windows, and by|but for its last stages|words of a codebook|is convolutional: it has no patch tokens"
)
#: what a method is told where a family's towers, grids or layers are not for it; not wrong, and counts as skipped
UNKNOWN = re.compile(
    f"{NOT_KNOWN}|reads attention in decoder layer|"
    r"lets neighbouring layers share keys|assisted generation is not supported with stateful models|"
    r"hand on several states of each token|stand in no row of its language model|not to lie among its words"
)


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        asked = ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "0"


SEED = os.environ.get("VTC_TEST_SEED") or _commit()


def drawn(name: str, share: float = SHARE, seed: str = SEED) -> bool:
    """Whether the cell of that name is among those that run by default."""
    return int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:8], 16) < share * 2**32
