"""Reads datasets in COCO JSON, Pascal VOC, YOLO and CSV.

    content = read("/data/cars")  # a COCO dict of all images
    register("cars_train", "/data/cars", split="train")  # a dataset of detectron2

The readers are our own: ``supervision`` (0.31.2) drops VOC's ``difficult``, keeps boxes outside
their image, ignores labels of missing images as well as the splits of data.yaml and ImageSets,
names no line in errors, and needs PyAV and SciPy.
"""

from .catalog import register
from .formats import FORMATS, read, read_dataset

__all__ = ["FORMATS", "read", "read_dataset", "register"]
