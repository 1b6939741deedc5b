"""A finished run as one page to look at."""

from pathlib import Path

from ...errors import UserError
from ...utils import write_text
from .datasets import load_datasets
from .page import report_page
from .run import read_config, read_run
from .set_report import read_set_report


def write_report(folder: Path, output: Path | None = None, *, num_images: int = 24) -> Path:
    """Writes the page of a run, replacing an older one.

    Args:
        folder: OUTPUT_DIR of the run.
        output: default: ``report.html`` in ``folder``.
        num_images: test images shown of each test set.

    Returns:
        the path of the page.

    Raises:
        UserError: if the folder holds no run, or the page cannot be written.
    """
    output = output or folder / "report.html"
    cfg = read_config(folder)
    train, test = load_datasets(cfg)
    run = read_run(folder, cfg)
    test_sets = [read_set_report(cfg, dataset, run, num_images=num_images) for dataset in test]
    page = report_page(run, train, test, test_sets)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, page)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}).") from None
    return output
