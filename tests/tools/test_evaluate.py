"""evaluate: AP of checkpoints and exported models, and how long each takes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_sets import box, forget_new_sets, write_json
from PIL import Image
from small_run import write_run
from toy_onnx import METADATA, write_toy

from retinanet_plugin.command_line import split_overrides
from retinanet_plugin.data import register_own_datasets
from retinanet_plugin.engine import Trainer
from retinanet_plugin.errors import UserError
from retinanet_plugin.tools.evaluate import command as evaluate

QUICK = ["--num-images", "2", "--rounds", "2"]


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(evaluate, "keep_freed_memory", lambda cfg: None)  # for the whole process
    with forget_new_sets():
        yield


def call(*args: object) -> None:
    evaluate.main([str(arg) for arg in args])


def colored_dataset(folder: Path) -> list[str]:
    """Five images of one color each, whose left half is an object; the overrides that name it."""
    (folder / "images").mkdir()
    images, annotations = [], []
    for i, color in enumerate([0, 1, 2, 0, 1]):
        rgb = np.zeros((30, 20 + 4 * i, 3), np.uint8)
        rgb[:, :, 2 - color] = 200 + 10 * i
        Image.fromarray(rgb).save(folder / f"images/{i}.png")
        height, width = rgb.shape[:2]
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": width, "height": height})
        left = [0, 0, width // 2, height]
        annotations.append(box(i + 1, i + 1, METADATA["category_ids"][color], left))
    names = zip(METADATA["category_ids"], METADATA["classes"], strict=True)
    categories = [{"id": number, "name": name} for number, name in names]
    write_json(
        folder, {"images": images, "annotations": annotations, "categories": categories}, "t.json"
    )
    return [
        *("DATASETS.OWN.ROOT", str(folder), "DATASETS.OWN.TEST_JSON", "t.json"),
        *("DATASETS.OWN.TEST_IMAGES", "images", "DATALOADER.NUM_WORKERS", "0"),
        *("MODEL.DEVICE", "cpu", "TEST.DRAW_IMAGES", "0", "TEST.DTYPE", "bfloat16"),
    ]


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_a_file_that_finds_all_in_each_runtime(tmp_path: Path, capsys: Any, channels: str) -> None:
    """Half of an even width stays half when resized: the boxes are exact."""
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
    toy = write_toy(tmp_path / "toy.onnx")
    keys = [*colored_dataset(tmp_path), "INPUT.FORMAT", channels, "INPUT.MIN_SIZE_TEST", "60"]
    args = ["--config-file", "Base-RetinaNet.yaml", "--output", tmp_path / "out", *QUICK]
    args += ["--runtime", "openvino", "--runtime", "onnxruntime", "--weights", toy, *keys]
    call(*args)
    numbers = json.loads((tmp_path / "out/evaluate.json").read_text())
    assert [x["runtime"] for x in numbers["models"]] == ["openvino", "onnxruntime"]
    for model in numbers["models"]:
        (metrics,) = model["metrics"].values()
        assert metrics["AP"] == pytest.approx(100) and metrics["AP-röd"] == pytest.approx(100)
        assert metrics["APl"] is None  # no object is large
        assert model["file"] == str(toy) and model["bytes"] == toy.stat().st_size
        times = model["milliseconds"]
        assert len(times["all"]) == 4 and times["median"] == pytest.approx(np.median(times["all"]))
    assert list(numbers["data"].values()) == [5]
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert table[2][1] == "openvino" and table[2][4:6] == ["100.00", "100.00"]
    assert table[2][9] == ""  # APl
    results = tmp_path.glob("out/*toy.onnx_o*/inference/coco_instances_results.json")
    assert [len(json.loads(path.read_text())) for path in results] == [5, 5]
    with pytest.raises(UserError, match="--overwrite"):
        call(*args)


def test_a_checkpoint(tmp_path: Path) -> None:
    """It is evaluated as by --eval-only, with the config and into the folder beside it."""
    cfg = write_run(tmp_path)
    call("--weights", cfg.MODEL.WEIGHTS, *QUICK, "--device", "cpu")
    (model,) = json.loads((tmp_path / "out/evaluate/evaluate.json").read_text())["models"]
    register_own_datasets(cfg, training=False)
    expected = Trainer.evaluate(cfg, resume=False)["bbox"]
    assert expected["AP50"] > 0 and model["runtime"] == "PyTorch"
    (metrics,) = model["metrics"].values()
    assert metrics["AP50"] == pytest.approx(expected["AP50"], abs=1e-6)


def test_overrides_begin_at_the_first_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    args = ["RUN", "b.pth", "SEED", "3", "TEST.DTYPE", "bfloat16"]
    assert split_overrides(args) == (args[:2], args[2:])
    assert split_overrides(args[:2]) == (args[:2], [])


def test_mistakes(tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "toy.onnx", classes=["green", "blue", "röd"])
    with pytest.raises(UserError, match=r"config\.yaml.*--config-file"):
        call("--weights", toy)
    args = ["--config-file", "Base-RetinaNet.yaml", *colored_dataset(tmp_path)]
    args += ["OUTPUT_DIR", tmp_path / "out"]
    with pytest.raises(UserError, match=r"toy\.onnx.*green, blue, röd"):
        call("--weights", toy, *args)
    with pytest.raises(UserError, match=r"--weights.*absent\.onnx"):
        call("--weights", tmp_path / "absent.onnx", *args)
    assert not (tmp_path / "out/evaluate/evaluate.json").exists()
