"""A few inputs of each target of fuzz.py, the same ones each time."""

from pathlib import Path

import pytest

from retinanet_plugin import UserError
from tests.safety import fuzz


@pytest.mark.filterwarnings("ignore")  # PIL's and PyTorch's, of what is damaged
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_only_sentences_come_of_it(name: str, tmp_path: Path) -> None:
    assert fuzz.run(fuzz.TARGETS[name], tmp_path, examples=25) >= 25


def test_faults_are_found(tmp_path: Path) -> None:
    def use(folder: Path, content: bytes) -> None:
        if content:
            raise UserError("it begins in another way") if content[0] != 123 else KeyError("a")

    target = fuzz.Target(fuzz.TARGETS["annotations, bytes"].inputs.map(lambda x: x[0]), use)
    with pytest.raises(KeyError):
        fuzz.run(target, tmp_path)
