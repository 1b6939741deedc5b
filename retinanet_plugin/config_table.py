"""The table of the plugin's config keys in docs/config.md, from the comments of config.py.

python -m retinanet_plugin.config_table            # prints it
python -m retinanet_plugin.config_table --write    # brings docs/config.md up to date
"""

import argparse
import ast
import io
import tokenize
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError, one_sentence
from .utils import write_text

SOURCE = Path(__file__).resolve().parents[1] / "config.py"
PAGE = SOURCE.parents[1] / "docs" / "config.md"
BEGIN = "<!-- Written by python -m retinanet_plugin.config_table --write -->"
END = "<!-- End of what is written -->"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(
        prog="python -m retinanet_plugin.config_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("--write", action="store_true", help=f"into {PAGE.name}, between its marks")
    return words


def read_keys(source: str) -> list[tuple[str, str | None, str]]:
    """Each key, or group as ``GROUP.*``, its default, and its comment; in the order of the file.

    A comment belongs to the assignment ``new.KEY = DEFAULT`` below it. Of the groups, which have no
    default, only those with a comment are given.
    """
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
    }
    keys = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign):
            continue
        owner, _, key = ast.unparse(node.targets[0]).partition(".")
        if owner != "new" or not key:
            continue
        first = node.lineno
        while first - 1 in comments:
            first -= 1
        comment = " ".join(comments[line] for line in range(first, node.lineno))
        is_group = isinstance(node.value, ast.Call)
        if comment or not is_group:
            default = None if is_group else ast.get_source_segment(source, node.value)
            keys.append((f"{key}.*" if is_group else key, default, comment))
    return keys


def table(keys: Sequence[tuple[str, str | None, str]]) -> str:
    """In Markdown."""
    rows = [("key", "default", "meaning"), ("---", "---", "---")]
    for key, default, comment in keys:
        rows.append((f"`{key}`", f"`{default}`" if default else "", comment.replace("|", r"\|")))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_table(page: str) -> str:
    """``page`` with the table of today between its marks.

    Raises:
        UserError: where it has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{PAGE}: has not the two marks {BEGIN} and {END}; write them in again.")
    keys = table(read_keys(SOURCE.read_text(encoding="utf-8")))
    return f"{before}{BEGIN}\n\n{keys}\n\n{END}{after}"


def main(words: Sequence[str] | None = None) -> None:
    """Prints or writes."""
    args = parser().parse_args(words)
    if not args.write:
        print(table(read_keys(SOURCE.read_text(encoding="utf-8"))))
        return
    if not PAGE.is_file():
        raise UserError(f"--write: no file {PAGE}; run this in a checkout of the repository.")
    write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8")))
    print(PAGE)


if __name__ == "__main__":
    with one_sentence():
        main()
