"""The time a network takes per image, and the machine it was measured on.

A network is timed one image at a time and warm, as ``--eval-only`` runs it: from the resized image
in the CPU's memory to its detections. Reading and resizing images is not included.
"""

import itertools
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import detectron2
import numpy as np
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.transforms import AugInput, AugmentationList
from tqdm import tqdm

from ..data import ReadableDatasetMapper
from ..utils import spread

Input = dict[str, Any]  # one image, as detectron2's test loader gives it


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Returns the time of one call; on a GPU by events, with the device idle before and after."""
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1000


def time_in_turn(
    networks: Mapping[str, Callable[[Any], Any]],
    inputs: Mapping[str, Sequence[Any]],
    device: torch.device,
    rounds: int,
) -> dict[str, list[float]]:
    """Times networks in turn, image by image, so that other load on the machine slows all alike.

    Args:
        networks: by name, what is timed; each is called with one of its inputs.
        inputs: of each network, the same number for all.
        rounds: how often each input is timed, after one round to warm up.

    Returns:
        the seconds of each run, by network.
    """
    (count,) = {len(own) for own in inputs.values()}
    nexts = {name: itertools.cycle(own) for name, own in inputs.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    for turn in tqdm(range((1 + rounds) * count), desc="timing", unit="image", disable=None):
        for name, network in networks.items():
            given = next(nexts[name])
            taken = seconds(lambda run=network, x=given: run(x), device)  # type: ignore[misc]
            if turn >= count:
                times[name].append(taken)
    return times


def summarize(seconds: Sequence[float]) -> dict[str, Any]:
    """Returns the median and the quartiles of times, and all of them, in milliseconds."""
    times = [1000 * x for x in seconds]
    low, middle, high = (float(x) for x in np.quantile(times, (0.25, 0.5, 0.75)))
    return {"median": middle, "quartiles": [low, high], "all": times}


def inference(network: Callable[..., Any], cfg: CfgNode) -> Callable[[Input], Any]:
    """Returns a function that detects objects in one image, in ``TEST.DTYPE``."""
    device_type, dtype = torch.device(cfg.MODEL.DEVICE).type, getattr(torch, cfg.TEST.DTYPE)

    @torch.no_grad()
    def run(image: Input) -> Any:
        with torch.autocast(device_type, dtype, enabled=dtype is not torch.float32):
            return network([image])

    return run


def load_images(cfg: CfgNode, dataset: str, count: int) -> list[Input]:
    """Loads ``count`` images of a registered dataset, evenly spaced, as the test loader does."""
    mapper = ReadableDatasetMapper(cfg, is_train=False)
    return [mapper(entry) for entry in spread(DatasetCatalog.get(dataset), count)]


def noise_images(cfg: CfgNode, height: int, width: int, count: int) -> list[Input]:
    """Makes ``count`` images of noise, resized as the test loader resizes images of that size."""
    noise = np.random.default_rng(0)
    augment = AugmentationList(build_augmentation(cfg, is_train=False))
    images = []
    for _ in range(count):
        aug_input = AugInput(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
        augment(aug_input)
        image = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        images.append({"image": image, "height": height, "width": width})
    return images


def median_shape(inputs: Sequence[Input]) -> tuple[int, int]:
    """Returns the median height and the median width of images, in pixels."""
    heights, widths = zip(*(x["image"].shape[-2:] for x in inputs), strict=True)
    return round(median(heights)), round(median(widths))


def describe_machine(device: str, threads: int) -> dict[str, Any]:
    """Returns what a measured time depends on: device, CPU threads, versions."""
    name = platform.processor() or platform.machine()
    if device != "cpu":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = models[0] if models else name
    return {
        "device": name,
        "threads": threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
    }
