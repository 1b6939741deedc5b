"""A real browser for tests of pages, where there is one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless Chromium, playwright's ``Browser``; skips the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser ({', '.join(NAMES)})")
    # As root, as in a container, Chromium refuses to start with its sandbox.
    words = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=words)
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Any, path: Path, **context: Any) -> Iterator[Any]:
    """A file as playwright's ``Page``, in which nothing may go wrong nor be fetched.

    Args:
        context: what ``Browser.new_context`` takes.
    """
    page = browser.new_context(**context).new_page()
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda r: wrong.append(r.url) if r.url != path.as_uri() else None)
    page.goto(path.as_uri())
    yield page
    page.context.close()
    assert [w for w in wrong if not w.startswith("data:")] == []
