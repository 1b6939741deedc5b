"""The wheel: every configuration and module in it, and requirements that say what is imported."""

import ast
import configparser
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import retinanet_plugin
from retinanet_plugin import config_file, get_config
from retinanet_plugin.config import find_config

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTIONS = {"cv2": "opencv-python", "PIL": "pillow", "yaml": "pyyaml"}
requirement = pytest.importorskip("packaging.requirements").Requirement


def declared(section, key):
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser[section][key].split("\n")
    return {r.name.lower(): r.specifier for r in map(requirement, filter(None, lines))}


def pins():
    lines = (ROOT / "requirements" / "runtime.txt").read_text(encoding="utf-8").splitlines()
    parsed = [requirement(line) for line in lines if not line.startswith("#")]
    return {r.name.lower(): str(r.specifier).removeprefix("==") for r in parsed}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="70.1")
    tree = tmp_path_factory.mktemp("tree")  # a build in place would leave build/ behind
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("retinanet_plugin", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (path,) = tree.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_config_and_module_and_nothing_else(wheel):
    expected = {f"retinanet_plugin/{p.relative_to(ROOT)}" for p in ROOT.glob("configs/**/*.yaml")}
    expected |= {str(p.relative_to(ROOT)) for p in ROOT.glob("retinanet_plugin/**/*.py")}
    data = (p for kind in ("css", "html", "js") for p in ROOT.glob(f"retinanet_plugin/**/*.{kind}"))
    expected |= {str(p.relative_to(ROOT)) for p in data} | {"retinanet_plugin/py.typed"}
    names = wheel.namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("LICENSE") for name in names)


def test_the_wheels_metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = message_from_string(wheel.read(name).decode("utf-8"))
    assert metadata["Version"] == retinanet_plugin.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert not any("detectron2" in r.split(";")[0] for r in metadata.get_all("Requires-Dist"))


def test_configs_are_found_by_name_in_the_installed_wheel(wheel, tmp_path, monkeypatch):
    wheel.extractall(tmp_path)
    monkeypatch.setattr(config_file, "__file__", str(tmp_path / "retinanet_plugin/config_file.py"))
    assert find_config("quickstart.yaml").is_relative_to(tmp_path)
    assert get_config("quickstart.yaml").MODEL.META_ARCHITECTURE == "FocalRetinaNet"


def test_what_the_package_imports_is_declared():
    imported = set()
    for path in ROOT.glob("retinanet_plugin/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.split(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"retinanet_plugin", "detectron2"}
    names = {DISTRIBUTIONS.get(name, name) for name in third_party}
    known = declared("options", "install_requires")
    assert names <= (known | declared("options.extras_require", "export")).keys()


def test_the_pinned_versions_are_the_declared_requirements_within_their_bounds():
    bounds = declared("options", "install_requires")
    bounds |= declared("options.extras_require", "detectron2-deps")
    assert pins().keys() == bounds.keys()
    assert all(specifier.contains(pins()[name]) for name, specifier in bounds.items())
