"""The page of a run in a real browser: the class filter and the score slider."""

import json

import numpy as np
import pytest
from browser import open_browser, open_page
from coco_sets import box, forget_new_sets, own_config
from PIL import Image

from retinanet_plugin.errors import UserError
from retinanet_plugin.tools.report import write_report
from retinanet_plugin.tools.report.command import main

NASTY = "</script><script>alert(1)</script>"
CLASSES = ["cell", NASTY, "a_name_without_any_space_that_is_longer_than_a_phone_is_wide_" * 2]
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
IMAGES = 6


def write_run(folder):
    """A run with six test images, with its dataset and detections."""
    rng = np.random.default_rng(0)
    boxes, found = [], []
    images = [
        {"id": i + 1, "file_name": f"<b>{i}.png", "width": 320, "height": 240}
        for i in range(IMAGES)
    ]
    (folder / "images").mkdir(parents=True)
    for image in images:
        pixels = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / image["file_name"])
        for _ in range(6):
            label, corner, size = rng.integers(1, 4), rng.uniform(0, 150, 2), rng.uniform(20, 80, 2)
            xywh = np.concatenate([corner, size]).round(1)
            boxes.append(box(len(boxes) + 1, image["id"], int(label), xywh.tolist()))
            moved = xywh + rng.normal(0, 8, 4)
            guess = label if rng.random() < 0.7 else rng.integers(1, 4)
            if rng.random() < 0.8:
                found.append((image["id"], int(guess), moved.tolist(), rng.uniform(0.06, 1)))
        for _ in range(5):
            noise = [*rng.uniform(0, 200, 2), *rng.uniform(20, 90, 2)]
            found.append((image["id"], int(rng.integers(1, 4)), noise, rng.uniform(0.06, 0.6)))
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"info": {}, "images": images, "annotations": boxes, "categories": categories}
    detections = [
        dict(zip(("image_id", "category_id", "bbox", "score"), row, strict=True)) for row in found
    ]
    run = folder / "run"
    (run / "inference").mkdir(parents=True)
    (folder / "test.json").write_text(json.dumps(content))
    (run / "inference" / "coco_instances_results.json").write_text(json.dumps(detections))
    cfg = own_config(folder, TEST_JSON="test.json", TEST_IMAGES="images")
    cfg.DATASETS.TEST = ("own_test",)
    cfg.MODEL.RETINANET.NUM_CLASSES = len(CLASSES)
    cfg.OUTPUT_DIR = str(run)
    (run / "config.yaml").write_text(cfg.dump())

    lines = [
        {
            "iteration": 19 + 20 * i,
            "total_loss": 2 / (1 + i),
            "loss_cls": 1 / (1 + i),
            "lr": 1e-5 * i,
        }
        for i in range(30)
    ]
    (run / "metrics.json").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
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
            for value, class_id in (("3", None), ("0", 1), ("1", 2)):
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
    with pytest.raises(UserError, match=r"config\.yaml"):
        main([str(tmp_path)])
