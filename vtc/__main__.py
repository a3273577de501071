"""`python -m vtc` is the command `vtc`."""

import sys

from vtc.cli import main

sys.exit(main())
