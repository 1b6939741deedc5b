"""Keys that do not go together are named before a run starts."""

import pytest

from retinanet_plugin import UserError, get_config
from retinanet_plugin.engine.setup import check_evaluation

PATIENCE, PERIOD = "SOLVER.EARLY_STOPPING.PATIENCE", "TEST.EVAL_PERIOD"


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([PATIENCE, "-1"], "PATIENCE: -1 given"),
        ([PATIENCE, "3"], r"PATIENCE: 3 given, but TEST.EVAL_PERIOD is 0"),
        (
            ["TEST.BEST_METRIC", "validation/total_loss", "TEST.LOSS", "False"],
            r'BEST_METRIC: "validation/total_loss" is not measured while TEST.LOSS is False',
        ),
    ],
)
def test_evaluations_that_will_not_be(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_evaluation(get_config("Base-RetinaNet.yaml", words))


def test_those_that_will() -> None:
    words = [PATIENCE, "3", PERIOD, "100", "TEST.BEST_METRIC", "validation/total_loss"]
    check_evaluation(get_config("Base-RetinaNet.yaml", words))
