"""Export of a trained model: write the file, load it again and compare it with the model."""

import copy
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor
from tqdm import tqdm

from ...acceleration.fast_conv import fold_norms
from ...config import get_config
from ...data import check_registered_datasets, register_own_datasets
from ...engine.amp import DTYPES
from ...errors import UserError
from ...evaluation.timing import load_images, noise_images
from ...predictor import Predictor, config_beside
from ...runtimes.backends import OUTPUTS
from ...runtimes.exported_files import ExportedModel, is_exported, load
from ...utils import sha256
from . import writers
from .card import versions
from .comparison import TOLERANCES, Comparison, batches, compare
from .detector import ImageDetector
from .int8 import quantize

PRECISIONS = {
    "onnx": ("float32", "float16", "int8"),
    "pt2": ("float32", "float16", "bfloat16"),
    "torchscript": ("float32", "float16", "bfloat16"),
}
_NUM_COMPARED = 8  # images of the test dataset
# Leaves out what speeds up PyTorch on a CPU but no other runtime.
_EAGER_OVERRIDES = (
    *("MODEL.ACCELERATION.WINOGRAD", "False", "MODEL.COMPILE", "False", "TEST.DTYPE", "float32"),
)


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
    predictor: Predictor, path: Path, options: Namespace, images: Sequence[Tensor]
) -> tuple[ExportedModel, Comparison]:
    """Writes a file, provided that its detections are those of the model.

    Args:
        predictor: from :func:`load_model`.
        path: an existing file is replaced.
        options: of the command.
        images: to compare both on, from :func:`comparison_images`.

    Returns:
        the loaded file, and the result of its comparison.

    Raises:
        UserError: if the file cannot be written or differs from the model; none is left then.
    """
    tolerance = TOLERANCES[options.dtype]
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        _write(predictor, scratch, options)
        exported = load(scratch, predictor.cfg.MODEL.DEVICE)
        given = tqdm(list(batches(images)), desc="comparing", unit="batch", disable=None)
        result = compare(exported, predictor.model, tolerance, given)
        if result.share < tolerance.share:
            raise UserError(
                f"{path}: not written, as only {result.same} of {result.detections} detections are "
                f"in both the model and the file, less than {tolerance.share:.0%}; try another "
                "--format or --dtype, or a larger --calibration for int8."
            )
        scratch.replace(path)
    return exported, result


def _write(predictor: Predictor, path: Path, options: Namespace) -> None:
    cfg, dtype = predictor.cfg, DTYPES.get(options.dtype, torch.float32)
    is_int8 = options.dtype == "int8"
    training_images = _calibration_batches(cfg, options) if is_int8 else []  # before the long work
    model = copy.deepcopy(predictor.model)
    fold_norms(model)
    for part in (model.backbone, model.head):
        part.to(dtype).to(memory_format=torch.contiguous_format)
    detector = ImageDetector(model, layout=options.layout, channels=options.channels, dtype=dtype)
    target = path.with_name("float32.onnx") if is_int8 else path
    input_dtype = getattr(torch, options.input)
    metadata = _metadata(predictor, options)
    writers.write(detector.eval(), target, options.format, metadata, input_dtype)
    if is_int8:
        quantize(target, path, training_images)


def _calibration_batches(cfg: CfgNode, options: Namespace) -> Iterator[np.ndarray]:
    images = load_images(cfg, registered_dataset(cfg, "TRAIN"), options.calibration)

    def convert(image: np.ndarray) -> np.ndarray:
        image = image[::-1] if options.channels != cfg.INPUT.FORMAT else image
        image = image.transpose(1, 2, 0) if options.layout == "nhwc" else image
        return np.ascontiguousarray(image[None], dtype=options.input)

    bar = tqdm(images, desc="calibration", unit="image", disable=None)
    return (convert(x["image"].numpy()) for x in bar)


def registered_dataset(cfg: CfgNode, split: str) -> str:
    """Returns the name of the first dataset in ``DATASETS.TRAIN`` or ``TEST``.

    Raises:
        UserError: if there is none, or it is not on this machine.
    """
    register_own_datasets(cfg, training=split == "TRAIN")
    check_registered_datasets(cfg, training=split == "TRAIN")
    return str(cfg.DATASETS[split][0])


def comparison_images(cfg: CfgNode) -> list[Tensor]:
    """Returns images (3, H, W), uint8, in the model's channels; the last one is gray.

    They are from the test dataset, resized as the config says, or noise if there is none.
    """
    try:
        inputs = load_images(cfg, registered_dataset(cfg, "TEST"), _NUM_COMPARED)
    except UserError:
        side = cfg.INPUT.MIN_SIZE_TEST or 480
        inputs = noise_images(cfg, side, side * 4 // 3, _NUM_COMPARED)
    images = [x["image"] for x in inputs]
    return [*images, torch.full_like(images[0], 114)]


def _metadata(predictor: Predictor, options: Namespace) -> dict[str, Any]:
    """Returns the metadata of the file, see docs/deploy.md."""
    cfg = predictor.cfg
    return {
        "format": "retinanet_plugin 1",
        "classes": predictor.classes,
        "category_ids": predictor.category_ids,
        "input": {
            "name": writers.INPUT,
            "layout": options.layout,
            "channels": options.channels,
            "dtype": options.input,
        },
        "outputs": list(OUTPUTS),
        "resize": {"short_side": cfg.INPUT.MIN_SIZE_TEST, "long_side": cfg.INPUT.MAX_SIZE_TEST},
        "score_threshold": predictor.score_threshold,
        "nms_threshold": cfg.MODEL.RETINANET.NMS_THRESH_TEST,
        "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "precision": options.dtype,
        "weights_sha256": sha256(cfg.MODEL.WEIGHTS),
        "versions": versions(),
    }
