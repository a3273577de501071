"""`python -m vtc` is the command `vtc`."""

import sys

from vtc.cli.main import main

sys.exit(main())
