from coco_detections import random_set
from retinanet_plugin.tools.report.command.pictures import Pictures, choose

from retinanet_plugin.evaluation.matching import match

# Each picture: boxes at x, detections at x with score; boxes are 10 wide and far from each other.
PICTURES = {
    7: ([0, 50], [(0, 0.9), (50, 0.8)]),  # all found
    2: ([0], [(1, 0.9)]),  # all found, fewer
    3: ([0, 50], [(0, 0.9), (100, 0.8)]),  # one of each
    9: ([0], [(100, 0.9), (150, 0.7), (0, 0.2)]),  # found only below the threshold
    4: ([], [(0, 0.9)]),
    5: ([], [(0, 0.3)]),  # nothing at the threshold
    6: ([], []),
}


def _choose(count: int, left_out: int = -1) -> Pictures:
    coco = {"images": [{"id": i} for i in PICTURES], "categories": [{"id": 1, "name": "cat"}]}
    coco["annotations"], results = [], []
    for number, (boxes, detections) in PICTURES.items():
        for x in boxes:
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x, 5, 10, 20],
                    "area": 200,
                    "iscrowd": 0,
                }
            )
        for x, score in detections:
            box = [x, 5, 10, 20]
            results.append({"image_id": number, "category_id": 1, "bbox": box, "score": score})
    entries = {
        i: {"file_name": f"{i}.png", "width": 300, "height": 30} for i in PICTURES if i != left_out
    }
    return choose(match(coco, results), entries, 0.5, count=count)


def test_the_order_is_f1_then_errors_then_boxes() -> None:
    chosen = _choose(4)
    assert [p.image_id for p in chosen.best] == [7, 2]
    assert [p.image_id for p in chosen.worst] == [9, 4]
    assert [(p.f1, p.errors) for p in chosen.best + chosen.worst] == [
        (1, 0),
        (1, 0),
        (0, 3),
        (0, 1),
    ]
    assert chosen.considered == 5


def test_no_picture_is_among_both() -> None:
    chosen = _choose(100)
    assert [p.image_id for p in chosen.best] == [7, 2]
    assert [p.image_id for p in chosen.worst] == [9, 4, 3]
    assert chosen.worst[-1].f1 == 0.5
    assert _choose(0).best == _choose(0).worst == []


def test_pictures_that_are_not_there_are_passed_over() -> None:
    assert [p.image_id for p in _choose(4, left_out=7).best] == [2, 3]


def test_boxes_and_detections_tell_what_became_of_them() -> None:
    worst = _choose(4).worst[0]
    assert (worst.file, worst.width, worst.height) == ("9.png", 300, 30)
    assert [(t.box, t.label, t.found_score) for t in worst.truths] == [((0, 5, 10, 25), 0, 0.2)]
    assert [(d.box[0], d.score, d.kind) for d in worst.detections] == [
        (100, 0.9, "background"),
        (150, 0.7, "background"),
        (0, 0.2, "right"),
    ]


def test_all_detections_of_a_picture_are_there() -> None:
    coco, results = random_set(5)
    entries = {image["id"]: image for image in coco["images"]}
    chosen = choose(match(coco, results), entries, 0.5, count=100)
    for picture in chosen.best + chosen.worst:
        given = sorted(r["score"] for r in results if r["image_id"] == picture.image_id)
        assert [d.score for d in picture.detections] == given[::-1]
        crowds = [a["iscrowd"] for a in coco["annotations"] if a["image_id"] == picture.image_id]
        assert [t.crowd for t in picture.truths] == crowds
