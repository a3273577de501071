"""`python -m vtc` and the command `vtc`."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C ends it in one line, whatever is being imported when it comes."""
    try:
        from vtc.cli.process import run

        return run()
    except KeyboardInterrupt:  # before `run` listens for it
        sys.stderr.write("vtc: stopped\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
