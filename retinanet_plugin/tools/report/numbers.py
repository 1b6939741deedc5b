"""All numbers of a report, from a run's folder."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...data import check_datasets, register_own_datasets
from ...data.own import OWN_TEST, OWN_TRAIN
from ...engine.trainer import inference_folder
from ...errors import UserError
from ...evaluation.matches import (
    ClassAccuracy,
    Confusion,
    Thresholds,
    accuracy,
    best_threshold,
    confusions,
    threshold_curves,
)
from ...evaluation.matching import Matches, match
from .error_kinds import Errors, errors
from .pictures import Pictures, choose
from .run import DatasetSize, Run, read_config, read_run

_SAME_AP = 1e-3  # percent; detectron2's compiled evaluation may round otherwise


@dataclass(frozen=True)
class TestSet:
    """What was found on one test set.

    Args:
        left_out: a sentence that says why the numbers below are None, or None.
        disagrees: a sentence where AP is not that of ``metrics.json``, or None.
        pictures, boxes, crowds, detections: how many.
        all: AP over all classes.
        classes: AP of each.
        confusions: at the thresholds 0.1 .. 0.9 and, first, the one of the best F1.
    """

    name: str
    left_out: str | None
    class_names: list[str]
    disagrees: str | None = None
    pictures: int | None = None
    boxes: int | None = None
    crowds: int | None = None
    detections: int | None = None
    all: ClassAccuracy | None = None
    classes: list[ClassAccuracy] | None = None
    thresholds: Thresholds | None = None
    confusions: list[Confusion] | None = None
    errors: Errors | None = None
    examples: Pictures | None = None


@dataclass(frozen=True)
class Numbers:
    """Of a run and each of its test sets."""

    run: Run
    test_sets: list[TestSet]


def gather(folder: Path, *, num_pictures: int = 24) -> Numbers:
    """Reads a finished run and computes the numbers of its report.

    What needs a data set or detections that are not there any more is left out with a sentence.

    Args:
        num_pictures: of each test set, the best and the worst together.

    Raises:
        UserError: where the folder holds no run.
    """
    cfg = read_config(folder)
    names = {"training": list(cfg.DATASETS.TRAIN), "test": list(cfg.DATASETS.TEST)}
    with _quiet():
        failed = _register_own(cfg)
        loaded = {
            (split, name): _load(cfg, name, failed) for split in names for name in names[split]
        }
    run = read_run(folder, cfg, names["test"])
    test_sets = [
        _test_set(cfg, name, loaded["test", name], run, num_pictures) for name in names["test"]
    ]
    sizes = [_size(split, name, found) for (split, name), found in loaded.items()]
    classes = [found.classes for found in loaded.values() if isinstance(found, _Dataset)]
    run = replace(run, datasets=sizes, class_names=next((c for c in classes if c), []))
    return Numbers(run, test_sets)


@dataclass(frozen=True)
class _Dataset:
    """A data set that is there: detectron2's dicts, and the names of its classes."""

    entries: list[dict[str, Any]]
    classes: list[str]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what loaders tell about data sets that were loaded before."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _register_own(cfg: CfgNode) -> UserError | None:
    """Registers a person's own data sets, the test set alone if need be; what is wrong by now."""
    failed = None
    for training in (True, False):
        try:
            register_own_datasets(cfg, training=training)
            return None
        except UserError as error:
            failed = failed or error
        except OSError as error:
            failed = failed or UserError(f"the data set cannot be read ({error}).")
    return failed


def _load(cfg: CfgNode, name: str, failed: UserError | None) -> _Dataset | str:
    """A data set, or why it is not there, in a sentence."""
    if failed and name in (OWN_TRAIN, OWN_TEST):
        return str(failed)
    only = cfg.clone()
    only.defrost()
    only.DATASETS.TEST = (name,)
    try:
        check_datasets(only, training=False)
        metadata = MetadataCatalog.get(name)
        if metadata.get("drawn_on_demand") and not Path(metadata.json_file).is_file():
            return f"the data set {name} is not at {Path(metadata.json_file).absolute()} any more."
        entries = DatasetCatalog.get(name)
    except UserError as error:
        return str(error)
    except (OSError, ValueError, KeyError) as error:
        return f"the data set {name} cannot be read ({type(error).__name__}: {error})."
    return _Dataset(entries, list(metadata.get("thing_classes") or ()))


def _size(split: str, name: str, found: _Dataset | str) -> DatasetSize:
    if isinstance(found, str):
        return DatasetSize(name, split, None, None, None)
    labels = [
        annotation["category_id"]
        for entry in found.entries
        for annotation in entry.get("annotations", ())
        if not annotation.get("iscrowd")
    ]
    by_class = np.bincount(np.array(labels, int), minlength=len(found.classes))
    return DatasetSize(name, split, len(found.entries), len(labels), by_class.tolist())


def _test_set(
    cfg: CfgNode, name: str, found: _Dataset | str, run: Run, num_pictures: int
) -> TestSet:
    try:
        if isinstance(found, str):
            raise UserError(found)
        results = _read_results(inference_folder(cfg, name) / "coco_instances_results.json", name)
        matches = _match(cfg, name, results)
    except UserError as error:
        return TestSet(name, str(error), [] if isinstance(found, str) else found.classes)
    thresholds = threshold_curves(matches)
    best = best_threshold(thresholds)
    of_all, of_each = accuracy(matches)
    return TestSet(
        name,
        None,
        matches.class_names,
        _disagreement(cfg, name, of_all.ap, run),
        len(matches.image_ids),
        int(matches.num_boxes.sum()),
        int(matches.truths.crowd.sum()),
        len(matches.detections),
        of_all,
        of_each,
        thresholds,
        confusions(matches, best),
        errors(matches, best),
        choose(
            matches,
            {entry["image_id"]: entry for entry in found.entries},
            best,
            count=num_pictures,
        ),
    )


def _match(cfg: CfgNode, name: str, results: list[dict[str, Any]]) -> Matches:
    """With the COCO JSON that detectron2's evaluator read, or made of a data set without one."""
    made = inference_folder(cfg, name) / f"{name}_coco_format.json"
    path = Path(MetadataCatalog.get(name).get("json_file") or made)
    try:
        return match(json.loads(path.read_text(encoding="utf-8")), results)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the detections on {name} do not fit the boxes in {path} ({type(error).__name__}: "
            f"{error}); evaluate again by --eval-only."
        ) from None


def _read_results(path: Path, name: str) -> list[dict[str, Any]]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
        if kind in ("coco", "coco_panoptic_seg"):
            raise UserError(
                f"there is no {path}, which holds the detections on {name}; evaluate by "
                "--eval-only to have it."
            ) from None
        raise UserError(
            f"{name} is evaluated by the rules of {kind}, which leaves no detections behind: what "
            "COCO's rules tell from them is left out."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); evaluate again by --eval-only."
        ) from None
    if not isinstance(results, list):
        raise UserError(f"{path} holds no list of detections; evaluate again by --eval-only.")
    return results


def _disagreement(cfg: CfgNode, name: str, ap: float | None, run: Run) -> str | None:
    """Says if ``metrics.json`` has another AP, which is of other detections then."""
    key = f"{name}/bbox/AP" if len(cfg.DATASETS.TEST) > 1 else "bbox/AP"
    if run.last is None or key not in run.last.metrics:
        return None
    logged = run.last.metrics[key]
    if (logged is None and ap is None) or abs((logged or 0) - (ap or 0)) < _SAME_AP:
        return None
    said = ["nothing" if value is None else f"{value:.3f}" for value in (ap, logged)]
    return (
        f"The detections in {inference_folder(cfg, name)} give an AP of {said[0]}, but "
        f"metrics.json says {said[1]}: they are of another checkpoint or data set."
    )
