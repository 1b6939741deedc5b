"""A finished run as one page to look at."""

from collections.abc import Sequence
from pathlib import Path

from ...utils import write_text
from .datasets import load_datasets
from .page import report_page
from .run import read_config, read_run
from .set_report import read_set_report


def write_report(folder: Path, output: Path | None = None, overrides: Sequence[str] = ()) -> Path:
    """Writes the page of a run, replacing an older one, and returns its path.

    Args:
        folder: OUTPUT_DIR of the run.
        output: default: ``report.html`` in ``folder``.
        overrides: of the run's config, key and value in turn, such as where its data is now.

    Raises:
        UserError: if the folder holds no run.
    """
    output = output or folder / "report.html"
    cfg = read_config(folder, overrides)
    train, test = load_datasets(cfg)
    run = read_run(folder, cfg)
    test_sets = [read_set_report(cfg, dataset, run) for dataset in test]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, report_page(run, train, test, test_sets))
    return output
