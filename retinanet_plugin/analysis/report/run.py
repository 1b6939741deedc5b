"""What a finished run's folder tells of its training: curves, evaluations, speed, settings."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Series:
    """One scalar of ``metrics.json`` against the step.

    Args:
        steps: ascending, each once.
        values: as many; None where it was not finite.
    """

    steps: list[int]
    values: list[float | None]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of all test sets after ``step`` steps, by detectron2's names, in percent.

    With several test sets the names begin with the set's: ``NAME/bbox/AP``.
    """

    step: int
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Speed:
    """None where the run does not tell.

    Args:
        device: the name of the GPU, or "cpu".
        seconds_per_step: the median over the run's lines of detectron2's ``time``.
        pictures_per_second: of training, from that and the batch.
        training_seconds: of all steps, from the last line of the log that tells.
        seconds_per_picture: of evaluation on one device, with everything.
        network_seconds_per_picture: of that, the network and its NMS.
    """

    device: str | None
    seconds_per_step: float | None
    pictures_per_second: float | None
    training_seconds: float | None
    seconds_per_picture: float | None
    network_seconds_per_picture: float | None


@dataclass(frozen=True)
class DatasetSize:
    """Of one data set; numbers are None where the data set is not there any more.

    Args:
        split: "training", "test", or "validation".
        boxes: without crowds.
        boxes_by_class: as the class names.
    """

    name: str
    split: str
    pictures: int | None
    boxes: int | None
    boxes_by_class: list[int] | None


@dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Args:
        folder: absolute path.
        class_names: by their numbers; empty where neither a data set nor a checkpoint tells.
        series: by the names in ``metrics.json``, such as ``total_loss``, ``lr``.
        evaluations: ascending by step.
        best: the one with the highest AP of the first test set.
        last: the latest.
        steps: that were trained, SOLVER.MAX_ITER if it was finished.
        versions: of Python, torch, detectron2 and so on, as logged when it ran.
        settings: the keys that differ from the plugin's defaults, as YAML text.
        config: all of config.yaml.
    """

    folder: str
    class_names: list[str]
    series: dict[str, Series]
    evaluations: list[Evaluation]
    best: Evaluation | None
    last: Evaluation | None
    steps: int
    max_steps: int
    speed: Speed
    versions: dict[str, str]
    datasets: list[DatasetSize]
    settings: dict[str, str]
    config: str


def read_run(folder: Path) -> Run:
    """Reads it.

    Raises:
        UserError: where the folder holds no run.
    """
    raise NotImplementedError
