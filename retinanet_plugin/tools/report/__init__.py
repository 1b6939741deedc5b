"""A finished run as one page to look at."""

from pathlib import Path

from ...errors import UserError
from ...html_page import page
from ...utils import write_text
from .body import report_body
from .numbers import gather

_HERE = Path(__file__).parent


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the page of a run, anew where it is there already.

    Args:
        folder: OUTPUT_DIR of the run.
        out: default: ``report.html`` in ``folder``.

    Returns:
        where it was written.

    Raises:
        UserError: where the folder holds no run, or the page cannot be written.
    """
    out = out or folder / "report.html"
    found = gather(folder)
    name = "/".join(Path(found.run.folder).parts[-2:])  # the last alone is often "output"
    html = page(
        f"Report of {name}",
        report_body(found),
        script=(_HERE / "report.js").read_text(encoding="utf-8"),
        style=(_HERE / "report.css").read_text(encoding="utf-8"),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, html)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); give --out FILE.") from None
    return out
