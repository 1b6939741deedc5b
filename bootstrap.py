#!/usr/bin/env python3
"""Installs everything with one command. Needs Python 3.11 and access to PyPI.

    python3 bootstrap.py quickstart    install, draw a dataset, train, evaluate, write a report
    python3 bootstrap.py test          install, then lint, types and tests
    python3 bootstrap.py detectron2    install only detectron2, into the environment of this Python

The first two install the versions in requirements/ into .venv beside this file; a second run starts
right away. In an environment that bootstrap.py has not made, what is installed keeps its version,
above all detectron2 and the torch that it was built for.

Standard library only. Tested on Linux x86-64.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if sys.version_info < (3, 11):  # noqa: UP036 - older versions can parse this file up to here
    needed = "error: bootstrap.py needs Python 3.11 or newer, but {} is Python {}.{}"
    print(needed.format(sys.executable, *sys.version_info), file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "requirements"
VENV = ROOT / ".venv"
STAMP = "retinanet_plugin.stamp"  # in environments made here: what is completely installed
CHECKS = (
    "ruff check .",
    "ruff format --check .",
    "mypy",
    "lint-imports",
    "pytest -n auto --dist loadfile",
)
QUICKSTART = "train_net.py --config-file configs/quickstart.yaml --resume"

# Runs in the environment's Python.
PROBE = """
import importlib.metadata, importlib.util, json, re, sys, sysconfig
sys.path[:] = [path for path in sys.path if path]  # without the current folder
spec = importlib.util.find_spec("detectron2")
print(json.dumps({
    "purelib": sysconfig.get_path("purelib"),
    "detectron2": spec and spec.origin,
    "installed": {re.sub("[-_.]+", "-", d.metadata["Name"]).lower(): d.version
                  for d in importlib.metadata.distributions() if d.metadata["Name"]},
}))
"""


class BootstrapError(Exception):
    """A mistake or trouble that its message explains in one sentence."""


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def probe(python: Path | str) -> dict[str, Any]:
    """Returns where a Python installs packages, and its installed distributions."""
    result = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
    if result.returncode:
        raise BootstrapError(f"{python} does not run; remove that environment, or name another")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def pip(python: Path | str, *args: str) -> None:
    """Runs ``pip install``."""
    # PIP_USER contradicts both --target and virtual environments.
    settings = {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [str(python), "-m", "pip", "install", *args]
    if subprocess.run(command, env={**os.environ, **settings}).returncode:
        raise BootstrapError("pip failed, see its messages above; then run the same command again")


def read_pins(groups: list[str]) -> dict[str, str]:
    """Returns the versions in requirements/ by distribution."""
    lines = [
        line.partition("#")[0].strip()
        for group in groups
        for line in (REQUIREMENTS / f"{group}.txt").read_text(encoding="utf-8").splitlines()
    ]
    return {name.lower(): version for name, _, version in (x.partition("==") for x in lines if x)}


def missing_pins(pins: dict[str, str], installed: dict[str, str]) -> dict[str, str]:
    """Returns the pins that an environment lacks."""
    present = set(installed)
    if any(name.startswith("opencv-") for name in installed):  # -headless, -contrib: the same cv2
        present.add("opencv-python")
    if int(installed.get("setuptools", "0").partition(".")[0]) > 80:  # without pkg_resources
        present.discard("setuptools")
    return {name: version for name, version in pins.items() if name not in present}


def install_missing(python: Path | str, groups: list[str], installed: dict[str, str]) -> None:
    """Installs the pins that are missing; everything else keeps its version."""
    pins = read_pins(groups)
    missing = missing_pins(pins, installed)
    if "torchvision" in missing and "torch" in installed:
        raise BootstrapError(
            f"torch {installed['torch']} is installed without torchvision; install the torchvision "
            "that was built for it"
        )
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / "constraints.txt"
            names = (pins.keys() & installed.keys()) - missing.keys()
            kept.write_text("\n".join(f"{name}=={installed[name]}" for name in names))
            pip(python, *(f"{x}=={y}" for x, y in missing.items()), "-c", str(kept))


def install_detectron2(python: Path | str) -> None:
    """Installs the wheel from PyPI, checked by its hash, unless there is a detectron2.

    The wheel is tagged for CPython 3.10, which pip only accepts with ``--target``. From that folder
    the package is moved into place, but not its second package, ``tools``, which would hide others
    of that name.
    """
    there = probe(python)
    if there["detectron2"]:
        print(f"detectron2 is already installed: {there['detectron2']}", flush=True)
        return
    purelib = Path(there["purelib"])
    with tempfile.TemporaryDirectory(dir=purelib, prefix=".detectron2-") as staging:
        tag = "--python-version 3.10 --implementation cp --abi none --platform any"
        check = "--no-deps --only-binary=:all: --require-hashes"
        wheel = str(REQUIREMENTS / "detectron2.txt")
        pip(python, *f"{tag} {check}".split(), "--target", staging, "-r", wheel)
        for path in [*Path(staging).glob("*.dist-info"), Path(staging) / "detectron2"]:
            os.replace(path, purelib / path.name)


def make_venv(venv: Path) -> None:
    """Makes a virtual environment, and marks it as made here."""
    if subprocess.run([sys.executable, "-m", "venv", str(venv)]).returncode:
        raise BootstrapError(
            f"cannot make {venv}, see above; remove it and try again (on Debian and Ubuntu after: "
            "sudo apt install python3-venv)"
        )
    (venv / STAMP).touch()


def fingerprint() -> str:
    """Returns a hash that changes when different versions, or another checkout, are wanted."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in [ROOT / "setup.cfg", ROOT / "setup.py", *sorted(REQUIREMENTS.glob("*.txt"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def ensure_environment(venv: Path, groups: list[str]) -> Path:
    """Installs requirements, detectron2 and this package, unless they are; returns the Python."""
    python = venv_python(venv)
    if not python.exists():
        make_venv(venv)
    stamp, version = venv / STAMP, fingerprint()
    done = stamp.read_text().splitlines() if stamp.exists() else []
    wanted = {f"{group} {version}" for group in groups}
    if wanted <= set(done):
        return python
    installed = probe(python)["installed"]
    is_ours = stamp.exists() and "detectron2" not in installed  # PyPI's wheel has another name
    if is_ours:
        pip(python, *(f"{name}=={version}" for name, version in read_pins(groups).items()))
    else:
        install_missing(python, groups, installed)
    install_detectron2(python)
    pip(python, "--no-deps", *(["--no-build-isolation"] if is_ours else []), "-e", str(ROOT))
    if stamp.exists():
        kept = {line for line in done if line.endswith(version)}
        stamp.write_text("\n".join(sorted(wanted | kept)))
    return python


def run(command: list[str]) -> int:
    print(f"==> {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=ROOT).returncode


def run_quickstart() -> int:
    python = ensure_environment(VENV, ["runtime"])
    return run([str(python), *QUICKSTART.split()])


def run_tests() -> int:
    """Runs the checks until one fails; returns its status."""
    scripts = ensure_environment(VENV, ["runtime", "test"]).parent
    for check in CHECKS:
        name, *args = check.split()
        status = run([str(scripts / name), *args])
        if status:
            return status
    return 0


def add_detectron2() -> int:
    """Installs detectron2, and those of its dependencies that are missing, for this Python."""
    installed = probe(sys.executable)["installed"]
    if "torch" not in installed:
        raise BootstrapError(f"{sys.executable} has no torch; install it first")
    install_missing(sys.executable, ["runtime"], installed)
    install_detectron2(sys.executable)
    return 0


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = {"quickstart": run_quickstart, "test": run_tests, "detectron2": add_detectron2}
    parser.add_argument("command", choices=commands)
    parsed = parser.parse_args(args)
    try:
        return commands[parsed.command]()
    except (BootstrapError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
