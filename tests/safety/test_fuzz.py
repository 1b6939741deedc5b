"""A few inputs of each target of fuzz.py, the same ones each time."""

from pathlib import Path

import pytest

from retinanet_plugin import UserError
from tests.safety import fuzz


@pytest.mark.filterwarnings("ignore")  # PIL's and PyTorch's, about damaged files
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_only_user_errors(name: str, tmp_path: Path) -> None:
    assert fuzz.run(fuzz.TARGETS[name], tmp_path, examples=20) >= 20


def test_other_errors_are_found(tmp_path: Path) -> None:
    def use(folder: Path, content: bytes) -> None:
        if content:
            raise UserError("it begins differently") if content[0] != 123 else KeyError("a")

    with pytest.raises(KeyError):
        fuzz.run(fuzz.Target(fuzz.TARGETS["annotations, bytes"].inputs, use), tmp_path)
