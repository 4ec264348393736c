"""Folders of files that the package carries, by the names that stand for them."""

import pathlib

_PACKAGE = pathlib.Path(__file__).parent.parent

# CLIPs in HuggingFace's layout.
CLIPS = {"world": _PACKAGE / "world" / "clip"}
