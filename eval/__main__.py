"""`python -m vtc.eval` is `vtc eval`: what `accelerate launch -m vtc.eval` starts."""

import sys

from vtc.cli.main import main

sys.exit(main(["eval", *sys.argv[1:]]))
