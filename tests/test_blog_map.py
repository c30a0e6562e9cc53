"""docs/blog_map.md: each figure of the blog has its claim, commands that exist, and its picture.

The quick tests read every command with the flags' own definitions. The slow one runs the small
commands on a base model of seconds, in the page's order, and looks for the pictures that it names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polaris_jax.__main__ import main
from polaris_jax.ablate.table import load_table
from polaris_jax.commands.config_file import load_config
from polaris_jax.commands.flags import parse
from tests.support import micro_run

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "blog_map.md"
FIGURES = 18  # of the blog, the headline's included
TABLES = 2
PLAIN = ("The small run", "What the blog says without a picture")  # sections of another kind
WHY_NOT = "No picture"


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the page: its heading, its text, and the command lines of its code blocks."""

    heading: str
    text: str

    @property
    def full(self) -> list[str]:
        """The lines at full size: all before those of the small counterpart."""
        return lines_of(self.text.partition("\nSmall, leaves ")[0])

    @property
    def small(self) -> list[str]:
        """The lines of the small counterpart."""
        return lines_of(self.text.partition("\nSmall, leaves ")[2])

    @property
    def leaves(self) -> str:
        """The picture that the small counterpart leaves."""
        found = re.search(r"^Small, leaves `([^`]+\.png)`", self.text, re.MULTILINE)
        assert found is not None, self.heading
        return found[1]

    @property
    def pictures(self) -> list[str]:
        """The pictures that the page shows."""
        return re.findall(r"^!\[[^\]]+\]\(([^)]+)\)$", self.text, re.MULTILINE)


def lines_of(text: str) -> list[str]:
    """The command lines of the code blocks, one string each."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    joined = "".join(blocks).replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines()]


def all_sections() -> list[Section]:
    _, *parts = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    return [Section(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]


SECTIONS = [section for section in all_sections() if section.heading not in PLAIN]
PRELUDE = next(section for section in all_sections() if section.heading == PLAIN[0])
SMALL = list(dict.fromkeys([*lines_of(PRELUDE.text), *(x for s in SECTIONS for x in s.small)]))
LINES = list(dict.fromkeys([*SMALL, *(line for section in SECTIONS for line in section.full)]))


def test_every_figure_and_table_has_its_section():
    headings = [section.heading for section in SECTIONS]
    both = sum(heading.startswith("Figures 3 and 4") for heading in headings)
    tables = [heading for heading in headings if heading.lower().startswith("the table")]
    assert (len(headings) + both - len(tables), len(tables)) == (FIGURES, TABLES)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.heading)
def test_a_section_has_claim_commands_and_picture_or_the_reason(section):
    assert re.search(r"^Claim: \S", section.text, re.MULTILINE)
    assert section.full and section.small
    assert section.leaves
    if section.pictures:
        assert re.search(r"^Shows: \S", section.text, re.MULTILINE)
    else:
        assert re.search(rf"^{WHY_NOT}\b[^:]*: \S", section.text, re.MULTILINE)
    for picture in section.pictures:
        assert (PAGE.parent / picture).read_bytes().startswith(b"\x89PNG")


def test_every_kept_picture_is_shown():
    shown = {picture for section in SECTIONS for picture in section.pictures}
    kept = {f"results/blog/{path.name}" for path in (PAGE.parent / "results/blog").iterdir()}
    assert kept == shown


class Parsed(Exception):
    """A command line has been read."""


@pytest.mark.parametrize("line", LINES)
def test_the_command_takes_its_flags(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, name, *words = shlex.split(line)
    assert program == "polaris"
    where = "compare" if "--compare" in words else name
    parsed = []

    def and_no_more(*given: Any, **options: Any) -> None:
        parsed.append(parse(*given, **options))
        raise Parsed  # as far as a command gets here

    monkeypatch.setattr(f"polaris_jax.commands.{where}.parse", and_no_more)
    with pytest.raises(Parsed):
        importlib.import_module(f"polaris_jax.commands.{name}").main(words)
    assert [command.name for command in parsed] == [name]
    if name == "ablate":
        assert load_table(words[0]).arms


def micro_fields(base: Path, problems: Path, *, config: str) -> list[str]:
    """Flags that make a line of the page a matter of seconds; the last value of a field counts."""
    _, *words = micro_run.flags(base, problems)
    more = {
        "mesh.fsdp": -1,  # conftest makes eight devices, over which rows are split
        "batch.rows": 8,
        "stages[0].steps": 2,
        "stages[1].steps": 1,
        "stages[1].rope_factor": 1.0,
        "stages[1].temperature_rule": "fixed",
        "calibrate.n": 2,
        "probe.problems": 4,
        "probe.n": 4,
        "probe.cez_tolerance": 1.0,
        "evaluate.problems": problems,
        "evaluate.every_steps": 1,
        "evaluate.n": 2,
    }
    words += [f"--config.{name}={value}" for name, value in more.items()]
    stages = len(load_config(str(ROOT / config)).stages)
    return [word for word in words if stages > 1 or not word.startswith("--config.stages[1].")]


MICRO_TABLE = """
import dataclasses

from polaris_jax.ablate.table import load_table

TABLE = load_table({path!r})
FIELDS, OF_BASE = {fields!r}, {of_base!r}
ARMS = [
    dataclasses.replace(
        arm, overrides={{**arm.overrides, **FIELDS}}, tokens_of="", tuned_as="", against=""
    )
    for arm in TABLE.arms[:2]
]
TABLE = dataclasses.replace(
    TABLE, arms=ARMS, bases={{"base": {{}}}}, overrides=OF_BASE, tuning=None, notes=None
)
"""


def micro_table(folder: Path, path: str) -> Path:
    """A table of the first two arms of another, from one base, at micro size."""
    table = load_table(path)

    def fields(config: str) -> dict[str, str]:
        words = micro_fields(*base, config=config)
        return dict(word.removeprefix("--config.").split("=", 1) for word in words)

    base = micro_run.make_base(folder)
    made = folder / f"micro_{Path(path).name}"
    text = MICRO_TABLE.format(
        path=str(ROOT / path),
        fields=fields(table.arms[0].config or table.config),
        of_base=fields(table.config),
    )
    made.write_text(text)
    return made


def run_table(line: str, folder: Path) -> None:
    """Runs a line of `polaris ablate` with a small table in place of its own."""
    _, name, path, *words = shlex.split(line)
    (folder / "configs").symlink_to(ROOT / "configs")
    table = micro_table(folder, path)
    done = subprocess.run(
        [sys.executable, "-m", "polaris_jax", name, str(table), *words, "--workers=1"],
        cwd=folder,
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A folder in which the small lines that train nothing by a table have run, in order."""
    folder = tmp_path_factory.mktemp("blog")
    (folder / "configs").symlink_to(ROOT / "configs")
    base, problems = micro_run.make_base(folder)
    with contextlib.chdir(folder):
        for line in SMALL:
            _, *words = shlex.split(line)
            if words[0] == "ablate":
                continue
            named = [w.removeprefix("--config=") for w in words if w.startswith("--config=")]
            more = [flag for name in named for flag in micro_fields(base, problems, config=name)]
            assert main([*words, *more]) == 0, line
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_small_lines_leave_their_pictures(walked):
    named = [section.leaves for section in SECTIONS if not by_table(section)]
    assert len(named) > 10
    assert [path for path in named if not (walked / path).exists()] == []


def by_table(section: Section) -> bool:
    """True if the picture is that of `polaris ablate`."""
    return section.leaves.endswith("/ablations.png")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("line", [x for x in SMALL if x.startswith("polaris ablate")])
def test_the_small_tables_leave_their_pictures(line, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    run_table(line, tmp_path)
    out = next(word for word in shlex.split(line) if word.startswith("--out=")).partition("=")[2]
    for name in ("ablations.png", "ablations.md"):
        assert (tmp_path / out / name).exists()
