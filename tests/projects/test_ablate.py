"""ablate: rows are trained, interrupted, resumed and reported, by a stand-in and for real."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_sets import forget_new_sets
from small_training import SMALL

from projects.focal_loss_paper import ablate as command
from projects.focal_loss_paper import ablation_report as report
from projects.focal_loss_paper.ablation_plan import Options, Run, make_plans
from retinanet_plugin import UserError, get_config
from retinanet_plugin.data import synthetic
from retinanet_plugin.evaluation.timing import describe_machine

ROOT = Path(__file__).resolve().parents[2]
MACHINE = describe_machine("cpu", 1)
# Replaces `retinanet train`: AP is alpha. A file with the row's name holds its error, or "wait".
STAND_IN = """
import json, pathlib, signal, sys, time, yaml
here = pathlib.Path(sys.argv[0]).parent
content = yaml.safe_load(open(sys.argv[1]))
folder = pathlib.Path(content["OUTPUT_DIR"])
alpha = content["MODEL"]["RETINANET"]["FOCAL_LOSS_ALPHA"]
row = here / folder.parent.name
error = row.read_text() if row.exists() else ""
with open(here / "ran", "a") as file:
    file.write(f"{row.name} {content['SEED']}\\n")
if error == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (row.unlink(), sys.exit(75)))
    (folder / "waiting").touch()
    time.sleep(600)
if error:
    print(f"error: {error}\\nlast words")
    sys.exit(2)
scores = {"bbox/AP": 100 * alpha, "bbox/AP50": 100 * alpha, "bbox/AP75": 0, "iteration": 29}
with open(folder / "metrics.json", "a") as file:
    file.write(json.dumps(scores) + "\\n")
"""
DIVERGED = "training stopped at step 12, where the loss or its gradients are not finite"
LONGER = ("SOLVER.MAX_ITER", "30", "SOLVER.BASE_LR", "0.001")
ROWS = ("a_alpha", "--rows", "alpha_0.25,alpha_0.50,alpha_0.75")


@pytest.fixture
def ablate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command in a folder with a small dataset."""
    synthetic.draw_dataset(tmp_path / "data", num_train=2, num_test=2, size=64)
    cfg = get_config("Base-Scratch-R18.yaml", [*SMALL, *LONGER])
    (tmp_path / "data.yaml").write_text(cfg.dump())
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> int:
        with forget_new_sets():
            return command.main(["--data", "data.yaml", "--output", "out", *args])

    return run


@pytest.fixture
def stand_in(ablate: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("stand_in.py").write_text(STAND_IN)
    popen = subprocess.Popen

    def start(args: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        config = args[args.index("--config-file") + 1]
        return popen([sys.executable, "stand_in.py", config], **options)

    monkeypatch.setattr(command.subprocess, "Popen", start)
    monkeypatch.setattr(report, "write_figure", lambda path, figure: None)  # test_a_report does


def ran() -> list[str]:
    """Row and seed of each start of the stand-in since this was last called."""
    lines = Path("ran").read_text().splitlines() if Path("ran").exists() else []
    Path("ran").unlink(missing_ok=True)
    return sorted(lines)


@pytest.mark.usefixtures("stand_in")
def test_rows_are_run_once_and_reported(ablate: Any, capsys: Any) -> None:
    rows = ("a_alpha", "--rows", "alpha_0.50", "--jobs", "2")
    assert ablate(*rows, "--seeds", "1,2") == 0
    assert ran() == ["alpha_0.50 1", "alpha_0.50 2"]
    shown = capsys.readouterr().out
    assert "| alpha 0.50 | 50.0 ± 0.0 | 50.0 ± 0.0 | 0.0 ± 0.0 | 2 | 30.2 |" in shown
    assert shown.strip() == Path("out/a_alpha/results.md").read_text().strip()
    assert ablate(*rows, "--seeds", "1,2,3") == 0
    assert ran() == ["alpha_0.50 3"]
    with pytest.raises(UserError, match=r"alpha_0.50/seed_1: .*SOLVER.BASE_LR 0.001 -> 0.5"):
        ablate(*rows, "--seeds", "1", "SOLVER.BASE_LR", "0.5")


@pytest.mark.usefixtures("stand_in")
def test_a_failed_row_does_not_stop_the_others(ablate: Any, capsys: Any) -> None:
    Path("alpha_0.25").write_text("no such thing")
    Path("alpha_0.50").write_text(DIVERGED)
    assert ablate(*ROWS) == 1
    shown = capsys.readouterr()
    assert "no such thing" in shown.err and "alpha_0.25/seed_3/run.log" in shown.err
    assert "| alpha 0.25 | failed |" in shown.out and "| alpha 0.75 | 75.0 |" in shown.out
    assert "| alpha 0.50 | diverged at step 12 |" in shown.out
    Path("alpha_0.25").unlink()
    assert len(ran()) == 3
    assert ablate(*ROWS) == 0
    assert ran() == ["alpha_0.25 3"]


def interrupt_when(condition: Callable[[], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupts the command, which polls, once the condition holds."""
    sleep = time.sleep

    def poll(seconds: float) -> None:
        sleep(0.05)
        if condition():
            monkeypatch.setattr(command.time, "sleep", sleep)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(command.time, "sleep", poll)


@pytest.mark.usefixtures("stand_in")
def test_an_interrupt_stops_all_rows(ablate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in ("alpha_0.25", "alpha_0.50"):
        Path(row).write_text("wait")
    interrupt_when(lambda: len(list(Path("out").glob("**/waiting"))) == 2, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="0 of 3"):
        ablate(*ROWS, "--jobs", "2")
    assert ran() == ["alpha_0.25 3", "alpha_0.50 3"]
    assert ablate(*ROWS) == 0
    assert len(ran()) == 3


def test_cores_and_gpus_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(command, "cpu_count", lambda: 6)
    assert command.share_machine(2, 1, on_cpu=True) == [{"OMP_NUM_THREADS": "3"}] * 2
    with pytest.raises(UserError, match="--jobs: 7"):
        command.share_machine(7, 1, on_cpu=True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 5)
    for visible, expected in (("", ["0,1", "2,3"]), ("7,5,4,2,1", ["7,5", "4,2"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        slots = command.share_machine(2, 2, on_cpu=False)
        assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == expected
    with pytest.raises(UserError, match="--num-gpus"):
        command.share_machine(3, 2, on_cpu=False)


@pytest.mark.parametrize(
    "args, named",
    [
        (["b_gamma", "--import", "absent.py"], "absent.py"),
        (["b_gamma", "DATASETS.OWN.TRAIN_JSON", "no.json"], "no.json"),
        (["b_gamma", "--seeds", "1,x"], "--seeds"),
    ],
)
@pytest.mark.usefixtures("stand_in")
def test_mistakes_before_any_row_runs(ablate: Any, args: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ablate(*args)
    assert ran() == []


def test_list(capsys: Any) -> None:
    assert command.main(["--list"]) == 0
    assert "gamma_2.0   gamma 2, alpha 0.25   AP 34.0" in capsys.readouterr().out


def test_kendalls_tau() -> None:
    assert report.kendall_tau([1, 2, 3, 4], [2, 4, 7, 9]) == 1
    assert report.kendall_tau([1, 2, 3, 4], [9, 7, 4, 2]) == -1
    assert report.kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    # The example with ties of scipy.stats.kendalltau.
    assert report.kendall_tau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.4714045208)
    assert report.kendall_tau([1, 1, 1], [1, 2, 3]) is None
    assert report.kendall_tau([1], [2]) is None


def finish(run: Run, ap: float | None) -> None:
    """Leaves what training leaves; None: it diverged at step 12."""
    run.folder.mkdir(parents=True, exist_ok=True)
    run.config_file.write_text(run.cfg.dump())
    run.log.write_text(f"error: {DIVERGED}")
    lines = [
        {"iteration": 19, "bbox/AP": 1.0, "bbox/AP50": 2.0, "bbox/AP75": 3.0},
        {"iteration": 59, "bbox/AP": ap, "bbox/AP50": ap, "bbox/AP75": np.nan},
    ]
    (run.folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    assert report.write_result(run, 2 if ap is None else 0, MACHINE)


def test_a_report(tmp_path: Path) -> None:
    """Two seeds: 0.10 diverged, one seed of 0.50 did, 0.999 failed, and 0.90 has not run."""
    (plan,) = make_plans(["a_alpha"], Options("quickstart", tmp_path, seeds=(1, 2)))
    ap = {
        "alpha_0.10": (None, None),
        "alpha_0.25": (20.0, 22.0),
        "alpha_0.50": (None, 63.0),
        "alpha_0.75": (60.0, 62.0),
        "alpha_0.99": (50.0, 50.2),
    }
    for row, runs in plan.runs.items():
        for run, value in zip(runs, ap.get(row.name, ()), strict=False):
            finish(run, value)
    failed = [run for row, runs in plan.runs.items() if row.name == "alpha_0.999" for run in runs]
    text = report.write_report(plan, failed)
    rows = {x.split(" | ")[0].strip("| "): x for x in text.splitlines() if x.startswith("| alpha")}
    assert "| 21.0 ± 1.4 | 21.0 ± 1.4 | 0.0 ± 0.0 | 2 | 10.8 | 16.0 |" in rows["alpha 0.25"]
    assert "| diverged at step 12 |" in rows["alpha 0.10"]
    assert "| 63.0 (1 diverged) |" in rows["alpha 0.50"]
    assert "| failed |" in rows["alpha 0.999"] and "| not run yet |" in rows["alpha 0.90"]
    # The paper's order is 0.10, 0.25, 0.99, 0.50, 0.75; of 10 pairs, 0.50 and 0.75 are swapped.
    assert f"{(9 - 1) / 10:.2f}" in text
    lines = (plan.folder / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + 7 and lines[2].startswith("alpha_0.25,alpha 0.25,2,0,21,1.41")
    assert (plan.folder / "results.png").read_bytes()[1:4] == b"PNG"
    (other,) = make_plans(["a_alpha"], Options("quickstart", tmp_path, steps=3, seeds=(1, 2)))
    assert not any(m.results for m in report.measure(other))  # those of other settings


def test_an_own_loss_in_table_b_interrupted_and_continued(
    ablate: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The documented loss, really trained."""
    page = (ROOT / "docs/another-project.md").read_text().split("## Your own loss\n")[1]
    for language, name in (("python", "hinge.py"), ("yaml", "hinge.yaml")):
        (code,) = re.findall(f"```{language}\n(.*?)```", page, re.DOTALL)[:1]
        Path(name).write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args = ["b_gamma", "--rows", "hinge", "--add-row", "hinge.yaml", "--import", "hinge.py"]
    folder = Path("out/b_gamma/hinge/seed_3")
    log = folder / "run.log"
    interrupt_when(lambda: log.exists() and "Starting train" in log.read_text(), monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="0 of 1"):
        ablate(*args)
    assert (folder / "last_checkpoint").exists()
    assert ablate(*args) == 0
    assert "| hinge |" in capsys.readouterr().out
    first = re.search(r"Starting training from iteration (\d+)", log.read_text())
    assert first and int(first[1]) > 0
    assert 0 <= report.read_result(folder).ap <= 100
    lines = [json.loads(x) for x in (folder / "metrics.json").read_text().splitlines()]
    assert lines[-1]["iteration"] >= 29
    # It is indeed the user's loss: at a score of 0.01, 5.6 per positive, where focal loss has 1.1.
    assert lines[0]["loss_cls"] > 3
