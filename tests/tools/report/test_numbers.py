import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_sets import box, forget_new_sets, own_config, valid_content, write_set
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances
from retinanet_plugin.tools.report.command.numbers import Numbers, gather

from retinanet_plugin import UserError
from retinanet_plugin.data import register_own_datasets

CLASSES = 2


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with forget_new_sets():
        yield


def _write_run(folder: Path) -> Path:
    """A run on a small data set of one's own, tested on the same, without an evaluation."""
    content = valid_content()
    content["annotations"] += [
        box(5 + i, 12, (2, 7)[i % 2], [4 * i, 3, 8 + i, 12]) for i in range(6)
    ]
    write_set(folder, content)
    own = {"TRAIN_JSON": "train.json", "TEST_JSON": "train.json", "TRAIN_IMAGES": "images"}
    cfg = own_config(folder, CLASSES, **own)
    register_own_datasets(cfg)
    run = folder / "output"
    (run / "inference").mkdir(parents=True)
    (run / "config.yaml").write_text(cfg.dump())
    return run


def _evaluate(run: Path, name: str = "own_test", sub: str = "", *, found: bool = True) -> dict:
    """Lets detectron2 evaluate made-up detections, and write down what it says."""
    rng = np.random.default_rng(0)
    evaluator = COCOEvaluator(name, tasks=("bbox",), output_dir=str(run / "inference" / sub))
    evaluator.reset()
    for entry in DatasetCatalog.get(name):
        xywh = np.array([a["bbox"] for a in entry["annotations"]] * 3, float)
        xywh += rng.normal(0, 1, xywh.shape)
        labels = [a["category_id"] for a in entry["annotations"]] * 3
        instances = Instances((entry["height"], entry["width"]))
        corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        instances.pred_boxes = Boxes(torch.as_tensor(corners, dtype=torch.float32))
        instances.pred_classes = torch.as_tensor(labels)
        instances.scores = torch.as_tensor(rng.random(len(labels)), dtype=torch.float32)
        evaluator.process([entry], [{"instances": instances if found else instances[:0]}])
    results = evaluator.evaluate()
    scalars = flatten_results_dict({name: results} if sub else results)
    with open(run / "metrics.json", "a") as file:
        file.write(json.dumps({"iteration": 9, **scalars}) + "\n")
    return results["bbox"]


def _json(numbers: Numbers) -> str:
    return json.dumps(dataclasses.asdict(numbers), allow_nan=False)


def test_ap_is_detectron2s_to_the_last_bit(tmp_path: Path) -> None:
    run = _write_run(tmp_path)
    expected = _evaluate(run)
    numbers = gather(run)
    (test_set,) = numbers.test_sets
    assert (test_set.left_out, test_set.disagrees) == (None, None)
    assert test_set.all is not None and test_set.classes is not None
    found = {"AP": test_set.all.ap, "AP50": test_set.all.ap50, "AP75": test_set.all.ap75}
    found |= {f"AP-{c.name}": c.ap for c in test_set.classes}
    assert found == {key: expected[key] for key in found}
    assert 0 < expected["AP"] < 100
    assert numbers.run.last is not None
    assert numbers.run.last.metrics["bbox/AP"] == test_set.all.ap
    assert numbers.run.class_names == test_set.class_names == ["cat", "dög"]
    assert (test_set.pictures, test_set.boxes, test_set.crowds) == (3, 9, 1)
    assert [(d.split, d.pictures, d.boxes) for d in numbers.run.datasets] == [
        ("training", 3, 9),
        ("test", 3, 9),
    ]
    assert len(_json(numbers)) > 1000


def test_confusion_and_curves_meet_at_the_best_threshold(tmp_path: Path) -> None:
    run = _write_run(tmp_path)
    _evaluate(run)
    (test_set,) = gather(run).test_sets
    assert test_set.confusions and test_set.thresholds and test_set.errors and test_set.examples
    first, curve = test_set.confusions[0], test_set.thresholds.all
    assert curve.best is not None
    assert first.threshold == test_set.thresholds.scores[curve.best]
    assert test_set.errors.threshold == test_set.examples.threshold == first.threshold
    diagonal = sum(count for row, column, count in first.counts if row == column)
    assert diagonal == curve.true_positives[curve.best]
    boxes = sum(count for row, _, count in first.counts if row < CLASSES)
    assert boxes == curve.boxes == test_set.boxes


def test_without_detections(tmp_path: Path) -> None:
    run = _write_run(tmp_path)
    _evaluate(run, found=False)
    numbers = gather(run)
    (test_set,) = numbers.test_sets
    assert (test_set.left_out, test_set.disagrees) == (None, None)
    assert test_set.all is not None and test_set.all.ap is None
    assert test_set.examples is not None and test_set.examples.worst[0].f1 == 0
    _json(numbers)


def test_each_of_several_test_sets_has_its_own(tmp_path: Path) -> None:
    run = _write_run(tmp_path)
    metadata = {k: v for k, v in MetadataCatalog.get("own_test").as_dict().items() if k != "name"}
    DatasetCatalog.register("second", lambda: DatasetCatalog.get("own_test"))
    MetadataCatalog.get("second").set(**metadata)
    cfg = own_config(tmp_path, CLASSES)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("own_test", "second")
    (run / "config.yaml").write_text(cfg.dump())
    expected = _evaluate(run, "second", "second")
    first, second = gather(run).test_sets
    assert (first.name, second.name) == ("own_test", "second")
    assert first.left_out is not None and "inference/own_test" in first.left_out
    assert second.all is not None and second.all.ap == expected["AP"]
    assert second.disagrees is None


def test_detections_of_another_checkpoint_are_told(tmp_path: Path) -> None:
    run = _write_run(tmp_path)
    _evaluate(run)
    with open(run / "metrics.json", "a") as file:
        file.write('{"iteration": 19, "bbox/AP": 12.5}\n')
    (test_set,) = gather(run).test_sets
    assert test_set.disagrees is not None and "metrics.json says 12.500" in test_set.disagrees


def _no_detections(run: Path) -> None:
    (run / "inference" / "coco_instances_results.json").unlink()


def _cut_short(run: Path) -> None:
    (run / "inference" / "coco_instances_results.json").write_text('[{"image_id"')


def _no_list(run: Path) -> None:
    (run / "inference" / "coco_instances_results.json").write_text("{}")


def _another_picture(run: Path) -> None:
    wrong = {"image_id": 99, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 0.5}
    (run / "inference" / "coco_instances_results.json").write_text(json.dumps([wrong]))


def _no_data_set(run: Path) -> None:
    (run.parent / "train.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_detections, "no .*coco_instances_results.json.* --eval-only"),
        (_cut_short, "coco_instances_results.json cannot be read"),
        (_no_list, "no list of detections"),
        (_another_picture, r"do not fit the boxes in .*train.json.*99"),
        (_no_data_set, "DATASETS.OWN.TRAIN_JSON.*no file"),
    ],
)
def test_what_is_not_there_is_left_out_with_a_sentence(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    run = _write_run(tmp_path)
    expected = _evaluate(run)
    spoil(run)
    numbers = gather(run)
    (test_set,) = numbers.test_sets
    assert test_set.left_out is not None
    assert re.search(said, test_set.left_out), test_set.left_out
    assert test_set.all is test_set.errors is test_set.examples is None
    assert numbers.run.last is not None and numbers.run.last.metrics["bbox/AP"] == expected["AP"]
    _json(numbers)


def test_without_the_training_set_the_test_set_still_counts(tmp_path: Path) -> None:
    run = _write_run(tmp_path)
    (tmp_path / "test.json").write_text((tmp_path / "train.json").read_text())
    own = {"TRAIN_JSON": "train.json", "TEST_JSON": "test.json", "TRAIN_IMAGES": "images"}
    cfg = own_config(tmp_path, CLASSES, **own)
    register_own_datasets(cfg)
    (run / "config.yaml").write_text(cfg.dump())
    expected = _evaluate(run)
    (tmp_path / "train.json").unlink()
    for name in ("own_train", "own_test"):  # as in a new process
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
    numbers = gather(run)
    assert [d.pictures for d in numbers.run.datasets] == [None, 3]
    assert numbers.test_sets[0].all is not None
    assert numbers.test_sets[0].all.ap == expected["AP"]


def test_other_evaluators_leave_a_sentence(tmp_path: Path) -> None:
    run = _write_run(tmp_path)
    DatasetCatalog.register("voc", lambda: DatasetCatalog.get("own_test"))
    MetadataCatalog.get("voc").set(evaluator_type="pascal_voc", thing_classes=["cat", "dög"])
    cfg = own_config(tmp_path, CLASSES)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("voc",)
    (run / "config.yaml").write_text(cfg.dump())
    numbers = gather(run)
    assert numbers.test_sets[0].left_out is not None
    assert "pascal_voc" in numbers.test_sets[0].left_out
    assert [(d.name, d.pictures) for d in numbers.run.datasets] == [("voc", 3)]


def test_a_data_set_without_a_json_is_read_as_detectron2_wrote_it(tmp_path: Path) -> None:
    run = _write_run(tmp_path)
    entries = DatasetCatalog.get("own_test")
    DatasetCatalog.register("plain", lambda: entries)
    MetadataCatalog.get("plain").set(thing_classes=["cat", "dög"])
    cfg = own_config(tmp_path, CLASSES)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("plain",)
    (run / "config.yaml").write_text(cfg.dump())
    expected = _evaluate(run, "plain")
    MetadataCatalog.pop("plain")  # as in a new process
    MetadataCatalog.get("plain").set(thing_classes=["cat", "dög"])
    (test_set,) = gather(run).test_sets
    assert test_set.all is not None and test_set.all.ap == expected["AP"]


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the OUTPUT_DIR"):
        gather(tmp_path)
