"""Opens pages in headless Chromium, for tests."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def open_browser() -> Iterator[Any]:
    """Starts Chromium as playwright's ``Browser``; skips the test if either is missing."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium or google-chrome")
    # As root, as in a container, Chromium refuses to start with its sandbox.
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=args)
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Any, path: Path, **context: Any) -> Iterator[Any]:
    """Opens a file as playwright's ``Page``; fails if it logs an error or requests anything.

    Args:
        context: arguments of ``Browser.new_context``.
    """
    page = browser.new_context(**context).new_page()
    faults: list[str] = []
    page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda r: faults.append(r.url) if r.url != path.as_uri() else None)
    page.goto(path.as_uri())
    yield page
    page.context.close()
    assert [fault for fault in faults if not fault.startswith("data:")] == []
