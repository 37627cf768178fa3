"""The command line: thin commands over the public API. Starting it loads no tensor library."""

from tunescope.cli.main import main

__all__ = ["main"]
