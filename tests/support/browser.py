"""A headless Chromium for pages of ours, where there is one: the test is skipped elsewhere."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import time

import pytest

from studies.speed.report_page import NAMES, Browser


@contextlib.contextmanager
def opened(page: pathlib.Path, profile: pathlib.Path, downloads: pathlib.Path):
    """The page in a Chromium with nothing but the page. Files that it saves go to `downloads`."""
    program = next(filter(shutil.which, NAMES), None)
    if program is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium)")
    browser = Browser(program, str(profile))
    try:
        where = {"behavior": "allow", "downloadPath": str(downloads)}
        browser.call("Browser.setDownloadBehavior", **where)
        browser.call("Page.navigate", until="Page.loadEventFired", url=page.as_uri())
        yield browser
    finally:
        browser.close()


def press(browser: Browser, key: str) -> None:
    """A key, as a person presses it."""
    code = {"text": key} if len(key) == 1 else {}
    browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, **code)
    browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)


def saved(folder: pathlib.Path, seconds: float = 20.0) -> pathlib.Path:
    """The one file that a page saved, when it is whole."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = [path for path in folder.glob("*.json") if path.stat().st_size]
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"nothing was saved: {list(folder.iterdir())}")
