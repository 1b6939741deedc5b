"""``--import``: the user's own code, and errors that name its line."""

import re
import sys
from pathlib import Path

import pytest

from retinanet_plugin import CLS_LOSS_REGISTRY, UserError
from retinanet_plugin.engine import import_code

LOSS = """
from user_helper import SCALE  # a file beside it
from retinanet_plugin import CLS_LOSS_REGISTRY

@CLS_LOSS_REGISTRY.register()
def user_loss(cfg):
    return SCALE
"""


@pytest.fixture(autouse=True)
def _separate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file_and_what_is_beside_it(tmp_path: Path) -> None:
    """Imported twice, it registers once; it is found as a module of the working directory too."""
    Path("own").mkdir()
    Path("own/user_file.py").write_text(LOSS)
    Path("own/user_helper.py").write_text("SCALE = 100")
    try:
        first, second = import_code(["own/user_file.py", str(tmp_path / "own/user_file.py")])
        assert first is second and CLS_LOSS_REGISTRY.get("user_loss")(None) == 100
        assert import_code(["own.user_helper"])[0].SCALE == 100
    finally:
        CLS_LOSS_REGISTRY._obj_map.pop("user_loss")


@pytest.mark.parametrize(
    "name, code, named",
    [
        ("absent.py", None, "absent.py"),
        ("no_such.module", None, "No module named 'no_such'"),
        ("a_syntax.py", "x = (\n", "a_syntax.py, line 1: SyntaxError"),
        ("a_value.py", "\n\nint('x')\n", "a_value.py, line 3: ValueError"),
        ("a_module.py", "import no_such.thing\n", "a_module.py, line 1: ModuleNotFoundError"),
        ("an_exit.py", "import sys\nsys.exit(3)\n", "an_exit.py, line 2: SystemExit: 3"),
        ("in_a_library.py", "import json\njson.loads('{')\n", "in_a_library.py, line 2: JSON"),
        (
            "a_name.py",
            "import retinanet_plugin as r\n@r.CLS_LOSS_REGISTRY.register()\ndef focal(): ...\n",
            "a_name.py, line 2: .*'focal' was already registered",
        ),
        ("json.py", "", "json.py has the name of another module"),
    ],
)
def test_mistakes(name: str, code: str | None, named: str) -> None:
    if code is not None:
        Path(name).write_text(code)
    with pytest.raises(UserError) as error:
        import_code([name])
    assert re.search(f"--import.*{named}", str(error.value), re.DOTALL)
