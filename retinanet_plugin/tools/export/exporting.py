"""A trained model becomes a file: written, loaded again, compared with the model, and described."""

import copy
import hashlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from tqdm import tqdm

from ... import __version__
from ...acceleration.fast_conv import fold_norms_for_inference
from ...config import get_config
from ...data import check_datasets, register_own_datasets
from ...engine import Trainer
from ...engine.amp import DTYPES
from ...engine.atomic_io import sha256
from ...errors import UserError
from ...evaluation.timing import load_images, noise_images
from ...predictor import Predictor
from ...runtimes.exported_files import DetectronModel, Runtime, load, needed
from . import checking, files
from .checking import BOX_TOLERANCE, SCORE_TOLERANCE, Comparison
from .detector import OUTPUTS, PictureDetector
from .int8 import quantise

# The least share of confident detections that the file and the model must have in common, by the
# precision of the file; float32 is compared one by one.
LEAST_AGREEMENT = {"float16": 0.98, "bfloat16": 0.9, "int8": 0.8}
PRECISIONS = {
    "onnx": ("float32", "float16", "int8"),
    "pt2": ("float32", "float16", "bfloat16"),
    "torchscript": ("float32", "float16", "bfloat16"),
}
_COMPARED = 8  # pictures of the test set
# Without what makes a CPU's PyTorch faster and no other runtime.
EAGER_OVERRIDES = (
    "MODEL.ACCELERATION.WINOGRAD",
    "False",
    "MODEL.COMPILE",
    "False",
    "TEST.DTYPE",
    "float32",
)


@dataclass(frozen=True)
class Options:
    """What the file is to be.

    Args:
        file_format: one of ``files.FORMATS``.
        precision: one of those in ``PRECISIONS`` of that format.
        layout, channels: of the pictures, see :class:`PictureDetector`.
        input_dtype: of the pictures, "uint8" or "float32".
        compiled: see :func:`files.write`.
        calibration: training pictures that measure the ranges of 8 bits.

    Raises:
        UserError: for what does not fit together.
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
                f"--dtype: {self.precision} is not for --format {self.file_format}; give "
                f"{', '.join(PRECISIONS[self.file_format])}, or another format (bfloat16: pt2 or "
                "torchscript; int8: onnx)."
            )
        if self.compiled and self.file_format != "pt2":
            raise UserError(f"--compile: --format {self.file_format} given; only pt2 is compiled.")


def load_model(config: str | Path, weights: str | Path, overrides: Sequence[str]) -> Predictor:
    """The model, as exporting wants it; its categories are the data set's where that is here."""
    cfg = get_config(config, [*overrides, *EAGER_OVERRIDES])
    with suppress(UserError):
        register_own_datasets(cfg, training=False)
    return Predictor(cfg, weights)


def export(
    predictor: Predictor,
    path: Path,
    options: Options,
    *,
    say: Callable[[str], object] = lambda text: None,
) -> tuple[Runtime, Comparison]:
    """Writes the file, if it finds what the model finds.

    Args:
        predictor: see :func:`load_model`.
        path: ends in the format's name; replaced if it is there.
        say: is told what is done.

    Returns:
        the file, loaded, and how it compares.

    Raises:
        UserError: if it cannot be written, or differs from the model; nothing is left then.
    """
    if path.suffix != f".{options.file_format}":
        raise UserError(
            f"--output: {path} given; its name ends in .{options.file_format} for --format "
            f"{options.file_format}."
        )
    pictures, where_from = pictures_to_compare(predictor)
    if options.precision == "int8":
        data_set(predictor.cfg, training=True)  # before the long work
    metadata = describe(predictor, options)
    with _scratch(path) as scratch:
        _write(predictor, scratch, options, metadata, say)
        say(f"comparing it with the model on {where_from}")
        runtime = load(scratch, predictor.cfg.MODEL.DEVICE)
        given = list(checking.batches(pictures, runtime.metadata["smallest_side"]))
        with tqdm(given, desc="compared", unit=" batches", disable=None) as batches:
            channels = predictor.cfg.INPUT.FORMAT
            comparison = checking.compare(runtime, predictor.model, channels, batches)
        _require_alike(comparison, path, options.precision)
        scratch.replace(path)
    return runtime, comparison


def _write(
    predictor: Predictor,
    path: Path,
    options: Options,
    metadata: dict[str, Any],
    say: Callable[[str], object],
) -> None:
    say(f"writing {options.file_format}, {options.precision}")
    dtype = DTYPES.get(options.precision, torch.float32)
    model = copy.deepcopy(predictor.model)
    fold_norms_for_inference(model)
    for part in (model.backbone, model.head):
        part.to(dtype).to(memory_format=torch.contiguous_format)
    detector = PictureDetector(
        model,
        layout=options.layout,
        channels=options.channels,
        dtype=dtype,
        compiled=options.compiled,
    ).eval()
    _require_side(detector, predictor.cfg.INPUT.MIN_SIZE_TEST)
    metadata = {**metadata, "smallest_side": detector.smallest_side}
    whole = path.with_name("float32.onnx") if options.precision == "int8" else path
    input_dtype = getattr(torch, options.input_dtype)
    files.write(
        detector,
        whole,
        options.file_format,
        metadata,
        input_dtype=input_dtype,
        compiled=options.compiled,
    )
    if options.precision == "int8":
        say(f"measuring the ranges of 8 bits on {options.calibration} training pictures")
        quantise(whole, path, _calibration(predictor, options))


def _require_side(detector: PictureDetector, side: int) -> None:
    if 0 < side < detector.smallest_side:
        raise UserError(
            f"--compile: a compiled file takes pictures from {detector.smallest_side} pixels a "
            f"side on, but INPUT.MIN_SIZE_TEST is {side}; leave --compile out, or raise it by "
            f"--opts INPUT.MIN_SIZE_TEST {detector.smallest_side}."
        )


def _calibration(predictor: Predictor, options: Options) -> Iterator[np.ndarray]:
    cfg = predictor.cfg
    pictures = load_images(cfg, data_set(cfg, training=True), options.calibration)
    for picture in tqdm(pictures, desc="calibration", unit=" pictures", disable=None):
        image = picture["image"].numpy()
        image = image[::-1] if options.channels != cfg.INPUT.FORMAT else image
        image = image.transpose(1, 2, 0) if options.layout == "nhwc" else image
        yield np.ascontiguousarray(image[None], dtype=options.input_dtype)


def data_set(cfg: CfgNode, *, training: bool = False) -> str:
    """The config's first training or test set, registered and looked at.

    Raises:
        UserError: if there is none, or it is not here.
    """
    split = "TRAIN" if training else "TEST"
    register_own_datasets(cfg, training=training)
    check_datasets(cfg, training=training)
    if not cfg.DATASETS[split]:
        raise UserError(f"DATASETS.{split}: empty; name a data set, whose pictures are needed.")
    return str(cfg.DATASETS[split][0])


def pictures_to_compare(predictor: Predictor) -> tuple[list[np.ndarray], str]:
    """Pictures (H, W, 3) in the model's channels, and what they are; the last one is grey.

    Those of the config's test set, resized as it says; noise where there is none.
    """
    cfg = predictor.cfg
    try:
        name = data_set(cfg)
        found = load_images(cfg, name, _COMPARED)
        what = f"{len(found)} pictures of {name}"
    except UserError:
        side = cfg.INPUT.MIN_SIZE_TEST or 480
        found = noise_images(cfg, side, side * 4 // 3, _COMPARED)
        what = "noise, as the config's test pictures are not here"
    pictures = [x["image"].numpy().transpose(1, 2, 0) for x in found]
    return [*pictures, np.full_like(pictures[0], 114)], f"{what}, at {len(checking.SHAPES)} sizes"


def _require_alike(comparison: Comparison, path: Path, precision: str) -> None:
    if precision == "float32" and comparison.missed:
        raise UserError(
            f"{path}: not written, for it would differ from the model: in {len(comparison.missed)} "
            f"of {comparison.pictures} pictures detections lack their like within {BOX_TOLERANCE} "
            f"pixels and {SCORE_TOLERANCE} of score ({comparison.missed[0]}); try another --format."
        )
    least = LEAST_AGREEMENT.get(precision, 0.0)
    if comparison.agreement < least:
        raise UserError(
            f"{path}: not written, for in {precision} it would differ from the model: they agree "
            f"in {comparison.agreed} of {comparison.confident} confident detections, less than "
            f"{least:.0%}; give another --dtype, or with int8 a larger --calibration."
        )


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A path of that name on the same disk, whose folder goes whatever happens."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent)
    except OSError as error:
        raise UserError(
            f"--output: {path.parent} cannot be written ({error.strerror}); give another folder."
        ) from None
    with folder as name:
        yield Path(name) / path.name


def describe(predictor: Predictor, options: Options) -> dict[str, Any]:
    """What the file says of itself: see docs/export.md."""
    cfg, model = predictor.cfg, predictor.model
    weights = Path(cfg.MODEL.WEIGHTS)
    return {
        "format": "retinanet_plugin 1",
        "classes": predictor.classes,
        "category_ids": predictor.category_ids,
        "input": {
            "name": files.INPUT,
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
        "weights_sha256": sha256(weights),
        "config_sha256": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what made the file."""
    found = {
        "retinanet_plugin": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
    }
    for name in ("onnx", "onnxruntime"):
        try:
            found[name] = needed(name, name).__version__
        except UserError:
            continue
    return found


def accuracy(predictor: Predictor, runtime: Runtime | None = None) -> dict[str, float]:
    """The boxes' metrics on the config's first test set, in percent: the file's, or the model's."""
    cfg = predictor.cfg.clone()
    name = data_set(cfg)
    with tempfile.TemporaryDirectory() as folder:
        cfg.defrost()
        cfg.OUTPUT_DIR = folder
        model: Any = DetectronModel(runtime, cfg.INPUT.FORMAT) if runtime else predictor.model
        loader = Trainer.build_test_loader(cfg, name)
        evaluator = Trainer.build_evaluator(cfg, name)
        results: dict[str, Any] = inference_on_dataset(model, loader, evaluator)
    return {key: float(value) for key, value in results["bbox"].items()}
