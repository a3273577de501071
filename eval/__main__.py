"""`python -m vtc.eval` is `vtc eval`: what `accelerate launch -m vtc.eval` starts."""

import sys

from vtc.cli.process import run

sys.exit(run(["eval", *sys.argv[1:]]))
