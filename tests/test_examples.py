"""The examples, in processes that have neither PyTorch nor detectron2 nor this package."""

import ast
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy_onnx import METADATA, foretold, write_toy

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "detect_onnx.py"
PAGE = ROOT / "docs" / "deploy.md"
# Runs the script after it as if none of these were installed.
ALONE = """
import runpy, sys
absent = ("torch", "torchvision", "detectron2", "fvcore", "iopath", "PIL", "onnx")
class Absent:
    def find_spec(name, *others):
        if name.split(".")[0] in (*absent, "retinanet_plugin"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not set(absent) & set(sys.modules)
"""
AS_FLOATS = {"name": "given", "layout": "nchw", "channels": "RGB", "dtype": "float32"}


def alone(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", ALONE, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    "given, shape",  # of a picture that is too large, too small, too long
    [(METADATA["input"], (90, 60)), (AS_FLOATS, (16, 12)), (METADATA["input"], (20, 100))],
)
def test_detecting_with_onnxruntime_alone(
    tmp_path: Path, given: dict[str, str], shape: tuple[int, int]
) -> None:
    pytest.importorskip("onnxruntime")
    model = write_toy(tmp_path / "toy.onnx", input=given)
    picture = np.zeros((*shape, 3), np.uint8)
    picture[:] = (12, 200, 150)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    run = alone(SCRIPT, model, tmp_path / "a.png", tmp_path / "found.png")
    assert run.returncode == 0, run.stderr
    _, scores, classes = foretold(picture[..., ::-1] if given is AS_FLOATS else picture)
    names = [METADATA["classes"][kind] for kind in classes]
    half = shape[1] // 2
    expected = [f"{x} {y:.2f} 0 0 {half} {shape[0]}" for x, y in zip(names, scores, strict=True)]
    assert run.stdout.splitlines() == expected[:2] and scores[1] > 0.5 > 0.05
    drawn = cv2.imread(str(tmp_path / "found.png"))
    changed = (drawn != picture).any(axis=2)
    assert drawn.shape == picture.shape and changed[-1, :half].all()
    assert not changed[-1, half + 3 :].any()


def test_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run = alone(SCRIPT, write_toy(tmp_path / "toy.onnx"), "absent.jpg", "found.png")
    assert run.returncode == 1 and "absent.jpg: no picture that OpenCV can read" in run.stderr


def test_the_page_shows_the_script_which_is_short_and_needs_three_libraries() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert f"```python\n{text}```\n" in PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported - sys.stdlib_module_names == {"cv2", "numpy", "onnxruntime"}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(ast.parse(text)))
