"""tools.ablate: rows run, stopped, resumed, reported: by a stand-in for training, and for real."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coco_sets import forget_new_sets

from projects.focal_loss_paper.ablation import command as module
from projects.focal_loss_paper.ablation.plan import Run
from projects.focal_loss_paper.ablation.progress import minutes
from projects.focal_loss_paper.ablation.runs import share_out
from projects.focal_loss_paper.commands import ablate as tool
from retinanet_plugin import UserError
from retinanet_plugin.data import synthetic

ROOT = Path(__file__).resolve().parents[2]
DATA = """
_BASE_: "Base-Scratch-R18.yaml"
MODEL:
  FPN: {OUT_CHANNELS: 32}
  RETINANET: {NUM_CONVS: 1, SCORE_THRESH_TEST: 0.0}
DATASETS:
  OWN: {TRAIN_JSON: "annotations/train.json", TRAIN_IMAGES: "train",
        TEST_JSON: "annotations/test.json", TEST_IMAGES: "test"}
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 30, STEPS: []}
DATALOADER: {NUM_WORKERS: 0}
TEST: {DRAW_PICTURES: 0}
SEED: 3
"""
# Trains in no time: its AP is alpha; it writes what training writes, and logs that it ran. What it
# does otherwise is in a file of the row's name beside it.
STAND_IN = """
import json, os, pathlib, signal, sys, time, yaml
here = pathlib.Path(sys.argv[0]).parent
content = yaml.safe_load(open(sys.argv[1]))
folder = pathlib.Path(content["OUTPUT_DIR"])
alpha = content["MODEL"]["RETINANET"]["FOCAL_LOSS_ALPHA"]
name = folder.parent.name
what = (here / name).read_text() if (here / name).exists() else ""
with open(here / "ran", "a") as file:
    line = f"{name} {content['SEED']} {' '.join(sys.argv[2:])}"
    file.write(f"{line} {os.environ.get('OMP_NUM_THREADS')}\\n")
if what == "lock":
    fds = pathlib.Path("/proc/self/fd").iterdir()
    held = [x for x in fds if x.exists() and x.resolve().name == ".lock"]
    (here / "held").write_text(str(len(held)))
if what == "diverge":
    print("error: training stopped at step 12: the loss is not finite; lower SOLVER.BASE_LR.")
    sys.exit(2)
if what == "fail":
    print("error: no such thing.")
    sys.exit(2)
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "wait" and "--resume" not in sys.argv:
    def stop(*_):
        (folder / "last_checkpoint").write_text("model_0000006.pth")
        sys.exit(130)
    signal.signal(signal.SIGINT, stop)
    (folder / "metrics.json").write_text('{"iteration": 19}\\n')
    time.sleep(600)
scores = {"bbox/AP": 100 * alpha, "bbox/AP50": 100 * alpha, "bbox/AP75": 0, "iteration": 29}
with open(folder / "metrics.json", "a") as file:
    file.write(json.dumps(scores) + "\\n")
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    synthetic.draw_dataset(folder / "data", num_train=6, num_test=4, size=96)
    return folder / "data"


class Ablate:
    """Runs the command with the stand-in, in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "stand_in.py").write_text(STAND_IN)
        (folder / "data.yaml").write_text(DATA)

        def train_command(num_gpus: int, imports: list[str]) -> Any:
            def command(run: Run, *, resume: bool) -> list[str]:
                words = [sys.executable, str(folder / "stand_in.py"), str(run.config_file)]
                return words + ["--resume"] * resume

            return command

        monkeypatch.setattr(module, "train_command", train_command)
        monkeypatch.chdir(folder)

    def __call__(self, *words: str) -> int:
        split = words.index("--") if "--" in words else len(words)
        options = [
            *words[:split],
            "--data",
            "data.yaml",
            "--output",
            "out",
            "--",
            *words[split + 1 :],
        ]
        with forget_new_sets():
            return tool.main([*options, "DATASETS.OWN.ROOT", str(self.folder / "data")])

    def does(self, row: str, what: str) -> None:
        (self.folder / row).write_text(what)

    @property
    def ran(self) -> list[str]:
        """A line for each time that the stand-in was started since this was last asked for."""
        file = self.folder / "ran"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return sorted(lines)


@pytest.fixture
def ablate(tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> Ablate:
    (tmp_path / "data").symlink_to(drawn)
    return Ablate(tmp_path, monkeypatch)


ROWS = ("a_alpha", "--rows", "alpha_0.25", "alpha_0.50", "alpha_0.75")


def saved(row: str, seed: int = 3) -> dict[str, Any]:
    return json.loads(Path(f"out/a_alpha/{row}/seed_{seed}/result.json").read_text())


def test_rows_are_run_once_and_reported(ablate: Ablate, capsys) -> None:
    assert ablate(*ROWS, "--jobs", "2", "--seeds", "1", "2") == 0
    names = ("alpha_0.25", "alpha_0.50", "alpha_0.75")
    assert [x.split()[:2] for x in ablate.ran] == [[n, seed] for n in names for seed in "12"]
    shown = capsys.readouterr()
    assert "| alpha 0.50 | 50.0 ± 0.0 | 50.0 ± 0.0 | 0.0 ± 0.0 | 2 | 30.2 |" in shown.out
    assert "Kendall's tau is 1.00" in shown.out
    assert shown.out.strip() == Path("out/a_alpha/results.md").read_text().strip()
    assert "row 6 of 6" in shown.err
    result = saved("alpha_0.25", seed=2)
    assert (result["ap"], result["seed"], result["diverged_at"]) == (25.0, 2, None)
    assert {"torch", "retinanet_plugin"} <= result["versions"].keys() and result["digest"]

    assert ablate(*ROWS, "--jobs", "2", "--seeds", "1", "2", "3") == 0
    assert [x.split()[:2] for x in ablate.ran] == [[n, "3"] for n in names]


def test_other_settings_are_refused_or_run_again(ablate: Ablate) -> None:
    rows = ("a_alpha", "--rows", "alpha_0.25")
    assert ablate(*rows) == 0
    before = saved("alpha_0.25")
    assert len(ablate.ran) == 1
    with pytest.raises(UserError, match=r"SOLVER.BASE_LR: 0.00125 -> 0.5.*--output, or --again"):
        ablate(*rows, "--", "SOLVER.BASE_LR", "0.5")
    assert ablate.ran == [] and saved("alpha_0.25") == before
    assert ablate(*rows, "--again", "--", "SOLVER.BASE_LR", "0.5") == 0
    assert len(ablate.ran) == 1 and saved("alpha_0.25")["digest"] != before["digest"]
    kept = Path("out/a_alpha/alpha_0.25/seed_3.old1/result.json")
    assert json.loads(kept.read_text()) == before
    assert ablate(*rows, "--again", "--", "SOLVER.BASE_LR", "0.5") == 0
    assert ablate.ran == []  # nothing has changed


def test_a_failing_row_does_not_stop_the_others(ablate: Ablate, capsys) -> None:
    ablate.does("alpha_0.25", "fail")
    ablate.does("alpha_0.50", "die")
    assert ablate(*ROWS) == 1
    said = capsys.readouterr()
    assert "alpha_0.25/seed_3: error: no such thing." in said.err
    assert "alpha_0.50/seed_3: ended by SIGKILL" in said.err
    assert "| alpha 0.25 | failed |" in said.out and "| alpha 0.75 | 75.0 |" in said.out
    ablate.does("alpha_0.25", "")
    ablate.does("alpha_0.50", "")
    assert len(ablate.ran) == 3
    assert ablate(*ROWS) == 0
    assert [x.split()[0] for x in ablate.ran] == ["alpha_0.25", "alpha_0.50"]


def test_divergence_is_a_result(ablate: Ablate, capsys) -> None:
    ablate.does("alpha_0.25", "diverge")
    for _ in range(2):
        assert ablate(*ROWS) == 0
        assert "| alpha 0.25 | diverged at step 12 |" in capsys.readouterr().out
    assert len(ablate.ran) == 3 and saved("alpha_0.25")["diverged_at"] == 12


def test_rows_that_tables_share_and_rows_alike_run_once(ablate: Ablate, capsys) -> None:
    names = ("alpha_0.75", "gamma_0.0", "gamma_2.0")  # the first two have the same settings
    assert ablate("a_alpha", "b_gamma", "fl_star", "--rows", *names, "--jobs", "2") == 0
    assert [x.split()[0] for x in ablate.ran] == ["alpha_0.75", "gamma_2.0"]
    shown = capsys.readouterr().out
    assert "gamma 0, alpha 0.75: has the settings of, and is, a_alpha/alpha_0.75/seed_3" in shown
    assert shown.count("| 75.0 | 75.0 |") == 3


def test_threads_are_shared_out(ablate: Ablate, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6), raising=False)
    assert ablate(*ROWS[:3], "--jobs", "2") == 0
    assert [x.split()[-1] for x in ablate.ran] == ["3"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert share_out(2, 1, on_cpu=True) == [{"OMP_NUM_THREADS": "5"}] * 2
    with pytest.raises(UserError, match="--jobs: 7 given for 6 cores"):
        share_out(7, 1, on_cpu=True)


@pytest.mark.parametrize("visible, names", [(None, "01234567"), ("7,5,4,2,1", "75421")])
def test_gpus_are_shared_out(monkeypatch, visible: str | None, names: str) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(names))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    given = share_out(2, 2, on_cpu=False)
    parts = [",".join(names[:2]), ",".join(names[2:4])]
    assert given == [{"CUDA_VISIBLE_DEVICES": part} for part in parts]
    with pytest.raises(UserError, match=f"need 9 GPUs, but this machine has {len(names)}"):
        share_out(3, 3, on_cpu=False)


def test_stopped_and_continued(ablate: Ablate, capsys, monkeypatch) -> None:
    """Ctrl-C while two rows run: both keep a checkpoint, from which the next call goes on."""
    for row in ("alpha_0.25", "alpha_0.50"):
        ablate.does(row, "wait")

    def looked(self: object, running: list[Any], waiting: list[Run]) -> None:
        if all((r.run.folder / "metrics.json").exists() for r in running):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(module.Terminal, "looked", looked)
        assert ablate(*ROWS, "--jobs", "2") == 130
    said = capsys.readouterr().err
    assert (
        "stopped: 0 of 3 rows have their result; checkpoints are kept of alpha 0.25 at step 7"
        in said
    )
    assert "the same command goes on" in said
    assert len(ablate.ran) == 2
    assert ablate(*ROWS) == 0
    assert "(alpha 0.25): 30 steps, goes on at step 7;" in capsys.readouterr().err
    assert [" --resume " in x for x in ablate.ran] == [True, True, False]
    assert saved("alpha_0.25")["attempts"] == 2 and saved("alpha_0.75")["attempts"] == 1


def test_one_command_at_a_time(ablate: Ablate) -> None:
    with (
        module.alone_in(ablate.folder),
        pytest.raises(UserError, match="by another command"),
        module.alone_in(ablate.folder),
    ):
        pass
    with module.alone_in(ablate.folder):
        pass


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux shows what a process holds")
def test_a_row_that_a_killed_command_left_running_holds_the_lock(ablate: Ablate) -> None:
    ablate.does("alpha_0.25", "lock")
    assert ablate(*ROWS) == 0
    assert (ablate.folder / "held").read_text() == "1"
    with module.alone_in(ablate.folder) as lock:
        script = "import time; time.sleep(600)"
        row = subprocess.Popen([sys.executable, "-c", script], pass_fds=(lock,))
    try:
        with pytest.raises(UserError, match="left by one"), module.alone_in(ablate.folder):
            pass
    finally:
        row.kill()
        row.wait()
    with module.alone_in(ablate.folder):
        pass


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["b_gamma", "--", "MODEL.RETINANET.CLS_LOSS", "mine"], 'CLS_LOSS: unknown name "mine"'),
        (["b_gamma", "--import", "absent.py"], "--import: no file .*absent.py"),
        (["b_gamma", "--", "DATASETS.OWN.TRAIN_JSON", "no.json"], "no.json"),
        (["b_gamma", "SOLVER.BASE_LR", "0.1"], "unknown name.*keys of the config come last"),
    ],
)
def test_mistakes_before_any_row_runs(ablate: Ablate, words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ablate(*words)
    assert ablate.ran == []


def test_an_output_that_cannot_be_a_folder(ablate: Ablate) -> None:
    (ablate.folder / "out").write_text("")
    with pytest.raises(UserError, match="--output: out cannot be made"):
        ablate("b_gamma")


def test_weights_and_batches_of_all_rows_are_looked_at_first(ablate: Ablate, monkeypatch) -> None:
    (ablate.folder / "mine.yaml").write_text("MODEL: {WEIGHTS: absent.pth}\n")
    with pytest.raises(UserError, match=r"absent\.pth"):
        ablate("b_gamma", "--row", "mine.yaml")
    (ablate.folder / "mine.yaml").write_text("SOLVER: {IMS_PER_BATCH: 3}\n")
    monkeypatch.setattr(module, "share_out", lambda *_, **__: [{}])
    with pytest.raises(UserError, match=r"IMS_PER_BATCH: 3 given for --num-gpus 2 \(row mine\)"):
        ablate("b_gamma", "--row", "mine.yaml", "--num-gpus", "2")
    assert ablate.ran == []


@pytest.mark.parametrize("words", [["--jobs", "0"], ["--depth", "50"], ["--steps", "many"]])
def test_words_that_are_no_numbers(ablate: Ablate, words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        ablate("b_gamma", *words)
    assert stop.value.code == 2 and "given; give" in capsys.readouterr().err


def test_keys_without_dashes(ablate: Ablate, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        ablate("b_gamma", "--jobs", "1", "SOLVER.BASE_LR", "0.1")
    assert stop.value.code == 2
    assert "SOLVER.BASE_LR 0.1: not known; keys of the config come" in capsys.readouterr().err


def test_list(capsys) -> None:
    assert tool.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert "b_gamma: " in shown and "gamma_2.0   gamma 2, alpha 0.25   AP 34.0" in shown


def test_durations() -> None:
    assert [minutes(x) for x in (12.2, 100, 3000, 3 * 3600 + 20 * 60)] == [
        *("12 s", "2 min", "50 min", "3 h 20 min")
    ]


# ---------------------------------------------------------------- for real


@pytest.fixture
def really(tmp_path: Path, drawn: Path) -> Iterator[list[str]]:
    """The command in a folder with the loss that the pages show, its row and a small data set."""
    (tmp_path / "data.yaml").write_text(DATA)
    for page, kind, name in (
        ("another-project", "python", "hinge.py"),
        ("reproducing", "yaml", "hinge.yaml"),
    ):
        text = (ROOT / "docs" / f"{page}.md").read_text().split("## A loss of your own")[1]
        (tmp_path / name).write_text(re.findall(f"```{kind}\n(.*?)```", text, re.DOTALL)[0])
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "projects.focal_loss_paper.commands.ablate",
        "b_gamma",
    ]
    words += ["--rows", "gamma_2.0", "hinge", "--row", "hinge.yaml", "--import", "hinge.py"]
    words += ["--data", "data.yaml", "--output", "out", "--jobs", "2"]
    keys = ["SOLVER.MAX_ITER", "45", "SOLVER.BASE_LR", "0.001"]
    yield [*words, "--", "DATASETS.OWN.ROOT", str(drawn), *keys]


def test_a_loss_of_ones_own_in_table_b_stopped_and_continued(
    really: list[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with open("said", "w") as said:
        command = subprocess.Popen(really, stdout=said, stderr=said)
    folders = [tmp_path / "out" / "b_gamma" / row / "seed_3" for row in ("gamma_2.0", "hinge")]
    trained = [folder / "metrics.json" for folder in folders]  # written every 20 steps
    while command.poll() is None and not any(x.exists() and x.stat().st_size for x in trained):
        time.sleep(0.05)
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 130, Path("said").read_text()
    assert "the same command goes on" in Path("said").read_text()
    assert any((folder / "last_checkpoint").exists() for folder in folders)

    again = subprocess.run(really, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "| hinge |" in again.stdout and "| gamma 2, alpha 0.25 |" in again.stdout
    starts = [
        int(line.rsplit(" ", 1)[1])
        for folder in folders
        for line in (folder / "run.log").read_text().splitlines()
        if "Starting training from iteration" in line
    ]
    assert max(starts) > 0
    first_losses = []
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        assert 0 <= result["ap"] <= 100 and result["milliseconds"] > 0
        lines = (folder / "metrics.json").read_text().splitlines()
        assert json.loads(lines[-1])["iteration"] >= 44
        first_losses.append(json.loads(lines[0])["loss_cls"])
    # It was indeed the person's own: at a score of 0.01, 5.6 a positive instead of 1.1.
    assert first_losses[1] > 3 * first_losses[0]
