"""The command `vtc`."""

from vtc.cli.main import main

__all__ = ["main"]
