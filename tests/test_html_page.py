"""The shell of pages: what people named is shown, not run, and comes through unchanged."""

import base64
import re
from html.parser import HTMLParser
from json import loads

import cv2
import numpy as np
from browser import open_browser

from retinanet_plugin.html_page import data, image, page, table, text

NASTY = "</script><script>alert(1)</script><!-- \"'&\u2028"


class Parts(HTMLParser):
    """Elements by their tags, with the text right within each."""

    def __init__(self, code):
        super().__init__()
        self.found = []
        self.feed(code)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes), ""))

    def handle_data(self, text):
        tag, attributes, before = self.found[-1]
        self.found[-1] = (tag, attributes, before + text)


def test_what_people_named_is_text():
    parts = Parts(f'<p title="{text(NASTY)}">{text(NASTY)}</p>').found
    assert parts == [("p", {"title": NASTY}, NASTY)]
    text("lone \udcff surrogate").encode("utf-8")
    parts = Parts(table([NASTY], [[NASTY], [3]])).found
    assert [p[2].strip("\n") for p in parts if p[0] in ("th", "td")] == [NASTY, NASTY, "3"]


def test_data_comes_back_and_cannot_end_its_element():
    value = {NASTY: [1, 2.5, None, True, NASTY], "nested": [[{"a": float("nan")}, float("inf")]]}
    ((tag, attributes, code),) = Parts(data("numbers", value)).found
    assert (tag, attributes["id"]) == ("script", "numbers")
    assert loads(code) == {**value, "nested": [[{"a": None}, None]]}


def test_a_picture_is_made_smaller_and_keeps_its_colours():
    rgb = np.zeros((100, 400, 3), np.uint8)
    rgb[:, :, 0] = 200  # red
    ((_, attributes, _),) = Parts(image(rgb, alt=NASTY, max_side=200)).found
    code = base64.b64decode(attributes["src"].partition("base64,")[2])
    bgr = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_COLOR)
    assert bgr.shape == (50, 200, 3) == (int(attributes["height"]), int(attributes["width"]), 3)
    assert np.abs(bgr.astype(int) - [0, 0, 200]).max() < 12 and attributes["alt"] == NASTY


def test_a_browser_runs_the_pages_script_and_no_other(tmp_path):
    bad = "<script>document.title='bad'</script><img src=x onerror=\"document.title='bad'\">"
    code = page("good", bad, script="document.body.dataset.ran = 'yes';\r\n")
    (tmp_path / "page.html").write_text(code, encoding="utf-8")
    with open_browser() as browser:
        opened = browser.new_page()
        opened.goto((tmp_path / "page.html").as_uri())
        assert opened.title() == "good"
        assert opened.evaluate("document.body.dataset.ran") == "yes"
        blocked = "new Promise(done => {addEventListener('securitypolicyviolation', () => done(1));"
        assert opened.evaluate(blocked + "fetch('http://127.0.0.1:9/').catch(() => 0)})") == 1
    assert not re.search(r"https?://", code)
