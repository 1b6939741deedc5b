"""Export of a trained model: write the file, load it again and compare it with the model."""

import copy
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from ...acceleration.fast_conv import fold_norms
from ...config import get_config
from ...data import check_datasets, register_own_datasets
from ...engine import Trainer
from ...engine.amp import DTYPES
from ...errors import UserError
from ...evaluation.timing import load_images, noise_images
from ...model_card import versions
from ...predictor import Predictor, config_beside
from ...runtimes.backends import OUTPUTS
from ...runtimes.exported_files import DetectronModel, Runtime, load
from ...runtimes.network import is_exported
from ...utils import sha256
from . import comparison, writers
from .comparison import BOX_TOLERANCE, SCORE_TOLERANCE, Comparison
from .detector import ImageDetector
from .int8 import quantize

PRECISIONS = {
    "onnx": ("float32", "float16", "int8"),
    "pt2": ("float32", "float16", "bfloat16"),
    "torchscript": ("float32", "float16", "bfloat16"),
}
# Lowest share of confident detections that an exported file must have in common with the model.
# Detections in float32 are compared one by one.
_MIN_AGREEMENT = {"float16": 0.98, "bfloat16": 0.9, "int8": 0.8}
_NUM_COMPARED = 8  # images of the test dataset
# Leaves out what speeds up PyTorch on a CPU but no other runtime.
_EAGER_OVERRIDES = (
    *("MODEL.ACCELERATION.WINOGRAD", "False", "MODEL.COMPILE", "False", "TEST.DTYPE", "float32"),
)


@dataclass(frozen=True)
class Options:
    """What to export.

    Args:
        file_format: one of ``exported_files.FORMATS``.
        precision: one of ``PRECISIONS`` of the format.
        layout, channels: of the images, see :class:`ImageDetector`.
        input_dtype: of the images, "uint8" or "float32".
        compiled: compile a .pt2 for this kind of machine.
        calibration: number of training images to measure the ranges of int8 on.

    Raises:
        UserError: if options exclude each other.
    """

    file_format: str = "onnx"
    precision: str = "float32"
    layout: str = "nhwc"
    channels: str = "BGR"
    input_dtype: str = "uint8"
    compiled: bool = False
    calibration: int = 100

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS[self.file_format]:
            raise UserError(
                f"--dtype: --format {self.file_format} has no {self.precision}; give "
                f"{', '.join(PRECISIONS[self.file_format])}, or another --format."
            )
        if self.compiled and self.file_format != "pt2":
            raise UserError(f"--compile: not for --format {self.file_format}; give --format pt2.")


def load_model(
    config: str | Path | None, weights: str | Path, overrides: Sequence[str] = ()
) -> Predictor:
    """Loads a checkpoint for export; ``config`` defaults to the ``config.yaml`` beside it."""
    if is_exported(weights):
        raise UserError(f"--weights: {weights} is an exported model; give a checkpoint.")
    cfg = get_config(config or config_beside(weights), [*overrides, *_EAGER_OVERRIDES])
    with suppress(UserError):  # gives the categories their ids, if the dataset is on this machine
        register_own_datasets(cfg, training=False)
    return Predictor(cfg, weights)


def export(
    predictor: Predictor,
    path: Path,
    options: Options,
    images: Sequence[np.ndarray],
    log: Callable[[str], object] = lambda text: None,
) -> tuple[Runtime, Comparison]:
    """Writes a file, provided that its detections are those of the model.

    Args:
        predictor: from :func:`load_model`.
        path: an existing file is replaced.
        images: to compare both on, from :func:`comparison_images`.
        log: called with what is done.

    Returns:
        the loaded file, and the result of its comparison.

    Raises:
        UserError: if the file cannot be written or differs from the model; none is left then.
    """
    if options.precision == "int8":
        require_dataset(predictor.cfg, training=True)  # before the long work
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        _write(predictor, scratch, options, log)
        log("comparing it with the model")
        runtime = load(scratch, predictor.cfg.MODEL.DEVICE)
        given = list(comparison.batches(images, runtime.metadata["smallest_side"]))
        with tqdm(given, desc="compared", unit=" batches", disable=None) as batches:
            channels = predictor.cfg.INPUT.FORMAT
            result = comparison.compare(runtime, predictor.model, channels, batches)
        _require_agreement(result, path, options.precision)
        scratch.replace(path)
    return runtime, result


def _write(
    predictor: Predictor, path: Path, options: Options, log: Callable[[str], object]
) -> None:
    log(f"writing {options.file_format}, {options.precision}")
    dtype = DTYPES.get(options.precision, torch.float32)
    model = copy.deepcopy(predictor.model)
    fold_norms(model)
    for part in (model.backbone, model.head):
        part.to(dtype).to(memory_format=torch.contiguous_format)
    detector = ImageDetector(
        model,
        layout=options.layout,
        channels=options.channels,
        dtype=dtype,
        compiled=options.compiled,
    ).eval()
    side = predictor.cfg.INPUT.MIN_SIZE_TEST
    if 0 < side < detector.smallest_side:
        raise UserError(
            f"INPUT.MIN_SIZE_TEST: {side} is too small for --compile; give at least "
            f"{detector.smallest_side}, or omit --compile."
        )
    metadata = {**describe(predictor, options), "smallest_side": detector.smallest_side}
    is_int8 = options.precision == "int8"
    target = path.with_name("float32.onnx") if is_int8 else path
    input_dtype = getattr(torch, options.input_dtype)
    writers.write(detector, target, options.file_format, metadata, input_dtype)
    if is_int8:
        log(f"measuring the ranges of int8 on {options.calibration} training images")
        quantize(target, path, _calibration_batches(predictor.cfg, options))


def _calibration_batches(cfg: CfgNode, options: Options) -> Iterator[np.ndarray]:
    images = load_images(cfg, require_dataset(cfg, training=True), options.calibration)
    for given in tqdm(images, desc="calibration", unit=" images", disable=None):
        image = given["image"].numpy()
        image = image[::-1] if options.channels != cfg.INPUT.FORMAT else image
        image = image.transpose(1, 2, 0) if options.layout == "nhwc" else image
        yield np.ascontiguousarray(image[None], dtype=options.input_dtype)


def require_dataset(cfg: CfgNode, *, training: bool = False) -> str:
    """Returns the name of the config's first training or test dataset, registered and checked.

    Raises:
        UserError: if there is none, or it is not on this machine.
    """
    split = "TRAIN" if training else "TEST"
    register_own_datasets(cfg, training=training)
    check_datasets(cfg, training=training)
    if not cfg.DATASETS[split]:
        raise UserError(f"DATASETS.{split}: empty; give a dataset, whose images are needed here.")
    return str(cfg.DATASETS[split][0])


def comparison_images(cfg: CfgNode) -> list[np.ndarray]:
    """Returns images (H, W, 3) in the model's channels; the last one is gray.

    They are from the test dataset, resized as the config says, or noise if there is none.
    """
    try:
        inputs = load_images(cfg, require_dataset(cfg), _NUM_COMPARED)
    except UserError:
        side = cfg.INPUT.MIN_SIZE_TEST or 480
        inputs = noise_images(cfg, side, side * 4 // 3, _NUM_COMPARED)
    images = [x["image"].numpy().transpose(1, 2, 0) for x in inputs]
    return [*images, np.full_like(images[0], 114)]


def _require_agreement(result: Comparison, path: Path, precision: str) -> None:
    if precision == "float32" and result.mismatches:
        raise UserError(
            f"{path}: not written, as it differs from the model by more than {BOX_TOLERANCE} "
            f"pixels or a score of {SCORE_TOLERANCE} in {len(result.mismatches)} of "
            f"{result.images} images ({result.mismatches[0]}); try another --format."
        )
    minimum = _MIN_AGREEMENT.get(precision, 0.0)
    if result.agreement < minimum:
        raise UserError(
            f"{path}: not written, as {precision} changes too much: {result.agreed} of "
            f"{result.confident} confident detections are also the model's, less than "
            f"{minimum:.0%}; try another --dtype, or a larger --calibration for int8."
        )


def describe(predictor: Predictor, options: Options) -> dict[str, Any]:
    """Returns the metadata of the file, see docs/deploy.md."""
    cfg, model = predictor.cfg, predictor.model
    return {
        "format": "retinanet_plugin 1",
        "classes": predictor.classes,
        "category_ids": predictor.category_ids,
        "input": {
            "name": writers.INPUT,
            "layout": options.layout,
            "channels": options.channels,
            "dtype": options.input_dtype,
        },
        "outputs": list(OUTPUTS),
        "resize": {"short_side": cfg.INPUT.MIN_SIZE_TEST, "long_side": cfg.INPUT.MAX_SIZE_TEST},
        "stride": model.backbone.size_divisibility,
        "score_threshold": predictor.score_threshold,
        "nms_threshold": cfg.MODEL.RETINANET.NMS_THRESH_TEST,
        "topk_candidates": cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST,
        "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "precision": options.precision,
        "device": cfg.MODEL.DEVICE,
        "weights_sha256": sha256(cfg.MODEL.WEIGHTS),
        "config_sha256": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        "versions": versions(),
    }


def evaluate(predictor: Predictor, runtime: Runtime | None = None) -> dict[str, float]:
    """Returns the box metrics, in percent, of the file or else the model on the test dataset."""
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = (require_dataset(cfg),)
    model: Any = DetectronModel(runtime, cfg.INPUT.FORMAT) if runtime else predictor.model
    with tempfile.TemporaryDirectory() as folder:
        cfg.OUTPUT_DIR = folder
        results: dict[str, Any] = Trainer.test(cfg, model)
    return {key: float(value) for key, value in results["bbox"].items()}
