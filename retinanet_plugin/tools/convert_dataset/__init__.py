"""Reads datasets in COCO JSON, Pascal VOC, YOLO and CSV.

    content = read_dataset("/data/cars").content  # a COCO dict of all images

The readers are our own: ``supervision`` (0.31.2) drops VOC's ``difficult``, keeps boxes outside
their image, ignores labels of missing images as well as the splits of data.yaml and ImageSets,
names no line in errors, and needs PyAV and SciPy.
"""

from .formats import FORMATS, read_dataset

__all__ = ["FORMATS", "read_dataset"]
