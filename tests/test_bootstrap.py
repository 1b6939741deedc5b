"""bootstrap.py without a network: pip meets a folder of wheels, a closed port, or is not called."""

import ast
import base64
import hashlib
import json
import os
import subprocess
import sys
import types
import venv
import zipfile
from pathlib import Path

import pytest

import bootstrap
from bootstrap import BootstrapError

SOURCE = Path(bootstrap.__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python with the standard library only, whatever is installed beside the tests."""
    directory = tmp_path_factory.mktemp("bare")
    venv.create(directory, with_pip=False)
    return bootstrap.venv_python(directory)


@pytest.fixture
def no_pip(monkeypatch):
    """Fails the test that lets pip run."""

    def refuse(*arguments):
        raise AssertionError(f"pip was called: {arguments}")

    monkeypatch.setattr(bootstrap, "pip", refuse)


def package(folder, name, content=""):
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(content, encoding="utf-8")


# --- Python itself ---------------------------------------------------------------------------


def test_an_old_python_can_read_the_file_far_enough_to_be_told():
    ast.parse(SOURCE, feature_version=(3, 6))


def test_an_old_python_is_refused_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit) as stop:
        exec(compile(SOURCE, "bootstrap.py", "exec"), {"__name__": "x", "__file__": "bootstrap.py"})
    assert stop.value.code == 2
    complaint = capsys.readouterr().err
    assert "needs Python 3.11" in complaint and "is Python 3.9" in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("absent", ["venv", "ensurepip"])
def test_a_python_without_the_venv_module_is_refused(monkeypatch, tmp_path, absent):
    monkeypatch.setattr(
        bootstrap.importlib.util, "find_spec", lambda name: None if name == absent else name
    )
    with pytest.raises(BootstrapError, match=f"no {absent} module.*python3-venv"):
        bootstrap.make_venv(tmp_path / "env")


# --- what pip says, in a person's words ------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n"
            "ERROR: No matching distribution found for torch==2.14.1",
            "cannot reach its package index",
        ),
        ("ERROR: No matching distribution found for torch==2.14.1", "has no torch==2.14.1 for"),
        (
            "ERROR: [Errno 13] Permission denied: '/usr/lib/x'",
            "no permission to write '/usr/lib/x'",
        ),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "sha256"),
        ("\n".join(f"line {i}" for i in range(40)), "line 39"),
    ],
)
def test_pip_trouble_becomes_a_sentence(output, sentence):
    assert sentence in bootstrap.explain(output)
    assert "line 20" not in bootstrap.explain(output)


def test_an_index_out_of_reach(monkeypatch):
    closed_port = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    for name, value in {**closed_port, "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BootstrapError, match="cannot reach its package index"):
        bootstrap.pip(sys.executable, "--target", "nowhere", "a-distribution-that-is-nowhere")


def test_the_lines_that_tell_progress():
    shown = [
        bootstrap.digest_line(line)
        for line in (
            "Collecting torch==2.14.1\n",
            "  Downloading torch-2.14.1-cp311-cp311-manylinux_2_28_x86_64.whl (912.3 MB)\n",
            "Downloading nvidia_cudnn.whl (1.2 GB)\n",
            "Downloading tqdm-4.70.1-py3-none-any.whl (78 kB)\n",
            "Installing collected packages: mpmath, torch, torchvision\n",
        )
    ]
    assert [line is not None for line in shown] == [False, True, True, False, True]
    assert shown[-1] == "Installing 3 packages"


def test_a_short_disk_is_refused(monkeypatch, tmp_path):
    usage = types.SimpleNamespace(free=1.5e9)
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(BootstrapError, match=r"1\.5 GB free"):
        bootstrap.require_free_space(tmp_path / "not" / "yet" / "made")
    usage.free = 100e9
    bootstrap.require_free_space(tmp_path)


# --- an existing detectron2 ------------------------------------------------------------------


def test_an_existing_detectron2_is_left_alone(no_pip, bare_python, tmp_path, monkeypatch, capsys):
    package(tmp_path, "detectron2")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bootstrap.ensure_detectron2(bare_python)
    assert f"left alone: {tmp_path / 'detectron2' / '__init__.py'}" in capsys.readouterr().out


def test_a_folder_that_happens_to_be_called_detectron2_is_not_one(
    bare_python, tmp_path, monkeypatch
):
    (tmp_path / "detectron2" / "projects").mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert bootstrap.probe(bare_python)["found"]["detectron2"] is None


def test_what_a_persons_environment_holds_keeps_its_version():
    pins = {"torch": "2.14.1", "torchvision": "0.29.1", "numpy": "2.4.6", "opencv-python": "5.0"}
    there = {
        "installed": {"torch": "2.6.0+cu124", "torchvision": "0.21.0", "setuptools": "65.5.0"},
        "found": {"pkg_resources": "pkg_resources.py"},
    }
    missing, kept = bootstrap.additions(pins | {"setuptools": "80.1"}, there)
    assert missing == ["numpy==2.4.6", "opencv-python==5.0"]
    assert kept == ["torch==2.6.0+cu124", "torchvision==0.21.0", "setuptools==65.5.0"]


def test_any_opencv_will_do_and_a_setuptools_without_pkg_resources_will_not():
    there = {
        "installed": {"opencv-python-headless": "4.9", "setuptools": "82.0"},
        "found": {"pkg_resources": None},
    }
    pins = {"opencv-python": "5.0", "setuptools": "80.1"}
    assert bootstrap.additions(pins, there) == (["setuptools==80.1"], [])


def test_a_torch_without_its_torchvision_is_refused():
    there = {"installed": {"torch": "2.6.0+cpu"}, "found": {"pkg_resources": "x"}}
    with pytest.raises(BootstrapError, match=r"torch 2\.6\.0\+cpu is there without torchvision"):
        bootstrap.additions({"torch": "2.14.1", "torchvision": "0.29.1"}, there)


# --- detectron2's wheel ----------------------------------------------------------------------


def detectron2_wheel(folder):
    """A tiny wheel of the same name, version and tag as the real one; returns its sha256."""
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
def fake_index(tmp_path, monkeypatch):
    """pip finds that tiny wheel and nothing else; ``requirements/`` asks for its very hash."""
    wheels, requirements = tmp_path / "wheels", tmp_path / "requirements"
    wheels.mkdir()
    requirements.mkdir()
    sha256 = detectron2_wheel(wheels)
    (requirements / "detectron2.txt").write_text(
        f"sal-detectron2==0.7.2 --hash=sha256:{sha256}\n", encoding="utf-8"
    )
    monkeypatch.setattr(bootstrap, "REQUIREMENTS", requirements)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    purelib = tmp_path / "site-packages"
    purelib.mkdir()
    return purelib


def test_the_wheel_with_the_right_hash_is_installed_without_its_tools(fake_index):
    bootstrap.install_detectron2(sys.executable, fake_index)
    assert sorted(path.name for path in fake_index.iterdir()) == [
        "detectron2",
        "sal_detectron2-0.7.2.dist-info",
    ]
    assert (fake_index / "detectron2" / "__init__.py").exists()


def test_a_wheel_with_another_hash_is_refused(fake_index, monkeypatch):
    monkeypatch.setattr(bootstrap, "REQUIREMENTS", bootstrap.ROOT / "requirements")  # the real one
    with pytest.raises(BootstrapError, match="sha256"):
        bootstrap.install_detectron2(sys.executable, fake_index)
    assert list(fake_index.iterdir()) == []


def test_what_lies_in_its_place_is_not_overwritten(fake_index):
    (fake_index / "detectron2").mkdir()
    (fake_index / "detectron2" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BootstrapError, match="in the way"):
        bootstrap.install_detectron2(sys.executable, fake_index)
    assert [path.name for path in (fake_index / "detectron2").iterdir()] == ["notes.txt"]


# --- the stamp -------------------------------------------------------------------------------


def test_the_state_survives_and_half_a_state_counts_as_none(tmp_path):
    state = {"made_here": True, "done": {"runtime": "abc"}}
    bootstrap.write_state(tmp_path, state)
    assert bootstrap.read_state(tmp_path) == state
    assert [path.name for path in tmp_path.iterdir()] == [bootstrap.STATE]
    for broken in ("", '{"made_here": tr', "[]", '{"made_here": true, "done": 3}'):
        (tmp_path / bootstrap.STATE).write_text(broken, encoding="utf-8")
        assert bootstrap.read_state(tmp_path) == {"made_here": False, "done": {}}


def test_the_fingerprint_follows_what_would_be_installed(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    (tree / "requirements").mkdir(parents=True)
    names = ["setup.cfg", "setup.py", "requirements/detectron2.txt"]
    for name in [*names, "requirements/runtime.txt", "requirements/test.txt"]:
        (tree / name).write_text(name, encoding="utf-8")
    monkeypatch.setattr(bootstrap, "ROOT", tree)
    before = {group: bootstrap.fingerprint(group) for group in ("runtime", "test")}
    assert before == {group: bootstrap.fingerprint(group) for group in ("runtime", "test")}
    (tree / "requirements/test.txt").write_text("newer", encoding="utf-8")
    assert bootstrap.fingerprint("runtime") == before["runtime"]
    assert bootstrap.fingerprint("test") != before["test"]
    (tree / "setup.cfg").write_text("newer", encoding="utf-8")
    assert bootstrap.fingerprint("runtime") != before["runtime"]
    (tree / "setup.cfg").write_text("setup.cfg", encoding="utf-8")
    tree.rename(tmp_path / "moved")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path / "moved")
    assert bootstrap.fingerprint("runtime") != before["runtime"]


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """An environment of ours in which everything is found, and the calls of a fake pip."""
    found = dict.fromkeys(
        ("pip", "torch", "torchvision", "detectron2", "pkg_resources", "retinanet_plugin"), "here"
    )
    there = {
        "version": [3, 11],
        "purelib": str(tmp_path / "lib"),
        "found": found,
        "installed": {"torch": "2.14.1", "torchvision": "0.29.1", "sal-detectron2": "0.7.2"},
    }
    calls = []
    monkeypatch.setattr(bootstrap, "probe", lambda python: json.loads(json.dumps(there)))
    monkeypatch.setattr(bootstrap, "pip", lambda python, *arguments: calls.append(arguments))
    monkeypatch.setattr(
        bootstrap.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0)
    )
    directory = tmp_path / "env"
    directory.mkdir()
    (directory / "pyvenv.cfg").touch()
    bootstrap.write_state(directory, {"made_here": True, "done": {}})
    return directory, there, calls


def test_a_second_run_installs_nothing(environment):
    directory, _, calls = environment
    bootstrap.ensure_environment(directory, ["runtime"])
    assert f"torch=={bootstrap.read_pins(['runtime'])['torch']}" in calls[0]
    calls.clear()
    bootstrap.ensure_environment(directory, ["runtime"])
    assert calls == []
    bootstrap.ensure_environment(directory, ["runtime", "test"])
    assert any(argument.startswith("pytest==") for argument in calls[0])


def test_a_run_that_was_cut_short_is_taken_up_again(environment, monkeypatch):
    directory, _, calls = environment

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "pip", killed)
        with pytest.raises(KeyboardInterrupt):
            bootstrap.ensure_environment(directory, ["runtime"])
    assert bootstrap.read_state(directory)["done"] == {}
    bootstrap.ensure_environment(directory, ["runtime"])
    assert len(calls) == 2 and bootstrap.read_state(directory)["done"].keys() == {"runtime"}


def test_what_vanished_since_is_installed_again(environment):
    directory, there, calls = environment
    bootstrap.ensure_environment(directory, ["runtime"])
    calls.clear()
    there["found"]["torch"] = None
    bootstrap.ensure_environment(directory, ["runtime"])
    assert calls


@pytest.mark.parametrize("made_here", [True, False])
def test_a_detectron2_built_by_hand_keeps_its_torch(environment, made_here):
    directory, there, calls = environment
    del there["installed"]["sal-detectron2"]
    there["installed"] |= {"detectron2": "0.6", "torch": "2.6.0"}
    bootstrap.write_state(directory, {"made_here": made_here, "done": {}})
    bootstrap.ensure_environment(directory, ["runtime"])
    assert not any(argument.startswith("torch") for call in calls for argument in call)
    assert not any("--require-hashes" in call for call in calls)


def test_half_installed_distributions_are_swept_away(tmp_path):
    for name in ("whole", "half"):
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        (tmp_path / f"{name}-1.0.dist-info" / "METADATA").touch()
    (tmp_path / "whole-1.0.dist-info" / "INSTALLER").touch()
    (tmp_path / "~orch").mkdir()
    (tmp_path / "torch").mkdir()
    bootstrap.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torch", "whole-1.0.dist-info"]


def test_a_folder_or_file_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(BootstrapError, match="neither empty nor a virtual environment"):
        bootstrap.open_venv(tmp_path)
    with pytest.raises(BootstrapError, match="is a file"):
        bootstrap.open_venv(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_environment_of_ours_whose_python_is_gone_is_made_anew(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "old.py").touch()
    python = bootstrap.venv_python(tmp_path)
    python.parent.mkdir()
    python.touch()  # stands for the link to a Python that was uninstalled
    bootstrap.write_state(tmp_path, {"made_here": True, "done": {}})
    monkeypatch.setattr(bootstrap, "make_venv", lambda path: venv.create(path, with_pip=False))
    with pytest.raises(BootstrapError, match=r"has no pip: run .* -m ensurepip"):
        bootstrap.open_venv(tmp_path)
    assert python.exists() and not (tmp_path / "lib" / "old.py").exists()
    assert bootstrap.read_state(tmp_path)["made_here"]


# --- the commands ----------------------------------------------------------------------------


def test_lint_stops_the_tests_with_its_status_and_pytest_comes_last(monkeypatch, tmp_path, capfd):
    names = [check[0] for check in bootstrap.CHECKS]
    assert names == ["ruff", "ruff", "mypy", "pytest"]
    for name, status in {"good": 0, "bad": 7, "never": 0}.items():
        (tmp_path / f"{name}.py").write_text(f"print('{name} ran'); raise SystemExit({status})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(bootstrap, "ensure_environment", lambda venv, groups: sys.executable)
    monkeypatch.setattr(bootstrap, "CHECKS", (["good"], ["bad"], ["never"]))
    assert bootstrap.main(["test"]) == 7
    output = capfd.readouterr().out
    assert output.splitlines()[-1] == "bad ran" and "good ran" in output


def test_trouble_is_one_sentence_and_a_status(monkeypatch, capsys):
    troubles = {BootstrapError("no luck"): 2, PermissionError(13, "denied", "/x"): 2}
    for trouble, status in {**troubles, KeyboardInterrupt(): 130}.items():

        def fail(venv, groups, trouble=trouble):
            raise trouble

        monkeypatch.setattr(bootstrap, "ensure_environment", fail)
        assert bootstrap.main(["quickstart"]) == status
        assert capsys.readouterr().err.count("\n") == 1


def test_ci_runs_what_the_readme_says():
    ci = (bootstrap.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = ci.splitlines()[-1].removeprefix("exec ")
    assert command == "python3 bootstrap.py test"
    assert command in (bootstrap.ROOT / "README.md").read_text(encoding="utf-8")
