"""Source of the browser of the tests."""

import os
import shutil
from pathlib import Path

PATH_VARIABLE = "ASGIBUS_TEST_CHROMIUM"


def find() -> str | None:
    """Return the path of a Chromium: `ASGIBUS_TEST_CHROMIUM`, else the machine's own (or Chrome), else playwright's."""
    if path := os.environ.get(PATH_VARIABLE):
        return path
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    mac = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
    if mac.exists():
        return str(mac)
    return _playwrights()


def _playwrights() -> str | None:
    """Return the newest Chromium that `playwright install chromium` has put into its folder."""
    places = (os.environ.get("PLAYWRIGHT_BROWSERS_PATH"), "~/.cache/ms-playwright", "~/Library/Caches/ms-playwright")
    for place in filter(None, places):
        for pattern in ("chromium-*/chrome-linux*/chrome", "chromium-*/chrome-mac*/*.app/Contents/MacOS/*"):
            if paths := sorted(Path(place).expanduser().glob(pattern)):
                return str(paths[-1])
    return None
