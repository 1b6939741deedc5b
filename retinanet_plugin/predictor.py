"""A trained model in three lines of Python: images in, detections out.

from retinanet_plugin import Predictor

predictor = Predictor("output/run/config.yaml", "output/run/model_final.pth")
detections = predictor("street.jpg")
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import build_augmentation, convert_PIL_to_numpy
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.structures import Instances
from PIL import Image, ImageOps

from .config import find_config, get_config
from .data import register_own_datasets
from .data.images import read_image, reason_of, require_8_bit
from .engine.amp import DTYPES, autocast
from .engine.checkpoint import local_file, read_classes
from .engine.setup import check_names, choose_device
from .errors import UserError, did_you_mean
from .runtimes.exported_files import CHANNELS, ONNX_RUNTIMES, is_exported, load
from .runtimes.network import load_network, overrides_of

ImageLike: TypeAlias = str | Path | np.ndarray | Image.Image


class Predictor:
    """Detects objects in images, with the results of ``train_net.py --eval-only``.

    Args:
        config: YAML file, name of a shipped config, or a config node. None: the ``config.yaml``
            that training left beside the weights; exported files need none.
        weights: checkpoint or exported file. None: ``model_best.pth`` or ``model_final.pth``
            beside the config, else its ``MODEL.WEIGHTS``.
        device: such as "cuda:1" or "cpu". None: ``MODEL.DEVICE``, or the CPU if there is no GPU.
        score_threshold: detections score above it. None: ``MODEL.RETINANET.SCORE_THRESH_TEST``, or
            that of an exported file, which is also the lowest that this file supports.
        classes: names of the classes to keep. None: all.
        batch_size: maximum number of images per forward pass. Only consecutive images of the same
            size share one, so no image is padded and detections do not depend on other images.
        channels: order in given arrays, "BGR" as in OpenCV or "RGB".
        overrides: config overrides, key and value in turn.
        runtime: runs ``.onnx`` files, "onnxruntime" or "openvino".

    Attributes:
        classes: names by class index, from the checkpoint or a registered dataset, else numbers.
        category_ids: by class index, of a registered dataset with these classes, else 1, 2, ...
        kept_classes: indices of the classes to keep. None: all.
        score_threshold: of the detections.
        model: the network in eval mode, or an exported file with the same calling convention.
        cfg: the config of the model.

    Raises:
        UserError: if a config, weights, a device, a class or an image cannot be used.
    """

    def __init__(
        self,
        config: str | Path | CfgNode | None = None,
        weights: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        score_threshold: float | None = None,
        classes: Iterable[str] | None = None,
        batch_size: int = 4,
        channels: str = "BGR",
        overrides: Sequence[str] = (),
        runtime: str = ONNX_RUNTIMES[0],
    ) -> None:
        if channels not in CHANNELS:
            raise UserError(f'Predictor: unknown channels "{channels}"; give "BGR" or "RGB".')
        self.cfg = cfg = _load_config(config, weights, overrides)
        if device is not None:
            cfg.MODEL.DEVICE = str(device)
        choose_device(cfg)
        if device is not None and torch.device(cfg.MODEL.DEVICE) != torch.device(device):
            raise UserError(f'Predictor: no device "{device}" on this machine; give "cpu".')
        if score_threshold is not None:
            cfg.MODEL.RETINANET.SCORE_THRESH_TEST = float(score_threshold)
        if is_exported(cfg.MODEL.WEIGHTS):
            exported = load(cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, runtime)
            if config is None:  # a given config replaces what the file says about resizing
                cfg.merge_from_list([*overrides_of(exported.metadata), *overrides])
            _set_threshold(cfg, exported.metadata["score_threshold"], score_threshold)
            cfg.TEST.DTYPE = "float32"  # the precision is part of the file
            exported.input_format = cfg.INPUT.FORMAT
            self.model: Any = exported
            self.classes, self.category_ids = exported.classes, exported.metadata["category_ids"]
        else:
            check_names(cfg)
            _resolve_num_classes(cfg)
            self.model, _, stored_classes = load_network(cfg)
            self.classes = _class_names(cfg, stored_classes)
            self.category_ids = _category_ids(cfg, self.classes)
        cfg.freeze()
        self.score_threshold = float(cfg.MODEL.RETINANET.SCORE_THRESH_TEST)
        self.batch_size = batch_size
        self.kept_classes = None if classes is None else _indices(classes, self.classes)
        self._channels = channels
        self._augment = AugmentationList(build_augmentation(cfg, is_train=False))

    @overload
    def __call__(self, images: ImageLike) -> Instances: ...

    @overload
    def __call__(self, images: Sequence[ImageLike]) -> list[Instances]: ...

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Instances | list[Instances]:
        """Returns the detections of an image, or a list of them for a list of images.

        Args:
            images: a path, an array (H, W, 3) or (H, W), uint8, a PIL image, or a list of these.
                The EXIF orientation of files and PIL images is applied, as in training.

        Returns:
            ``pred_boxes``, XYXY in pixels of the (upright) image, ``scores`` and ``pred_classes``,
            indices into ``classes``; on the CPU, by descending score.
        """
        if isinstance(images, list | tuple):
            return list(self.stream(images))
        (detections,) = self.stream([images])  # type: ignore[list-item]
        return detections

    def stream(
        self, images: Iterable[ImageLike], batch_size: int | None = None
    ) -> Iterator[Instances]:
        """Yields the detections of each image; only one batch is in memory at a time."""
        prepared = map(self._prepare, images)
        for _, group in itertools.groupby(prepared, key=lambda x: x["image"].shape):
            while batch := list(itertools.islice(group, batch_size or self.batch_size)):
                yield from self._detect(batch)

    def _prepare(self, image: ImageLike) -> dict[str, Any]:
        """Resizes an image like the test loader; ``image`` is (C, H, W) in the model's channels."""
        given = AugInput(self._read(image))
        height, width = given.image.shape[:2]
        self._augment(given)
        tensor = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}

    def _read(self, image: ImageLike) -> np.ndarray:
        """Returns (H, W, 3) uint8 in the model's channels."""
        target = self.cfg.INPUT.FORMAT
        try:
            if isinstance(image, str | Path):
                return read_image(str(image), target)
            if isinstance(image, Image.Image):
                require_8_bit(image)
                image = ImageOps.exif_transpose(image)
        except Exception as error:  # PIL's decoders raise nearly anything on damaged files
            raise UserError(f"{image}: cannot read the image ({reason_of(error)}).") from None
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or 0 in image.shape or image.shape[2:] not in ((3,), ()):
                raise UserError(
                    f"Predictor: got an array of {image.dtype} and shape {image.shape}; give uint8 "
                    "of shape (H, W, 3) or (H, W)."
                )
            if image.ndim == 3:
                return image if self._channels == target else image[:, :, ::-1]
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise UserError(
                f"Predictor: got a {type(image).__name__}; give a path, an array, a PIL image, or "
                "a list of these."
            )
        array: np.ndarray = convert_PIL_to_numpy(image, target)
        return array

    @torch.no_grad()
    def _detect(self, batch: list[dict[str, Any]]) -> Iterator[Instances]:
        device_type = torch.device(self.cfg.MODEL.DEVICE).type
        with autocast(device_type, DTYPES[self.cfg.TEST.DTYPE]):
            results = self.model(batch)
        for result in results:
            detections = result["instances"].to("cpu")
            # An exported file has a threshold of its own, which may be lower.
            detections = detections[detections.scores > self.score_threshold]
            if self.kept_classes is not None:
                detections = detections[torch.isin(detections.pred_classes, self.kept_classes)]
            yield detections


def config_beside(weights: str | Path) -> Path:
    """Returns the ``config.yaml`` that training left beside its checkpoints.

    Raises:
        UserError: if there is none.
    """
    config = Path(weights).expanduser().with_name("config.yaml")
    if not config.is_file():
        raise UserError(f"--weights: no {config} beside them; give --config-file (or config).")
    return config


def _load_config(
    config: str | Path | CfgNode | None, weights: str | Path | None, overrides: Sequence[str]
) -> CfgNode:
    """Returns the config, with a local file as ``MODEL.WEIGHTS``."""
    if weights is not None:
        weights = local_file(os.path.expanduser(weights), "Predictor: weights")
    if config is None:
        if weights is None:
            raise UserError("Predictor: give weights, a config, or both.")
        config = "Base-RetinaNet.yaml" if is_exported(weights) else config_beside(weights)
    if isinstance(config, CfgNode):
        cfg = config.clone()
        cfg.defrost()
        cfg.merge_from_list(list(overrides))
    else:
        cfg = get_config(config, overrides)
        path = find_config(config)
        if weights is None and "MODEL.WEIGHTS" not in overrides and path.name == "config.yaml":
            candidates = [path.with_name(f"model_{x}.pth") for x in ("best", "final")]
            weights = next((x for x in candidates if x.is_file()), None)
    if weights is not None:
        cfg.MODEL.WEIGHTS = str(weights)
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS: empty; give a checkpoint.")
    cfg.MODEL.WEIGHTS = local_file(cfg.MODEL.WEIGHTS, "Predictor: weights")
    return cfg


def _set_threshold(cfg: CfgNode, exported: float, requested: float | None) -> None:
    """Sets the score threshold of an exported file: the requested one, or at least its own."""
    if requested is not None and requested < exported:
        raise UserError(
            f"Predictor: score_threshold is {requested:g}, but {cfg.MODEL.WEIGHTS} was exported "
            f"with {exported:g}; give at least that, or export it again with a lower "
            "MODEL.RETINANET.SCORE_THRESH_TEST."
        )
    retinanet = cfg.MODEL.RETINANET
    retinanet.SCORE_THRESH_TEST = max(exported, requested or retinanet.SCORE_THRESH_TEST)


def _resolve_num_classes(cfg: CfgNode) -> None:
    """Replaces an automatic NUM_CLASSES (-1) by the checkpoint's, else by the dataset's."""
    if cfg.MODEL.RETINANET.NUM_CLASSES < 0:
        if classes := read_classes(cfg.MODEL.WEIGHTS):
            cfg.MODEL.RETINANET.NUM_CLASSES = len(classes)
        else:
            register_own_datasets(cfg, training=True)


def _class_names(cfg: CfgNode, stored: list[str] | None) -> list[str]:
    """Returns the checkpoint's class names, else those of the config's dataset, else numbers."""
    num_classes = int(cfg.MODEL.RETINANET.NUM_CLASSES)
    known = [stored or [], *(x.get("thing_classes", []) for x in _metadata(cfg))]
    numbers = [str(i) for i in range(num_classes)]
    return next((names for names in known if len(names) == num_classes), numbers)


def _category_ids(cfg: CfgNode, classes: list[str]) -> list[int]:
    for metadata in _metadata(cfg):
        ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
        if metadata.get("thing_classes") == classes and len(ids) == len(classes):
            return sorted(ids, key=ids.__getitem__)
    return list(range(1, len(classes) + 1))


def _metadata(cfg: CfgNode) -> list[Any]:
    """Returns the metadata of the config's registered datasets."""
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    return [MetadataCatalog.get(name) for name in names if name in MetadataCatalog]


def _indices(names: Iterable[str], known: Sequence[str]) -> torch.Tensor:
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in known:
            raise UserError(
                f'Predictor: unknown class "{name}"{did_you_mean(name, known)}; known: '
                f"{', '.join(known)}."
            )
    return torch.tensor([known.index(name) for name in names], dtype=torch.long)
