"""The command line: `minidiff train | sample | edit | guide | ...`."""

from minidiff.cli.main import main

__all__ = ["main"]
