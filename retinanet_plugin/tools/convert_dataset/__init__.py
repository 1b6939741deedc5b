"""Labelled pictures in COCO JSON, Pascal VOC, YOLO or CSV, all read into one COCO detection dict.

    content = read("/data/cars")                           # a COCO dict of all pictures
    register("cars_train", "/data/cars", split="train")    # a data set of detectron2

The readers are our own. ``supervision`` (0.31.2) drops VOC's ``difficult``, takes boxes outside
their picture, leaves out labels whose picture is absent, knows neither data.yaml's splits nor
ImageSets, and names no line. It would also bring PyAV and SciPy with it.
"""

from .catalog import register
from .labelled import LabelledSet, Options
from .reading import READERS, read, read_set

KINDS = tuple(READERS)

__all__ = ["KINDS", "LabelledSet", "Options", "read", "read_set", "register"]
