"""The browser that all files in this folder share."""

import os
import shutil

import pytest

# Where Debian, Ubuntu and others put Chromium; CHROMIUM names another place.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.fail("No Chromium was found. `sudo apt install chromium` gets it, or CHROMIUM names where it is.")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()
