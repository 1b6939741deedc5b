"""What the pages say exists: commands and their options, config keys and defaults, links."""

import importlib
import re
from ast import literal_eval
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import get_cfg

from retinanet_plugin import add_retinanet_config, config_table, get_config
from retinanet_plugin.engine.launch import parser as parser_of_training

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield f"{prefix}{key}.*", None
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


KEYS = dict(leaves(get_config()))


# ---------------------------------------------------------------- docs/config.md


def test_the_table_of_keys_is_up_to_date() -> None:
    page = config_table.PAGE.read_text(encoding="utf-8")
    assert page == config_table.with_table(page), (
        "run: python -m retinanet_plugin.config_table --write"
    )


def test_every_key_of_the_plugin_is_in_the_table_with_its_default_and_a_meaning() -> None:
    detectron2s, both = get_cfg(), get_cfg()
    add_retinanet_config(both)
    known = dict(leaves(detectron2s))
    ours = {k: v for k, v in leaves(both) if k not in known and not k.endswith(".*")}
    told = {
        key: (literal_eval(default), meaning)
        for key, default, meaning in rows("The plugin's own")
        if not key.endswith(".*")
    }
    assert {key: default for key, (default, _) in told.items()} == ours
    assert [key for key, (_, meaning) in told.items() if not meaning] == []


def test_detectron2s_keys_have_the_defaults_that_are_told() -> None:
    told = {key: literal_eval(default) for key, default, _ in rows("detectron2's that matter")}
    assert len(told) > 25
    assert told == {key: KEYS[key] for key in told}


def rows(heading: str) -> list[list[str]]:
    section = config_table.PAGE.read_text(encoding="utf-8").partition(f"## {heading}")[2]
    lines = section.partition("\n## ")[0].splitlines()
    cells = [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for line in lines if line.startswith("| `")]
    return [[key.strip("`"), default.strip("`"), meaning] for key, default, meaning in cells]


def test_a_comment_belongs_to_the_key_below_it() -> None:
    source = (
        "new.A = CfgNode()\n# One,\n# two.\nnew.A.B = (1,  2)  # not this\n\n"
        "new.A.C = 3\n# Both.\nnew.D = CfgNode()\nnew.D.E = '# no'\nother.F = 1\n"
    )
    assert config_table.read_keys(source) == [
        ("A.B", "(1,  2)", "One, two."),
        ("A.C", "3", ""),
        ("D.*", None, "Both."),
        ("D.E", "'# no'", ""),
    ]


# ---------------------------------------------------------------- commands


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    for tool, options in commands(page.read_text(encoding="utf-8")):
        parser = parser_of_training()
        if tool not in ("train_net.py", "train"):
            parser = importlib.import_module(f"retinanet_plugin.tools.{tool}").parser()
        known = re.findall(r"(?<!\w)--[a-z][\w-]*", parser.format_help())
        assert set(options) <= set(known), f"{page.name}: {tool} {' '.join(options)}"


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The name of each tool, or train_net.py, and the options beside it."""
    text = re.sub(r" *\\\n *", " ", text)  # a line that goes on
    text = re.sub(r"(`[^`\n]*)\n([^`\n]*`)", r"\1 \2", text)  # words in backquotes on two lines
    call = r"python3? (?:-m retinanet_plugin\.tools\.(?!NAME)(\w+)|(train_net\.py))([^`\n]*)"
    for tool, script, words in re.findall(call, text):
        given = takewhile(lambda word: word not in ("--", "#"), words.split())
        options = [re.match(r"--[\w-]+", word) for word in given]
        yield (
            ("benchmark.__main__" if tool == "benchmark" else tool or script),
            [option[0] for option in options if option],
        )


def test_commands_are_found_as_people_write_them() -> None:
    text = (
        "`python -m projects.focal_loss_paper.commands.ablate\n--list` and\n```bash\n"
        "python train_net.py --config-file x.yaml \\\n    --num-gpus=8 A.B 1  # --not\n"
        "python -m projects.focal_loss_paper.commands.ablate b --jobs 2 -- KEY --no\n```\n"
    )
    assert list(commands(text)) == [
        ("ablate", ["--list"]),
        ("train_net.py", ["--config-file", "--num-gpus"]),
        ("ablate", ["--jobs"]),
    ]


# ---------------------------------------------------------------- keys and links


@each_page
def test_config_keys_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z][A-Z0-9_]*)+(?:\.\*)?", text)
    for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL):
        named += [key for key, _ in leaves(yaml.safe_load(block)) if key != "_BASE_"]
    assert [key for key in named if key not in KEYS and f"{key}.*" not in KEYS] == []


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
    """As GitHub names them: small letters, no punctuation, hyphens for spaces."""
    found = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name
