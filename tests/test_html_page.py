"""The shell of all pages: values are shown and not run, and nothing is fetched."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import open_browser
from matplotlib.figure import Figure

from retinanet_plugin.html_page import figure_svg, image_tag, render

NASTY = "</script><script>alert(1)</script><!-- \"'&\u2028"
TEMPLATE = """{% extends "page.html" %}
{% block body %}
<p title="{{ value }}">{{ value }}</p>
<script type="application/json">{{ value | tojson }}</script>
{% endblock %}"""


class Elements(HTMLParser):
    """The elements of a page, each with its attributes and the text directly in it."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(str(code))  # Markup would escape what is added to it

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.elements:
            tag, attributes, before = self.elements[-1]
            self.elements[-1] = (tag, attributes, before + data)


def write_template(folder: Path, text: str = TEMPLATE) -> Path:
    (folder / "template.html").write_text(text)
    return folder / "template.html"


def test_values_are_shown_as_text(tmp_path: Path) -> None:
    page = render(write_template(tmp_path), title=NASTY, value=NASTY)
    elements = Elements(page).elements
    assert [e[2].strip("\n") for e in elements if e[0] in ("title", "h1")] == [NASTY, NASTY]
    assert [(e[1]["title"], e[2].strip("\n")) for e in elements if e[0] == "p"] == [(NASTY, NASTY)]
    data, script = (e for e in elements if e[0] == "script")
    assert json.loads(data[2]) == NASTY and not script[2].strip()
    render(write_template(tmp_path), title="x", value="lone \udcff surrogate").encode("utf-8")
    with pytest.raises(ValueError, match="JSON"):
        render(write_template(tmp_path), title="x", value=float("nan"))


def test_an_image_is_scaled_down_and_keeps_its_colors() -> None:
    rgb = np.zeros((320, 1280, 3), np.uint8)
    rgb[:, :, 0] = 200  # red
    ((_, attributes, _),) = Elements(image_tag(rgb, alt=NASTY)).elements
    code = base64.b64decode(str(attributes["src"]).partition("base64,")[2])
    bgr = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_COLOR)
    assert bgr.shape == (160, 640, 3)
    assert (attributes["width"], attributes["height"], attributes["alt"]) == ("640", "160", NASTY)
    assert np.abs(bgr.astype(int) - [0, 0, 200]).max() < 12


def test_a_figure_holds_text_and_the_colors_of_the_page() -> None:
    figure = Figure()
    figure.subplots().plot([1, 2], label=NASTY, color="black")
    figure.legend()
    elements = Elements(figure_svg(figure, alt=NASTY)).elements
    assert elements[0][:2] == ("svg", {**elements[0][1], "aria-label": NASTY})
    assert any(e[0] == "text" and NASTY in e[2] for e in elements)
    assert not any(e[0] == "script" for e in elements)
    assert any("stroke: currentColor" in str(e[1].get("style")) for e in elements)


def test_a_browser_runs_the_script_of_the_page_and_no_other(tmp_path: Path) -> None:
    bad = "<script>document.title='bad'</script><img src=x onerror=\"document.title='bad'\">"
    template = write_template(
        tmp_path, '{% extends "page.html" %}{% block body %}' + bad + "{% endblock %}"
    )
    code = render(template, title="good", script="document.body.dataset.ran = 'yes';")
    (tmp_path / "page.html").write_text(code, encoding="utf-8")
    with open_browser() as browser:
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        assert page.title() == "good"
        assert page.evaluate("document.body.dataset.ran") == "yes"
        blocked = "new Promise(done => {addEventListener('securitypolicyviolation', () => done(1));"
        assert page.evaluate(blocked + "fetch('http://127.0.0.1:9/').catch(() => 0)})") == 1
    assert not re.search(r"https?://", code)
