"""The command `vtc`: `vtc.__main__` is its process, `vtc.cli.main` its commands."""
