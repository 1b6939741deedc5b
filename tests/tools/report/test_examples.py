"""Which test images are shown as the best and the worst."""

import pytest
from coco_detections import detections_of, one_image

from retinanet_plugin.evaluation.matching import match
from retinanet_plugin.tools.report.examples import choose_examples

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


@pytest.mark.parametrize(
    ("count", "unknown", "worst", "best"),
    [
        (4, None, [9, 4], [7, 2]),
        (100, None, [9, 4, 3], [7, 2]),
        (4, 7, [9, 4], [2, 3]),
        (0, None, [], []),
    ],
)
def test_the_order_is_f1_then_errors_then_boxes(
    count: int, unknown: int | None, worst: list[int], best: list[int]
) -> None:
    coco = {**one_image([]), "images": [{"id": i} for i in IMAGES]}
    results = []
    for image_id, (boxes, detections) in IMAGES.items():
        for box in one_image([(1, x) for x in boxes])["annotations"]:
            box |= {"id": len(coco["annotations"]) + 1, "image_id": image_id}
            coco["annotations"].append(box)
        for result in detections_of(*((1, x, score) for x, score in detections)):
            results.append({**result, "image_id": image_id})
    matches = match(coco, results)
    lists = choose_examples(matches, IMAGES.keys() - {unknown}, 0.5, count=count)
    assert [[matches.image_ids[i] for i in part] for part in lists] == [worst, best]
