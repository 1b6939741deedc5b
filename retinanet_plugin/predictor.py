"""A trained model in three lines of Python: pictures in, detections out.

from retinanet_plugin import Predictor

predictor = Predictor("output/run/config.yaml", "output/run/model_final.pth")
detections = predictor("street.jpg")
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
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
from .data.coco_json import read_coco
from .data.images import read_picture, reason_of, refuse_deep
from .engine.amp import DTYPES, autocast
from .engine.checkpoint import local_file, read_classes
from .engine.setup import check_names, choose_device
from .errors import UserError, did_you_mean
from .runtimes.exported_files import ONNX_RUNTIMES, DetectronModel, load
from .runtimes.network import is_exported, keys_of, load_network

Picture: TypeAlias = str | Path | np.ndarray | Image.Image


class Predictor:
    """Detects objects in pictures, as ``train_net.py --eval-only`` does.

    Args:
        config: YAML file, the name of one that the plugin ships, or a configuration; None: the
            ``config.yaml`` that training has left beside the weights. Exported files need none:
            pictures are resized as they say, or as a config that is given nevertheless.
        weights: checkpoint of the whole model, or a file that ``tools.export`` has written; None:
            ``model_best.pth`` or ``model_final.pth`` that training has left beside the config, else
            the config's ``MODEL.WEIGHTS``.
        device: where to work, such as "cuda:1" or "cpu"; None: the config's ``MODEL.DEVICE``, and
            the CPU where there is no GPU.
        score_threshold: detections score above it; None: ``MODEL.RETINANET.SCORE_THRESH_TEST``,
            or that of the exported file, which none can be below.
        classes: names of the classes to keep; None: all.
        batch_size: of a list, the most pictures that the network gets at once. It gets those
            together that follow one another and have one size, so that no picture is padded and
            none's detections depend on another's.
        channels: of arrays, "BGR" as OpenCV has them or "RGB".
        overrides: of the config: key, value, key, value ...
        runtime: what runs a ``.onnx`` file, "onnxruntime" or "openvino".

    Attributes:
        classes: names by class index: the checkpoint's, else those of the config's data set where
            that is known, else numbers.
        category_ids: by class index: those of the config's data set where it is a registered one
            with these classes, else 1, 2, ...
        kept_classes: indices of those that are kept; None: all.
        score_threshold: of detections.
        model: the network in eval mode, or what is called like it and runs the exported file.
        cfg: its configuration.

    Raises:
        UserError: for a config, weights, a device, a class or a picture that cannot be used.
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
        if channels not in ("BGR", "RGB") or batch_size < 1:
            raise UserError(
                f'Predictor: channels "{channels}" and batch_size {batch_size} given; channels are '
                '"BGR" or "RGB", and a batch has at least 1 picture.'
            )
        cfg = _config(config, weights, overrides)
        if device is not None:
            cfg.MODEL.DEVICE = str(device)
        choose_device(cfg)
        if device is not None and torch.device(cfg.MODEL.DEVICE) != torch.device(device):
            raise UserError(f'Predictor: device "{device}": no such GPU is here; give "cpu".')
        if score_threshold is not None:
            cfg.MODEL.RETINANET.SCORE_THRESH_TEST = float(score_threshold)
        self.cfg = cfg
        if is_exported(cfg.MODEL.WEIGHTS):
            self._use_exported(overrides if config is None else None, score_threshold, runtime)
        else:
            self._use_network()
        cfg.freeze()
        self.score_threshold = float(cfg.MODEL.RETINANET.SCORE_THRESH_TEST)
        self.batch_size = batch_size
        self.kept_classes = None if classes is None else _indices(classes, self.classes)
        self._channels = channels
        self._augment = AugmentationList(build_augmentation(cfg, is_train=False))

    def _use_network(self) -> None:
        check_names(self.cfg)
        _resolve_num_classes(self.cfg)
        self.model, _, classes = load_network(self.cfg)
        num_classes = int(self.cfg.MODEL.RETINANET.NUM_CLASSES)
        self.classes = classes or _classes_of_data(self.cfg)
        if len(self.classes) != num_classes:
            self.classes = [str(i) for i in range(num_classes)]
        self.category_ids = _category_ids(self.cfg, self.classes)

    def _use_exported(
        self, overrides: Sequence[str] | None, threshold: float | None, runtime: str
    ) -> None:
        """Overrides follow what the file says; without any, the config holds."""
        cfg, retinanet = self.cfg, self.cfg.MODEL.RETINANET
        exported = load(cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, runtime)
        least = exported.metadata["score_threshold"]
        if threshold is not None and threshold < least:
            raise UserError(
                f"Predictor: score_threshold {threshold:g} given, but {cfg.MODEL.WEIGHTS} leaves "
                f"out what does not score above {least:g}; give no less, or export it anew with "
                "a lower MODEL.RETINANET.SCORE_THRESH_TEST."
            )
        if overrides is not None:
            cfg.merge_from_list([*keys_of(exported.metadata), *overrides])
        retinanet.SCORE_THRESH_TEST = max(least, threshold or retinanet.SCORE_THRESH_TEST)
        cfg.TEST.DTYPE = "float32"  # the file has its own
        self.model = DetectronModel(exported, cfg.INPUT.FORMAT)
        self.classes, self.category_ids = exported.classes, exported.metadata["category_ids"]

    @overload
    def __call__(self, pictures: Picture) -> Instances: ...

    @overload
    def __call__(self, pictures: Sequence[Picture]) -> list[Instances]: ...

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Instances | list[Instances]:
        """Detections of a picture, or a list of them for a list of pictures.

        Args:
            pictures: a file's path, an array (H, W, 3) or (H, W), uint8, a PIL image, or a list of
                any of them. Files and PIL images are turned as their EXIF orientation asks, as in
                training.

        Returns:
            on the CPU, by falling score: ``pred_boxes``, XYXY in pixels of the picture (upright),
            ``scores`` and ``pred_classes``, indices into ``classes``.
        """
        if isinstance(pictures, list | tuple):
            return list(self.stream(pictures))
        (found,) = self.stream([pictures])  # type: ignore[list-item]
        return found

    def stream(
        self, pictures: Iterable[Picture], batch_size: int | None = None
    ) -> Iterator[Instances]:
        """The detections of one picture after another, of which a batch is in memory at a time."""
        batch_size = batch_size or self.batch_size
        batch: list[dict[str, Any]] = []
        for picture in pictures:
            resized = self._prepare(picture)
            if batch and batch[0]["image"].shape != resized["image"].shape:
                yield from self._detect(batch)
                batch = []
            batch.append(resized)
            if len(batch) == batch_size:
                yield from self._detect(batch)
                batch = []
        if batch:
            yield from self._detect(batch)

    def _prepare(self, picture: Picture) -> dict[str, Any]:
        """A picture as the test loader gives it: resized, in the model's channels (C, H, W)."""
        given = AugInput(self._read(picture))
        height, width = given.image.shape[:2]
        self._augment(given)
        image = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        return {"image": image, "height": height, "width": width}

    def _read(self, picture: Picture) -> np.ndarray:
        into = self.cfg.INPUT.FORMAT
        try:
            if isinstance(picture, str | Path):
                return read_picture(str(picture), into)
            if isinstance(picture, Image.Image):
                refuse_deep(picture)
                upright: np.ndarray = convert_PIL_to_numpy(ImageOps.exif_transpose(picture), into)
                return upright
        except Exception as error:  # PIL's decoders raise nearly everything on damaged files
            reason = reason_of(error)
            raise UserError(f"{picture}: the picture cannot be read ({reason}).") from None
        if not isinstance(picture, np.ndarray):
            raise UserError(
                f"Predictor: a {type(picture).__name__} is no picture; give a path, an array, a "
                "PIL image, or a list of them."
            )
        if picture.dtype != np.uint8 or 0 in picture.shape or picture.shape[2:] not in ((3,), ()):
            raise UserError(
                f"Predictor: an array of {picture.dtype} and shape {picture.shape} is no picture; "
                f"give uint8, (H, W, 3) in {self._channels} or (H, W) in grey."
            )
        if picture.ndim == 3 and self._channels == into:
            return picture
        is_bgr = picture.ndim == 3 and self._channels == "BGR"
        rgb = Image.fromarray(picture[..., ::-1] if is_bgr else picture)
        converted: np.ndarray = convert_PIL_to_numpy(rgb, into)
        return converted

    @torch.no_grad()
    def _detect(self, batch: list[dict[str, Any]]) -> Iterator[Instances]:
        device_type = torch.device(self.cfg.MODEL.DEVICE).type
        with autocast(device_type, DTYPES[self.cfg.TEST.DTYPE]):
            results = self.model(batch)
        for result in results:
            found = result["instances"].to("cpu")
            found = found[found.scores > self.score_threshold]  # a file has one of its own
            if self.kept_classes is not None:
                found = found[torch.isin(found.pred_classes, self.kept_classes)]
            yield found


def _config(
    config: str | Path | CfgNode | None, weights: str | Path | None, overrides: Sequence[str]
) -> CfgNode:
    if weights is not None:
        weights = local_file(os.path.expanduser(weights), "Predictor: weights")
    if config is None:
        if weights is None:
            raise UserError("Predictor: neither config nor weights given; give at least weights.")
        beside = Path(weights).parent / "config.yaml"
        if not is_exported(weights) and not beside.is_file():
            raise UserError(
                f"Predictor: no {beside} beside the weights; give the config that they were "
                "trained with."
            )
        config = "Base-RetinaNet.yaml" if is_exported(weights) else beside
    if isinstance(config, CfgNode):
        cfg = config.clone()
        cfg.defrost()
        cfg.merge_from_list(list(overrides))
    else:
        cfg = get_config(config, overrides)
        if weights is None and "MODEL.WEIGHTS" not in overrides:
            weights = _weights_beside(find_config(config))
    if weights is not None:
        cfg.MODEL.WEIGHTS = str(weights)
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS: empty, so there is no model; give a checkpoint.")
    cfg.MODEL.WEIGHTS = local_file(cfg.MODEL.WEIGHTS, "Predictor: weights")
    return cfg


def _weights_beside(config: Path) -> Path | None:
    """What a run has left in the folder of its config; another config's neighbours are not its."""
    if config.name == "config.yaml":
        for name in ("model_best.pth", "model_final.pth"):
            if (weights := config.with_name(name)).is_file():
                return weights
    return None


def _resolve_num_classes(cfg: CfgNode) -> None:
    """Where NUM_CLASSES is the data set's: as many as the checkpoint names, else the data set."""
    if cfg.MODEL.RETINANET.NUM_CLASSES < 0:
        if classes := read_classes(cfg.MODEL.WEIGHTS):
            cfg.MODEL.RETINANET.NUM_CLASSES = len(classes)
        else:
            register_own_datasets(cfg, training=True)


def _classes_of_data(cfg: CfgNode) -> list[str]:
    """Names that the config's data set declares, where it is at hand."""
    own = cfg.DATASETS.OWN
    if name := own.TRAIN_JSON or own.TEST_JSON:
        with suppress(UserError):
            json_file = Path(own.ROOT).expanduser() / Path(name).expanduser()
            return list(read_coco(json_file, bad_boxes="fix").classes.values())
        return []
    return next((x.thing_classes for x in _metadata(cfg) if x.get("thing_classes")), [])


def _category_ids(cfg: CfgNode, classes: list[str]) -> list[int]:
    for metadata in _metadata(cfg):
        ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
        if metadata.get("thing_classes") == classes and len(ids) == len(classes):
            return sorted(ids, key=ids.__getitem__)
    return list(range(1, len(classes) + 1))


def _metadata(cfg: CfgNode) -> list[Any]:
    """Of the config's data sets that are registered."""
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    return [MetadataCatalog.get(name) for name in names if name in MetadataCatalog]


def _indices(names: Iterable[str], known: Sequence[str]) -> torch.Tensor:
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in known:
            raise UserError(
                f'Predictor: the model has no class "{name}"{did_you_mean(name, known)}; it knows '
                f"{', '.join(known)}."
            )
    return torch.tensor([known.index(name) for name in names], dtype=torch.long)
