"""The Python example, in a process without PyTorch, detectron2 and this package."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy_onnx import METADATA, predicted, write_toy

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "detect_onnx.py"
ISOLATED = """
import runpy, sys
sys.modules |= dict.fromkeys(("torch", "detectron2", "retinanet_plugin", "PIL", "onnx"))
del sys.argv[0]
runpy.run_path(sys.argv[0])
"""
FLOAT_INPUT = {"name": "given", "layout": "nchw", "channels": "RGB", "dtype": "float32"}


@pytest.mark.parametrize(
    ("given", "shape"),  # of an image that is too large, too small, too long
    [(METADATA["input"], (90, 60)), (FLOAT_INPUT, (16, 12)), (METADATA["input"], (20, 100))],
)
def test_detections(tmp_path: Path, given: dict[str, str], shape: tuple[int, int]) -> None:
    pytest.importorskip("onnxruntime")
    model = write_toy(tmp_path / "toy.onnx", input=given)
    image = np.zeros((*shape, 3), np.uint8)
    image[:] = (12, 200, 150)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    args = ["-I", "-c", ISOLATED, SCRIPT, model, tmp_path / "a.png", tmp_path / "drawn.png"]
    run = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    _, scores, classes = predicted(image[..., ::-1] if given is FLOAT_INPUT else image)
    names = [METADATA["classes"][i] for i in classes]
    half = shape[1] // 2
    expected = [f"{x} {y:.2f} 0 0 {half} {shape[0]}" for x, y in zip(names, scores, strict=True)]
    assert run.stdout.splitlines() == expected[:2] and scores[1] > 0.5 > 0.05
    drawn = cv2.imread(str(tmp_path / "drawn.png"))
    changed = (drawn != image).any(axis=2)
    assert drawn.shape == image.shape and changed[-1, :half].all()
    assert not changed[-1, half + 3 :].any()


def test_docs_show_the_script() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert f"```python\n{text}```\n" in (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
