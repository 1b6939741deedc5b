"""The page of a run in a real browser, on a phone and on a desktop."""

import json
from collections import Counter

import numpy as np
import pytest
from browser import open_browser, open_page
from coco_sets import box, forget_new_sets, own_config
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet_plugin.errors import UserError
from retinanet_plugin.tools.report.command import write_report

NASTY = "</script><script>alert(1)</script>"
CLASSES = ["cell", NASTY, "a_name_without_any_space_that_is_longer_than_a_phone_is_wide_" * 2]
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
PICTURES = 6


def write_run(folder):
    """A run of six pictures, and its AP by pycocotools."""
    rng = np.random.default_rng(0)
    boxes, found = [], []
    images = [
        {"id": i + 1, "file_name": f"<b>{i}</b>.png", "width": 320, "height": 240}
        for i in range(PICTURES)
    ]
    (folder / "images").mkdir(parents=True)
    for picture in images:
        pixels = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / picture["file_name"].replace("/", "_"))
        picture["file_name"] = picture["file_name"].replace("/", "_")
        for _ in range(6):
            label, corner, size = rng.integers(1, 4), rng.uniform(0, 150, 2), rng.uniform(20, 80, 2)
            place = np.concatenate([corner, size]).round(1)
            boxes.append(box(len(boxes) + 1, picture["id"], int(label), place.tolist()))
            moved = place + rng.normal(0, 8, 4)
            guess = label if rng.random() < 0.7 else rng.integers(1, 4)
            if rng.random() < 0.8:
                found.append((picture["id"], int(guess), moved.tolist(), rng.uniform(0.06, 1)))
        for _ in range(5):
            noise = [*rng.uniform(0, 200, 2), *rng.uniform(20, 90, 2)]
            found.append((picture["id"], int(rng.integers(1, 4)), noise, rng.uniform(0.06, 0.6)))
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

    truth = COCO(str(folder / "test.json"))
    judge = COCOeval(truth, truth.loadRes(detections), "bbox")
    judge.evaluate(), judge.accumulate(), judge.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    metrics = {f"bbox/{n}": float(100 * v) for n, v in zip(names, judge.stats, strict=False)}
    lines = [
        {
            "iteration": 19 + 20 * i,
            "total_loss": 2 / (1 + i),
            "loss_cls": 1 / (1 + i),
            "lr": 1e-5 * i,
        }
        for i in range(30)
    ]
    (run / "metrics.json").write_text(
        "\n".join(json.dumps(line) for line in [*lines, {"iteration": 600, **metrics}]) + "\n"
    )
    return run, content, detections, metrics


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
def test_nothing_scrolls_sideways_and_ap_is_that_of_the_metrics(run, browser, size):
    path, _, _, metrics = run
    with open_page(browser, path, viewport=size) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        shown = page.locator(".result .tile b").all_inner_texts()
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        expected = [metrics[f"bbox/{name}"] for name in names]
        assert shown == [f"{v:.1f}" if v >= 0 else "\u2013" for v in expected]
        right = page.locator("#set-0-pictures").bounding_box()
        for part in page.locator(".plot svg, input, select, .frame").all():  # within its card
            place = part.bounding_box()
            assert place["x"] + place["width"] <= right["x"] + right["width"]
        sizes = page.locator(".plot text").evaluate_all("all => all.map(t => t.getBBox().height)")
        assert sizes and min(sizes) >= 11
        assert page.locator("h1 ~ section").count() and NASTY in page.inner_text("body")


def counts(content, detections, score, label=None):
    """Boxes on the pictures, and of them detections, by brute force."""
    truths = [b for b in content["annotations"] if label in (None, b["category_id"])]
    drawn = [d for d in detections if d["score"] >= score and label in (None, d["category_id"])]
    return len(truths) + len(drawn), len(drawn)


def test_slider_class_and_ticks_choose_the_boxes(run, browser):
    path, content, detections, _ = run
    with open_page(browser, path, viewport=DESKTOP) as page:
        room = page.locator("section", has=page.locator(".shots"))
        slider, choice = room.locator("input[type=range]"), room.locator("select")

        def drawn(kinds=".box"):
            return room.locator(".shot svg").locator(kinds).count()

        assert room.locator(".shot").count() == PICTURES
        for score in (0.05, 0.4, 0.83):
            slider.fill(str(score))
            for value, label in (("", None), ("0", 1), ("1", 2)):
                choice.select_option(value)
                expected = counts(content, detections, score, label)
                assert (drawn(), drawn(".right, .wrong")) == expected, (score, label)
        choice.select_option("")
        slider.fill("0.4")
        every = counts(content, detections, 0.4)
        for kind in ("missed", "truth"):
            room.locator(f"input[value={kind}]").uncheck()
        assert drawn() == every[1] > 0
        room.locator("input[value=wrong]").uncheck()
        assert 0 < drawn() == drawn(".right") < every[1]


def test_the_tally_counts_the_same_boxes_as_the_pictures(run, browser):
    path, content, detections, _ = run
    with open_page(browser, path, viewport=DESKTOP) as page:
        room = page.locator("section", has=page.locator(".shots"))
        room.locator("input[type=range]").fill("0.3")
        tallies = room.locator(".tally").all_inner_texts()
        sums = Counter()
        for tally in tallies:
            for part in tally.split(", "):
                number, kind = part.split()
                sums[kind] += int(number)
        said = room.locator("[data-tally]").inner_text()
        total = len(content["annotations"])
        assert f"{sums['found']} of {total} boxes found" in said
        assert f"{sums['missed']} missed" in said and f"{sums['wrong']} detections wrong" in said
        assert sums["found"] + sums["wrong"] == counts(content, detections, 0.3)[1]


def test_a_curve_tells_its_values_under_the_pointer(run, browser):
    with open_page(browser, run[0], viewport=PHONE, has_touch=True) as page:
        plot = page.locator(".plot").first
        plot.scroll_into_view_if_needed()
        place = plot.bounding_box()
        page.touchscreen.tap(place["x"] + place["width"] - 20, place["y"] + 80)
        assert page.locator(".tip:visible").inner_text().split("\n")[0] == "step 599"


def test_without_a_script_the_numbers_stand_there(run, browser):
    with open_page(browser, run[0], viewport=PHONE, java_script_enabled=False) as page:
        assert page.locator("noscript p").is_visible()
        assert page.locator("details.numbers td").first.is_visible()
        assert all(figure.is_visible() for figure in page.locator(".shot img").all())


def test_of_a_run_without_evaluation_the_losses_are_shown(tmp_path, run):
    source = run[0].parent
    for name in ("config.yaml", "metrics.json"):
        text = (source / name).read_text()
        lines = [line for line in text.splitlines(keepends=True) if "bbox/AP" not in line]
        (tmp_path / name).write_text("".join(lines))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "coco_instances_results.json" in page  # what is not there
    assert "chart-loss" in page and "<div data-test-set" not in page


def test_a_folder_that_is_no_run_is_told_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml"):
        write_report(tmp_path)
