"""Where Chromium is: on the path, or $CHROMIUM."""

import os
import shutil

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
CHROMIUM = next(filter(None, [os.environ.get("CHROMIUM"), *map(shutil.which, _NAMES)]), None)
NONE = f"no Chromium: none of {', '.join(_NAMES)} on the path, no $CHROMIUM"
