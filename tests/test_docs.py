"""The pages name only commands, options, config keys, defaults and files that exist.

``python tests/test_docs.py`` rewrites the table of the plugin's keys in docs/config.md.
"""

import importlib
import re
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from retinanet_plugin import get_config
from retinanet_plugin.cli import COMMANDS
from retinanet_plugin.config_keys import docs_table
from retinanet_plugin.utils import flatten

ROOT = Path(__file__).resolve().parents[1]
CONFIG_PAGE = ROOT / "docs" / "config.md"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *ROOT.glob("projects/*/*.md")]
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
KEYS = dict(flatten(get_config()))
GROUPS = {name[:i] for name in KEYS for i, c in enumerate(name) if c == "."}


def with_table(page: str) -> str:
    begin, end = "<!-- keys -->", "<!-- end of keys -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{docs_table()}\n\n{end}{rest.partition(end)[2]}"


def test_table_of_keys_is_up_to_date() -> None:
    page = CONFIG_PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run: python tests/test_docs.py"


def test_defaults_of_detectron2s_keys() -> None:
    section = CONFIG_PAGE.read_text(encoding="utf-8").partition("## detectron2's")[2]
    rows = re.findall(r"^\| `([^`]*)` \| `([^`]*)` \|", section, flags=re.MULTILINE)
    assert len(rows) > 25
    assert {key: literal_eval(default) for key, default in rows} == {
        key: KEYS[key] for key, _ in rows
    }


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    for command, options in commands(page.read_text(encoding="utf-8")):
        assert command in COMMANDS, f"{page.name}: retinanet {command}"
        module = f"retinanet_plugin.tools.{command.replace('-', '_')}.command"
        parser = importlib.import_module(module).parser()
        known = re.findall(r"(?<!\w)--[a-z][\w-]*", parser.format_help())
        assert set(options) <= set(known), f"{page.name}: {command} {' '.join(options)}"


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yields each command of ours in code, with its options."""
    text = re.sub(r" *\\\n *", " ", text)  # continued lines
    for code in [
        *re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL),
        *re.findall(r"`([^`\n]+)`", text),
    ]:
        for line in code.splitlines():
            line = line.partition(" #")[0].strip()
            if match := re.match(r"(?:python3? )?(train_net\.py|retinanet) (.*)", line):
                args = match[2].split()
                command = "train" if match[1] == "train_net.py" else args[0]
                if re.fullmatch(r"[a-z-]+", command) and not command.startswith("-"):
                    yield command, re.findall(r"(?<!\S)--[a-z][\w-]*", line)


@each_page
def test_config_keys_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z][A-Z0-9_]*)+(?:\.\*)?", text)
    for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL):
        named += [key for key, _ in flatten(yaml.safe_load(block)) if key != "_BASE_"]
    assert {key for key in named if key.removesuffix(".*") not in KEYS.keys() | GROUPS} == set()


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        if heading:
            assert heading in headings(file.read_text(encoding="utf-8")), f"{page.name}: {target}"


def headings(text: str) -> set[str]:
    """Returns the anchors that GitHub gives to headings."""
    found = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


if __name__ == "__main__":
    CONFIG_PAGE.write_text(with_table(CONFIG_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
