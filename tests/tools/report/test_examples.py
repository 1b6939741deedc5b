"""Which test images are shown as the best and the worst."""

from coco_detections import detections_of, one_image

from retinanet_plugin.evaluation.matching import Matches, match
from retinanet_plugin.tools.report.examples import Example, choose_examples

# By image id: boxes at x, and detections at x with score.
IMAGES = {
    7: ([0, 50], [(0, 0.9), (50, 0.8)]),  # all found
    2: ([0], [(1, 0.9)]),  # all found, but fewer
    3: ([0, 50], [(0, 0.9), (100, 0.8)]),  # one of each
    9: ([0], [(100, 0.9), (150, 0.7), (0, 0.2)]),  # found only below the threshold
    4: ([], [(0, 0.9)]),
    5: ([], [(0, 0.3)]),  # nothing at the threshold
    6: ([], []),
}


def choose(count: int, missing: int = -1) -> tuple[Matches, list[Example], list[Example]]:
    coco = {**one_image([]), "images": [{"id": i} for i in IMAGES]}
    results = []
    for image_id, (boxes, detections) in IMAGES.items():
        for box in one_image([(1, x) for x in boxes])["annotations"]:
            box |= {"id": len(coco["annotations"]) + 1, "image_id": image_id}
            coco["annotations"].append(box)
        for result in detections_of(*((1, x, score) for x, score in detections)):
            results.append({**result, "image_id": image_id})
    files = {i: f"{i}.png" for i in IMAGES if i != missing}
    matches = match(coco, results)
    return matches, *choose_examples(matches, files, 0.5, count=count)


def test_the_order_is_f1_then_errors_then_boxes() -> None:
    _, best, worst = choose(4)
    assert [(e.file, e.f1, e.errors) for e in best] == [("7.png", 1, 0), ("2.png", 1, 0)]
    assert [(e.file, e.f1, e.errors) for e in worst] == [("9.png", 0, 3), ("4.png", 0, 1)]


def test_no_image_is_in_both_lists_and_missing_ones_are_skipped() -> None:
    _, best, worst = choose(100)
    assert [e.file for e in best] == ["7.png", "2.png"]
    assert [e.file for e in worst] == ["9.png", "4.png", "3.png"]
    _, best, worst = choose(0)
    assert best == worst == []
    _, best, worst = choose(4, missing=7)
    assert [e.file for e in best] == ["2.png", "3.png"]


def test_an_example_has_all_its_boxes_and_detections() -> None:
    matches, _, (example, _) = choose(4)
    assert matches.truths.box[example.truths].tolist() == [[0, 0, 10, 10]]
    assert matches.detections.score[example.detections].tolist() == [0.9, 0.7, 0.2]
