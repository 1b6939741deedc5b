"""The page of a run in a real browser: the class filter and the score slider."""

import json

import numpy as np
import pytest
from browser import open_browser, open_page
from coco_detections import random_set
from coco_sets import forget_new_sets, own_config
from PIL import Image

from retinanet_plugin.errors import UserError
from retinanet_plugin.tools.report import write_report
from retinanet_plugin.tools.report.command import main

NASTY = "</script><script>alert(1)</script>"
CLASSES = ["cell", NASTY, "a_name_without_any_space_that_is_longer_than_a_phone" * 2, "$x$"]
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
IMAGES = 6


def write_run(folder):
    """A run with six test images; returns its folder, its dataset and its detections."""
    content, detections = random_set(3, num_images=IMAGES, crowds=0, ties=False)
    run = folder / "run"
    (run / "inference").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image in content["images"]:
        image |= {"file_name": f"<b>{image['id']}.png", "width": 200, "height": 200}
        pixels = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / image["file_name"])
    for category, name in zip(content["categories"], CLASSES, strict=True):
        category["name"] = name
    (folder / "test.json").write_text(json.dumps({"info": {}, **content}))
    (run / "inference" / "coco_instances_results.json").write_text(json.dumps(detections))
    cfg = own_config(folder, TEST_JSON="test.json", TEST_IMAGES=".")
    cfg.DATASETS.TEST = ("own_test",)
    cfg.MODEL.RETINANET.NUM_CLASSES = len(CLASSES)
    (run / "config.yaml").write_text(cfg.dump())
    names = ("total_loss", "loss_cls", "loss_box_reg", "lr")
    lines = [{"iteration": 20 * i + 19, **dict.fromkeys(names, 2 / (1 + i))} for i in range(30)]
    (run / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    return run, content, detections


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with forget_new_sets():
        folder, *rest = write_run(tmp_path_factory.mktemp("report"))
        yield (write_report(folder), *rest)


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_scrolls_sideways_and_names_are_text(run, browser, size):
    with open_page(browser, run[0], viewport=size) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        card = page.locator("#set-0-images").bounding_box()
        for part in page.locator("svg.chart, input, select, .frame").all():
            bounds = part.bounding_box()
            assert bounds is None or bounds["x"] + bounds["width"] <= card["x"] + card["width"]
        texts = page.locator("svg.chart text").evaluate_all(
            "all => all.map(text => text.getBoundingClientRect().height)"
        )
        assert texts and min(texts) >= 9
        assert NASTY in page.inner_text("body")


def test_the_slider_and_the_class_choose_the_boxes(run, browser):
    path, content, detections = run
    with open_page(browser, path, viewport=DESKTOP) as page:
        for details in page.locator("details").all():
            details.evaluate("details => { details.open = true; }")
        section = page.locator("#set-0-images")
        slider, choice = section.locator("input[type=range]"), section.locator("select")

        def drawn(kinds=".box"):
            return section.locator(f".shot {kinds}:visible").count()

        assert section.locator(".shot").count() == IMAGES
        for score in (0.05, 0.4, 0.83):
            slider.fill(str(score))
            for value, class_id in (("4", None), ("0", 1), ("1", 3)):
                choice.select_option(value)
                is_own = lambda row: class_id in (None, row["category_id"])  # noqa: B023, E731
                truths = sum(map(is_own, content["annotations"]))
                shown = sum(is_own(d) and d["score"] >= score for d in detections)
                right, wrong, missed = (drawn(f".{k}") for k in ("right", "wrong", "missed"))
                assert (drawn("[data-truth]"), right + wrong) == (truths, shown)
                total = section.locator(".total").inner_text()
                assert f"{truths - missed} of {truths} boxes" in total
                assert f"{missed} missed" in total and f"{wrong} wrong" in total
                sums = np.zeros(3, int)
                for tally in section.locator(".tally").all_inner_texts():
                    sums += [int(part.split()[0]) for part in tally.split(", ")]
                assert sums.tolist() == [right, wrong, missed] and right == truths - missed
                mean = page.locator("[id^=set-0-recall-]:not([hidden])").count()
                assert mean == (4 if class_id is None else 2)  # the classes and their mean
        section.locator("input[value=wrong]").uncheck()
        assert drawn(".wrong") == 0
        # The controls of all parts are the same.
        assert page.locator("#set-0-confusion output").inner_text() == "0.83"
        assert page.locator(".confusion:visible").get_attribute("data-from") == "0.8"


def test_without_a_script_the_numbers_and_boxes_are_there(run, browser):
    with open_page(browser, run[0], viewport=PHONE, java_script_enabled=False) as page:
        assert page.locator("noscript p").is_visible()
        assert page.locator(".confusion table:visible").count() == 1
        assert page.locator(".shot .box:visible").count() and page.locator("svg.chart").count() > 3


def test_the_command_writes_where_it_is_told(run, tmp_path, capsys):
    output = tmp_path / "new" / "page.html"
    main([str(run[0].parent), "--output", str(output)])
    assert capsys.readouterr().out.strip() == str(output)
    assert output.read_text("utf-8") == run[0].read_text("utf-8")
    with pytest.raises(UserError, match="--output"):
        main([str(run[0].parent), "--output", str(output)])
