"""What the trainer adds at the end of a run."""

import logging
from pathlib import Path

import pytest

from retinanet_plugin.engine.trainer import _report
from retinanet_plugin.tools import report


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("bbox/AP")])
def test_a_report_that_fails_does_not_fail_the_run(
    tmp_path: Path, monkeypatch, caplog, error: Exception
) -> None:
    def write_report(folder: Path) -> Path:
        raise error

    caplog.set_level(logging.INFO, "retinanet_plugin")
    monkeypatch.setattr(report, "write_report", write_report)
    _report(tmp_path)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "no report was written" in record.getMessage()
    monkeypatch.setattr(report, "write_report", lambda folder: folder / "report.html")
    _report(tmp_path)
    assert caplog.records[-1].getMessage() == f"Report: {tmp_path}/report.html"
