#!/usr/bin/env python3
"""Sets everything up with one command, on a machine that has Python 3.11 and reaches only PyPI.

    python3 bootstrap.py quickstart    install, draw the data, train, evaluate, write pictures
    python3 bootstrap.py test          install, then lint, types and tests
    python3 bootstrap.py detectron2    add detectron2 to the Python that runs this, nothing else

The first two work in ``.venv`` beside this file (``--venv DIR``: elsewhere). A second run finds
everything in place; a run that was cut short is taken up where it stopped. What an environment of
your own already holds keeps its version, above all a detectron2 and the torch it was built for.

Which versions are installed stands in ``requirements/``. Standard library only. Tested on Linux
x86-64; Windows and macOS are provided for, but nobody has tried them yet.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if sys.version_info < (3, 11):  # noqa: UP036 - an older Python gets this far and is told so
    print(
        "error: bootstrap.py needs Python 3.11 or newer, but {} is Python {}.{}: install a newer "
        "one and run it as `python3.11 bootstrap.py ...`".format(sys.executable, *sys.version_info),
        file=sys.stderr,
    )
    sys.exit(2)

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "requirements"
STATE = "retinanet_plugin.json"  # in the environment: who made it, and what is completely installed
FREE_GB = 6 if sys.platform == "linux" else 2  # PyPI's torch for Linux brings CUDA along
HEARTBEAT_S = 15

CHECKS = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["pytest"])
QUICKSTART = ["train_net.py", "--config-file", "configs/quickstart.yaml", "--resume"]

# pip's own words -> what a person can do about them; the first that occurs is the cause.
PIP_TROUBLE = {
    "No space left on device": "the disk is full: free some space (or point TMPDIR at a larger "
    "disk), then run the same command again",
    "DO NOT MATCH THE HASHES": "a downloaded file is not the one that requirements/ names by its "
    "sha256, so nothing of it was installed: check where pip downloads from (`pip config list`)",
    r"Retrying \(Retry|Max retries exceeded": "pip cannot reach its package index: check the "
    "network and pip's settings (`pip config list`), then run the same command again",
    r"No matching distribution found for (?P<what>\S+)": "pip's package index has no {what} for "
    "this Python and machine: try another Python (`python3.11 bootstrap.py ...`), or install that "
    "package by hand into an environment and name it with --venv",
    r"Permission denied: (?P<what>\S+)": "no permission to write {what}: use a virtual environment "
    "of your own (--venv DIR)",
}

# Runs in the environment's Python, which may be another one than ours.
PROBE = """
import importlib.metadata, importlib.util, json, re, sys, sysconfig
sys.path[:] = [p for p in sys.path if p]  # the folder we happen to be in proves nothing
def origin(name):
    spec = importlib.util.find_spec(name)
    return spec and spec.origin  # None also for a bare folder of that name
print(json.dumps({
    "version": sys.version_info[:2],
    "purelib": sysconfig.get_path("purelib"),
    "found": {n: origin(n) for n in
              ("pip", "torch", "torchvision", "detectron2", "pkg_resources", "retinanet_plugin")},
    "installed": {re.sub("[-_.]+", "-", d.metadata["Name"]).lower(): d.version
                  for d in importlib.metadata.distributions() if d.metadata["Name"]},
}))
"""


class BootstrapError(Exception):
    """A person can mend this; its one sentence says how."""


# --- what is there ---------------------------------------------------------------------------


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def probe(python: Path | str) -> dict[str, Any]:
    """What that Python is and has: ``version``, ``purelib``, ``found`` (files), ``installed``."""
    try:
        answer = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BootstrapError(
            f"{python} does not run: remove that environment or name another with --venv DIR"
        ) from error
    found: dict[str, Any] = json.loads(answer.stdout)
    if tuple(found["version"]) < (3, 11):
        raise BootstrapError(
            "{} is Python {}.{}, but 3.11 or newer is needed: name another environment with "
            "--venv DIR".format(python, *found["version"])
        )
    return found


def runs_pip(python: Path) -> bool:
    script = "import importlib.metadata, pip; importlib.metadata.version('pip')"
    try:
        return subprocess.run([python, "-I", "-c", script], capture_output=True).returncode == 0
    except OSError:
        return False


def parse_pins(text: str) -> dict[str, str]:
    """``{"torch": "2.14.1", ...}`` from the lines of a requirements file of ours."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    pins = dict(line.split("==") for line in lines if line)
    return {name.lower(): version for name, version in pins.items()}


def read_pins(groups: list[str]) -> dict[str, str]:
    pins: dict[str, str] = {}
    for group in groups:
        pins |= parse_pins((REQUIREMENTS / f"{group}.txt").read_text(encoding="utf-8"))
    return pins


def as_lines(pins: dict[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in pins.items()]


def additions(pins: dict[str, str], there: dict[str, Any]) -> tuple[list[str], list[str]]:
    """For an environment that is not ours: what to install, and what must keep its version."""
    installed = dict(there["installed"])
    if any(name.startswith("opencv-") for name in installed):  # -headless, -contrib: the same cv2
        installed.setdefault("opencv-python", "")
    if not there["found"]["pkg_resources"]:  # a setuptools too new for detectron2's model zoo
        installed.pop("setuptools", None)
    if "torch" in installed and "torchvision" not in installed:
        raise BootstrapError(
            f"torch {installed['torch']} is there without torchvision, and only the torchvision "
            "built for exactly that torch works: install it from where that torch came from"
        )
    missing = as_lines({name: pin for name, pin in pins.items() if name not in installed})
    kept = as_lines({name: installed[name] for name in pins if installed.get(name)})
    return missing, kept


# --- the stamp -------------------------------------------------------------------------------


def read_state(venv: Path) -> dict[str, Any]:
    try:
        state = json.loads((venv / STATE).read_text(encoding="utf-8"))
        return {"made_here": bool(state["made_here"]), "done": dict(state["done"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"made_here": False, "done": {}}


def write_state(venv: Path, state: dict[str, Any]) -> None:
    """All or nothing: a reader never sees half a file."""
    draft = venv / f"{STATE}.new"
    draft.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, venv / STATE)


def fingerprint(group: str) -> str:
    """Changes when what the group installs changes, or when the checkout has moved."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in (
        "setup.cfg",
        "setup.py",
        f"requirements/{group}.txt",
        "requirements/detectron2.txt",
    ):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


# --- installing ------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Says what is being done, that it still goes on, and how long it took."""
    say(f"==> {text}")
    start = time.monotonic()
    finished = threading.Event()

    def beat() -> None:
        while not finished.wait(HEARTBEAT_S):
            say(f"    ... {time.monotonic() - start:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
    say(f"    done in {time.monotonic() - start:.1f} s")


def digest_line(line: str) -> str | None:
    """The few of pip's many lines that tell how far it is, shortened; None for the rest."""
    line = line.strip()
    if re.match(r"(Downloading|Using cached) .*\((\d\d+(\.\d+)? MB|.* GB)\)", line):
        return line
    if line.startswith("Building wheels for"):
        return line
    if line.startswith("Installing collected packages:"):
        count = line.count(",") + 1
        return f"Installing {count} package{'s' * (count > 1)}"
    return None


def explain(output: str) -> str:
    """One sentence for a person from the output of a pip that failed, else its own last lines."""
    for pattern, sentence in PIP_TROUBLE.items():
        match = re.search(pattern, output)
        if match:
            return sentence.format(**match.groupdict())
    last_lines = "\n".join(output.splitlines()[-15:])
    return f"pip failed, and this is the end of what it said:\n{last_lines}"


def pip(python: Path | str, *arguments: str) -> None:
    """Runs ``pip install`` with a person's own pip settings, showing the lines that matter."""
    command = [str(python), "-m", "pip", "install", *arguments]
    # A "user = true" among the settings would contradict both --target and a virtual environment.
    settings = {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    lines = []
    with subprocess.Popen(
        command,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            digest = digest_line(line)
            if digest:
                say(f"    {digest}")
    if process.returncode:
        raise BootstrapError(explain("".join(lines)))


def require_free_space(place: Path) -> None:
    while not place.exists():
        place = place.parent
    free_gb = shutil.disk_usage(place).free / 1e9
    if free_gb < FREE_GB:
        raise BootstrapError(
            f"{place} has {free_gb:.1f} GB free, but torch and the rest need {FREE_GB} GB: free "
            "some space, or name with --venv an environment on another disk, or one of your own "
            "with a smaller torch already in it"
        )


def make_venv(venv: Path) -> None:
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise BootstrapError(
                f"this Python ({sys.executable}) has no {module} module: install it (Debian and "
                "Ubuntu: `sudo apt install python3-venv`), then run the same command again"
            )
    with step(f"making the virtual environment {venv}"):
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True
        )
    if made.returncode:
        raise BootstrapError(f"{venv} could not be made: {(made.stdout + made.stderr).strip()}")


def sweep(purelib: Path) -> None:
    """Removes what a killed pip leaves half done in an environment of ours.

    pip writes a distribution's INSTALLER when all its files are there: without it the distribution
    may count as installed, yet lack some. What begins with ``~`` is an old version on its way out.
    """
    halves = [info for info in purelib.glob("*.dist-info") if not (info / "INSTALLER").exists()]
    for path in [*halves, *purelib.glob("~*"), *purelib.glob(".detectron2-*")]:
        shutil.rmtree(path, ignore_errors=True)


def install_detectron2(python: Path | str, purelib: Path) -> None:
    """The wheel from PyPI, its hash compared, into ``purelib``; nothing there is overwritten.

    It is tagged for CPython 3.10, so pip must be told to pretend, which it does only for a
    ``--target``. That is a folder beside the final place: moving the package there is one rename,
    the last act, so that a detectron2 is either whole or absent. The wheel's second package, named
    just ``tools``, stays out: it would shadow everybody else's.
    """
    with tempfile.TemporaryDirectory(dir=purelib, prefix=".detectron2-") as staging:
        pretend = "--python-version 3.10 --implementation cp --abi none --platform any"
        checked = "--no-deps --only-binary=:all: --require-hashes"
        wheel = str(REQUIREMENTS / "detectron2.txt")
        pip(python, *f"{pretend} {checked}".split(), "--target", staging, "-r", wheel)
        for info in Path(staging).glob("*.dist-info"):
            shutil.rmtree(purelib / info.name, ignore_errors=True)
            os.replace(info, purelib / info.name)
        try:
            os.replace(Path(staging) / "detectron2", purelib / "detectron2")
        except OSError as error:
            raise BootstrapError(
                f"{purelib / 'detectron2'} is in the way and is no detectron2: move it elsewhere, "
                "then run the same command again"
            ) from error


def ensure_detectron2(python: Path | str) -> None:
    there = probe(python)
    if there["found"]["detectron2"]:
        say(f"    detectron2 is already there and left alone: {there['found']['detectron2']}")
        return
    with step("installing detectron2 from PyPI, hash-checked"):
        install_detectron2(python, Path(there["purelib"]))


def install_requirements(
    python: Path | str, there: dict[str, Any], groups: list[str], ours: bool
) -> None:
    """The pinned versions in an environment of ours; elsewhere only what is missing."""
    pins = read_pins(groups)
    wanted, kept = additions(pins, there) if not ours else (as_lines(pins), [])
    if not wanted:
        return
    if "torch" not in there["installed"]:
        require_free_space(Path(there["purelib"]))
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text("\n".join(kept), encoding="utf-8")
        rest = f" and {len(wanted) - 3} more" if len(wanted) > 3 else ""
        with step(f"installing {', '.join(wanted[:3])}{rest}"):
            pip(python, *wanted, "-c", str(constraints))


def open_venv(venv: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its state and what is there, after making it, or making it anew where ours is broken."""
    python = venv_python(venv)
    if venv.exists() and not venv.is_dir():
        raise BootstrapError(f"--venv {venv} is a file: name a folder")
    state = read_state(venv)
    if not venv.exists() or not any(venv.iterdir()):
        venv.mkdir(parents=True, exist_ok=True)
        state["made_here"] = True
        write_state(venv, state)
    if state["made_here"] and not runs_pip(python):
        for path in venv.iterdir():
            if path.name != STATE:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        make_venv(venv)
    if not (venv / "pyvenv.cfg").exists():
        raise BootstrapError(
            f"--venv {venv} is neither empty nor a virtual environment: name another folder"
        )
    there = probe(python)
    if not there["found"]["pip"]:
        raise BootstrapError(
            f"{venv} has no pip: run `{python} -m ensurepip`, then the same command again"
        )
    return state, there


def ensure_environment(venv: Path, groups: list[str]) -> Path:
    """Has everything that ``groups`` of requirements name, detectron2 and the plugin installed.

    Returns:
        the environment's Python.
    """
    state, there = open_venv(venv)
    python = venv_python(venv)
    prints = {group: fingerprint(group) for group in groups}
    if prints.items() <= state["done"].items() and all(there["found"].values()):
        say(f"==> {venv} has everything already")
        return python
    # A detectron2 that we did not bring was built for the torch beside it: then nothing is ours.
    own_detectron2 = there["found"]["detectron2"] and "sal-detectron2" not in there["installed"]
    ours = state["made_here"] and not own_detectron2
    if ours:
        sweep(Path(there["purelib"]))
        there = probe(python)
    install_requirements(python, there, groups, ours)
    ensure_detectron2(python)
    with step("installing retinanet_plugin from this checkout (editable)"):
        isolation = ["--no-build-isolation"] if ours else []
        pip(python, "--no-deps", *isolation, "-e", str(ROOT))
    with step("checking that it imports"):
        check = subprocess.run(
            [python, "-c", "import retinanet_plugin"], capture_output=True, text=True, cwd=ROOT
        )
    if check.returncode:
        say(check.stderr)
        raise BootstrapError(f"retinanet_plugin does not import in {venv}; the reason is above")
    state["done"] |= prints
    write_state(venv, state)
    return python


# --- the commands ----------------------------------------------------------------------------


def run_quickstart(venv: Path) -> int:
    python = ensure_environment(venv, ["runtime"])
    say(f"==> quick start: python {' '.join(QUICKSTART)}")
    return subprocess.run([python, *QUICKSTART], cwd=ROOT).returncode


def run_tests(venv: Path) -> int:
    python = ensure_environment(venv, ["runtime", "test"])
    for command in CHECKS:
        say(f"==> {' '.join(command)}")
        status = subprocess.run([python, "-m", *command], cwd=ROOT).returncode
        if status:
            return status
    return 0


def add_detectron2() -> int:
    """For the Python that runs this: detectron2, and of what it imports only what is missing."""
    there = probe(sys.executable)
    in_venv = sys.prefix != sys.base_prefix
    managed = (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").exists()
    if there["found"]["detectron2"]:
        ensure_detectron2(sys.executable)  # only says so
        return 0
    if managed and not in_venv:
        raise BootstrapError(
            f"{sys.executable} belongs to the operating system: make a virtual environment "
            "(`python3 -m venv DIR`) and run this with its Python"
        )
    for module in ("pip", "torch"):
        if not there["found"][module]:
            raise BootstrapError(
                f"{sys.executable} has no {module}: install it first, or let "
                "`bootstrap.py quickstart` set up an environment with everything"
            )
    install_requirements(sys.executable, there, ["runtime"], ours=False)
    ensure_detectron2(sys.executable)
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["quickstart", "test", "detectron2"])
    parser.add_argument(
        "--venv", type=Path, metavar="DIR", help="the virtual environment (default: .venv here)"
    )
    options = parser.parse_args(arguments)
    if options.venv and options.command == "detectron2":
        parser.error("detectron2 goes where this Python lives; --venv is for the other commands")
    venv = Path(os.path.abspath((options.venv or ROOT / ".venv").expanduser()))
    try:
        if options.command == "quickstart":
            return run_quickstart(venv)
        if options.command == "test":
            return run_tests(venv)
        return add_detectron2()
    except BootstrapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no permission, a disk that filled up in between, a file gone
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
