"""What a terminal shows."""

import io
import re
import sys
from pathlib import Path

import pytest
import torch
from small_training import SMALL, metrics, train

from retinanet_plugin.data import synthetic


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_training_on_a_terminal_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal with evaluations, elsewhere without: other output, the same weights."""
    monkeypatch.chdir(tmp_path)
    synthetic.draw_dataset(tmp_path / "data", num_train=6, num_test=4, size=96)
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        assert train(*SMALL, "OUTPUT_DIR", "seen", "TEST.EVAL_PERIOD", "1") == 0
    shown = terminal.getvalue()
    capsys.readouterr()
    assert train(*SMALL, "OUTPUT_DIR", "unseen") == 0
    printed = "".join(capsys.readouterr())

    loss = r"loss [\d.]+ \(cls [\d.]+, box_reg [\d.]+\)"
    assert re.search(rf"\r3/3 steps \|█+\| +[^\r]*, 00:00 left, {loss}", shown)
    assert "own_test: 0/4 images |" in shown and "Evaluation results for bbox" in shown
    assert "seen/log.txt" in shown and "model_best.pth" in shown
    for text in ("Starting training", "Environment info", "eta: ", "Start inference", "DONE (t="):
        assert text not in shown
        assert text in printed
        assert text in Path("seen/log.txt").read_text()
    assert Path("seen/log.txt").read_text().count("Starting training") == 1
    assert "steps |" not in printed and "images |" not in printed

    seen, unseen = (
        torch.load(f"{x}/model_final.pth", weights_only=True) for x in ("seen", "unseen")
    )
    assert all(torch.equal(x, unseen["model"][name]) for name, x in seen["model"].items())
    assert seen["classes"] == ["disc", "ring", "triangle", "cross"]
    evaluations = [x for x in metrics("seen") if {"validation/total_loss", "bbox/AP"} <= x.keys()]
    assert len(evaluations) == 3
    assert Path("seen/model_best.pth").exists() and not Path("unseen/model_best.pth").exists()
