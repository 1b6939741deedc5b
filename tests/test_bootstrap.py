"""bootstrap.py without a network: pip meets a folder of wheels, a closed port, or is not called."""

import ast
import base64
import hashlib
import os
import sys
import venv
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest

import bootstrap
from bootstrap import BootstrapError

SOURCE = Path(bootstrap.__file__).read_text(encoding="utf-8")


def test_old_pythons_are_told_the_version_they_need(monkeypatch, capsys):
    ast.parse(SOURCE, feature_version=(3, 6))
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit) as stop:
        exec(compile(SOURCE, "bootstrap.py", "exec"), {"__name__": "x", "__file__": "bootstrap.py"})
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "Python 3.11" in error and "Python 3.9" in error


def test_installed_packages_keep_their_version():
    pins = {"torch": "2.14.1", "torchvision": "0.29.1", "numpy": "2.4.6"}
    pins |= {"opencv-python": "5.0", "setuptools": "80.1"}
    installed = {"torch": "2.6.0+cu124", "torchvision": "0.21.0", "setuptools": "65.5.0"}
    missing = bootstrap.missing_pins(pins, installed)
    assert missing == {"numpy": "2.4.6", "opencv-python": "5.0"}
    installed |= {"opencv-python-headless": "4.9", "numpy": "1.26", "setuptools": "82.0"}
    assert bootstrap.missing_pins(pins, installed) == {"setuptools": "80.1"}


def test_torch_without_torchvision_is_refused():
    with pytest.raises(BootstrapError, match=r"torch 2\.6\.0\+cpu"):
        bootstrap.install_missing(sys.executable, ["runtime"], {"torch": "2.6.0+cpu"})


def test_an_installed_detectron2_is_left_alone(tmp_path, monkeypatch, capsys):
    """A folder of that name in the current folder is none."""
    venv.create(tmp_path / "bare", with_pip=False)
    (tmp_path / "here" / "detectron2").mkdir(parents=True)
    (tmp_path / "path" / "detectron2").mkdir(parents=True)
    (tmp_path / "path" / "detectron2" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path / "here")
    python = bootstrap.venv_python(tmp_path / "bare")
    assert bootstrap.probe(python)["detectron2"] is None
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    bootstrap.install_detectron2(python)
    assert str(tmp_path / "path") in capsys.readouterr().out


def make_wheel(folder):
    """A tiny wheel with the name, version and tag of the real one; returns its sha256."""
    info = "sal_detectron2-0.7.2.dist-info"
    files = {
        "detectron2/__init__.py": "",
        "tools/__init__.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: cp310-none-any\n",
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).decode()
        record += f"{name},sha256={digest.rstrip('=')},{len(content)}\n"
    path = folder / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            wheel.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def purelib(tmp_path, monkeypatch):
    """Where pip, which finds only that wheel, is to install it; its hash is the one asked for."""
    for name in ("wheels", "requirements", "site-packages"):
        (tmp_path / name).mkdir()
    sha256 = make_wheel(tmp_path / "wheels")
    line = f"sal-detectron2==0.7.2 --hash=sha256:{sha256}\n"
    (tmp_path / "requirements" / "detectron2.txt").write_text(line)
    monkeypatch.setattr(bootstrap, "REQUIREMENTS", tmp_path / "requirements")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    there = {"detectron2": None, "purelib": str(tmp_path / "site-packages")}
    monkeypatch.setattr(bootstrap, "probe", lambda python: there)
    return tmp_path / "site-packages"


def test_the_wheel_is_installed_without_its_tools(purelib):
    bootstrap.install_detectron2(sys.executable)
    names = sorted(path.name for path in purelib.iterdir())
    assert names == ["detectron2", "sal_detectron2-0.7.2.dist-info"]
    assert (purelib / "detectron2" / "__init__.py").exists()


def test_a_wheel_with_another_hash_is_refused(purelib, monkeypatch):
    monkeypatch.setattr(bootstrap, "REQUIREMENTS", bootstrap.ROOT / "requirements")
    with pytest.raises(BootstrapError, match="pip failed"):
        bootstrap.install_detectron2(sys.executable)
    assert list(purelib.iterdir()) == []


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """An environment made here, what is installed in it, and the calls of pip, which is faked."""
    installed = {"torch": "2.14.1", "torchvision": "0.29.1", "sal-detectron2": "0.7.2"}
    there = {"installed": installed, "detectron2": "here", "purelib": str(tmp_path)}
    calls = []
    monkeypatch.setattr(bootstrap, "probe", lambda python: there)
    monkeypatch.setattr(bootstrap, "pip", lambda python, *args: calls.append(args))
    python = bootstrap.venv_python(tmp_path / "env")
    python.parent.mkdir(parents=True)
    python.touch()
    (tmp_path / "env" / bootstrap.STAMP).touch()
    return tmp_path / "env", installed, calls


def test_only_a_complete_run_needs_no_second_one(environment, monkeypatch):
    folder, _, calls = environment
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(bootstrap, "install_detectron2", Mock(side_effect=KeyboardInterrupt))
        bootstrap.ensure_environment(folder, ["runtime"])

    def calls_for(*groups):
        calls.clear()
        bootstrap.ensure_environment(folder, groups)
        return calls

    first, *_, last = calls_for("runtime")
    assert f"torch=={bootstrap.read_pins(['runtime'])['torch']}" in first
    assert last[-1] == str(bootstrap.ROOT)
    assert calls_for("runtime") == []
    assert any(arg.startswith("pytest==") for arg in calls_for("runtime", "test")[0])
    assert calls_for("runtime") == []
    monkeypatch.setattr(bootstrap, "fingerprint", lambda: "other pins")
    assert calls_for("runtime")


@pytest.mark.parametrize("made_here", [True, False])
def test_a_detectron2_built_by_hand_keeps_its_torch(environment, made_here):
    folder, installed, calls = environment
    del installed["sal-detectron2"]
    installed |= {"detectron2": "0.6", "torch": "2.6.0"}
    if not made_here:
        (folder / bootstrap.STAMP).unlink()
    bootstrap.ensure_environment(folder, ["runtime"])
    assert calls and not any(arg.startswith("torch") for call in calls for arg in call)
    assert (folder / bootstrap.STAMP).exists() == made_here


def test_checks_stop_at_the_first_failure(monkeypatch):
    names = [check.split()[0] for check in bootstrap.CHECKS]
    assert names == ["ruff", "ruff", "mypy", "lint-imports", "pytest"]
    commands = []
    monkeypatch.setattr(bootstrap, "ensure_environment", lambda venv, groups: Path("bin/python"))
    monkeypatch.setattr(
        bootstrap, "run", lambda command: commands.append(command) or 7 * (len(commands) == 3)
    )
    assert bootstrap.main(["test"]) == 7
    assert commands[-1] == [str(Path("bin/mypy"))]


@pytest.mark.parametrize(
    "error, status",
    [
        (BootstrapError("x"), 2),
        (OSError(13, "denied", "/x"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_are_one_line_and_a_status(monkeypatch, capsys, error, status):
    monkeypatch.setattr(bootstrap, "ensure_environment", Mock(side_effect=error))
    assert bootstrap.main(["quickstart"]) == status
    assert capsys.readouterr().err.count("\n") == 1


def test_ci_runs_what_the_readme_says():
    ci = (bootstrap.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = ci.splitlines()[-1].removeprefix("exec ")
    assert command == "python3 bootstrap.py test"
    assert command in (bootstrap.ROOT / "README.md").read_text(encoding="utf-8")
