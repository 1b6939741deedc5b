"""The last evaluation in a run's metrics.json, and short names of runs."""

import json
from pathlib import Path

from retinanet_plugin.evaluation.run_log import last_metrics, short_names


def evaluation(ap: float, prefix: str = "bbox") -> dict[str, float]:
    return {f"{prefix}/AP": ap, f"{prefix}/AP50": ap + 20, f"{prefix}/AP75": ap + 5, "iteration": 9}


def test_the_last_evaluation_counts(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    assert last_metrics(file, ["a"], 10) is None
    lines = [evaluation(10.0), evaluation(30.0), {"iteration": 10, "total_loss": 0.5}]
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"bbox/AP": 50.0, "bb')
    assert last_metrics(file, ["a"], 10) == {"AP": 30.0, "AP50": 50.0, "AP75": 35.0}
    # By --eval-only of the same weights, and of others.
    lines += [evaluation(40.0) | {"iteration": 10}, evaluation(50.0) | {"iteration": 3}]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert last_metrics(file, ["a"], 10)["AP"] == 40.0
    assert last_metrics(file, ["a"])["AP"] == 50.0
    file.write_text(json.dumps(evaluation(1.0, "b/bbox") | evaluation(2.0, "a/bbox")))
    assert last_metrics(file, ["a", "b"], 10) == {"AP": 2.0, "AP50": 22.0, "AP75": 7.0}
    assert last_metrics(file, ["a"], 10) is None
    file.write_text(json.dumps(evaluation(float("nan"))))
    assert last_metrics(file, ["a"], 10) == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}


def test_short_names(tmp_path: Path) -> None:
    given = ["b_gamma/gamma_2.0/seed_1", "./b_gamma/gamma_0.0/seed_1", "b_gamma/gamma_2.0/seed_1/"]
    names = ["gamma_2.0/seed_1", "gamma_0.0/seed_1", "gamma_2.0/seed_1"]
    assert short_names([tmp_path / x for x in given]) == names
    assert short_names([tmp_path / x for x in ("a/x", "b/a/x", "y")]) == [
        str(Path(tmp_path.name, "a", "x")),
        str(Path("b", "a", "x")),
        str(Path(*tmp_path.parts[-2:], "y")),
    ]
    assert short_names([Path(tmp_path.root)]) == [tmp_path.root]
