"""The numbers of a run's test sets, from its folder and its datasets."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_sets import box, forget_new_sets, own_config, valid_content, write_set
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances

from retinanet_plugin.data import register_own_datasets
from retinanet_plugin.tools.report import write_report
from retinanet_plugin.tools.report.datasets import Dataset, load_datasets
from retinanet_plugin.tools.report.run import read_config, read_run
from retinanet_plugin.tools.report.set_report import SetReport, read_set_report

CLASSES = 2


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with forget_new_sets():
        yield


def write_run(folder: Path, **own: str) -> Path:
    """A run on a small own dataset, tested on the same, without an evaluation."""
    content = valid_content()
    content["annotations"] += [
        box(5 + i, 12, (2, 7)[i % 2], [4 * i, 3, 8 + i, 12]) for i in range(6)
    ]
    write_set(folder, content)
    (folder / "test.json").write_text((folder / "train.json").read_text())
    defaults = {"TRAIN_JSON": "train.json", "TEST_JSON": "train.json", "TRAIN_IMAGES": "images"}
    cfg = own_config(folder, CLASSES, **{**defaults, **own})
    register_own_datasets(cfg)
    run = folder / "output"
    (run / "inference").mkdir(parents=True)
    (run / "config.yaml").write_text(cfg.dump())
    return run


def evaluate(run: Path, name: str = "own_test", sub: str = "", *, found: bool = True) -> dict:
    """Lets detectron2 evaluate invented detections, and logs its metrics."""
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


def read(run: Path) -> tuple[list[Dataset], list[SetReport]]:
    """The training sets, and the numbers of the test sets."""
    cfg = read_config(run)
    train, test = load_datasets(cfg)
    of_run = read_run(run, cfg)
    return train, [read_set_report(cfg, dataset, of_run) for dataset in test]


def use_test_sets(run: Path, *names: str) -> None:
    cfg = own_config(run.parent, CLASSES)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), names
    (run / "config.yaml").write_text(cfg.dump())


def test_ap_is_detectron2s_to_the_last_bit(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    expected = evaluate(run)
    (train,), (test_set,) = read(run)
    assert test_set.warning is None and test_set.results is not None
    *classes, mean = test_set.results.accuracies
    found = {f"AP-{c.name}": c.metrics["AP"] for c in classes} | {
        key: mean.metrics[key] for key in ("AP", "AP50", "AP75")
    }
    assert found == {key: expected[key] for key in found}
    assert 0 < expected["AP"] < 100
    assert test_set.metrics == mean.metrics
    assert list(test_set.history["AP"].values()) == [expected["AP"]]
    assert test_set.results.matches.class_names == ["cat", "dög"]
    assert (len(train.files), sum(train.boxes_by_class.values()), mean.boxes[0]) == (3, 9, 9)
    with open(run / "metrics.json", "a") as file:  # by --eval-only of another checkpoint
        file.write('{"iteration": 19, "bbox/AP": 12.5}\n')
    _, (test_set,) = read(run)
    assert test_set.results is not None and "12.500" in str(test_set.warning)


def test_without_detections_there_is_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    evaluate(run, found=False)
    _, (test_set,) = read(run)
    assert test_set.warning is None and set(test_set.metrics.values()) == {None}
    assert test_set.results is not None
    assert write_report(run) == run / "report.html"


def test_each_of_several_test_sets_has_its_own(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    metadata = {k: v for k, v in MetadataCatalog.get("own_test").as_dict().items() if k != "name"}
    DatasetCatalog.register("second", lambda: DatasetCatalog.get("own_test"))
    MetadataCatalog.get("second").set(**metadata)
    use_test_sets(run, "own_test", "second")
    expected = evaluate(run, "second", "second")
    _, (first, second) = read(run)
    assert (first.name, second.name) == ("own_test", "second")
    assert "inference/own_test" in str(first.warning)
    assert second.metrics["AP"] == expected["AP"] and second.warning is None
    assert "Result on second" in write_report(run).read_text("utf-8")


RESULTS = "output/inference/coco_instances_results.json"
ANOTHER_IMAGE = [{"image_id": 99, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 0.5}]


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        (RESULTS, None, "coco_instances_results.json"),
        (RESULTS, '[{"image_id"', "coco_instances_results.json"),
        (RESULTS, json.dumps(ANOTHER_IMAGE), "train.json"),
        ("train.json", None, "DATASETS.OWN.TEST_JSON"),
    ],
)
def test_what_is_missing_is_named_and_the_log_still_counts(
    tmp_path: Path, file: str, content: str | None, named: str
) -> None:
    run = write_run(tmp_path)
    expected = evaluate(run)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    _, (test_set,) = read(run)
    assert test_set.results is None and named in str(test_set.warning)
    assert test_set.metrics["AP"] == expected["AP"]
    page = write_report(run).read_text("utf-8")
    assert f"{expected['AP']:.1f}" in page and "<div data-test-set" not in page


def test_without_the_training_set_the_test_set_still_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path, TEST_JSON="test.json")
    expected = evaluate(run)
    (tmp_path / "train.json").unlink()
    (train,), (test_set,) = read(run)
    assert "TRAIN_JSON" in str(train.missing)
    assert test_set.results is not None and test_set.metrics["AP"] == expected["AP"]


def test_a_dataset_without_a_json_is_read_as_detectron2_wrote_it(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    entries = DatasetCatalog.get("own_test")
    DatasetCatalog.register("plain", lambda: entries)
    MetadataCatalog.get("plain").set(thing_classes=["cat", "dög"])
    use_test_sets(run, "plain")
    expected = evaluate(run, "plain")
    MetadataCatalog.pop("plain")  # as in a new process
    MetadataCatalog.get("plain").set(thing_classes=["cat", "dög"])
    _, (test_set,) = read(run)
    assert test_set.results is not None and test_set.metrics["AP"] == expected["AP"]
