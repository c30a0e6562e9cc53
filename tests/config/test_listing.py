"""docs/config.md and --help have every field, as it is declared."""

import dataclasses
import pathlib
import re

import pytest

from polaris_jax.__main__ import main
from polaris_jax.config import SETTINGS, default_config
from polaris_jax.config.listing import WIDTH, fields_text, markdown, names_markdown
from polaris_jax.config.settings import GROWS, NO, YES, declared_name, declared_sections, setting

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "config.md"


def test_the_page_is_what_the_declarations_make():
    assert PAGE.read_text() == markdown(), "run `make docs`"


def test_the_page_of_other_names_is_what_the_declarations_make():
    page = PAGE.with_name("other_names.md").read_text()
    assert page == names_markdown(), "run `make docs`"
    assert "| `lr` | `optimizer.learning_rate` |" in page


def test_every_field_has_a_row_with_its_help():
    page = markdown()
    for name, field in SETTINGS.items():
        assert f"| `{name}` |" in page
        assert field.help.endswith("."), name
        assert field.resume in (YES, NO, GROWS)


def test_a_default_that_is_declared_is_the_default():
    def walk(config, prefix=""):
        for name, value in config.items():
            if hasattr(value, "items"):
                yield from walk(value, f"{prefix}{name}.")
            elif isinstance(value, list):
                yield from walk(value[0], f"{prefix}{name}[0].")
            else:
                yield declared_name(prefix + name), value

    assert dict(walk(default_config())) == {n: field.default for n, field in SETTINGS.items()}


@pytest.mark.parametrize("command", ["prepare", "calibrate", "probe", "train", "evaluate", "plan"])
def test_help_leads_to_every_field(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--help=SECTION" in shown
    sections = re.findall(r"^  ([a-z.]+(?:\[i\])?)  ", shown.partition("Sections")[2], re.MULTILINE)
    fields = set()
    for section in sections:
        assert main([command, f"--help={section}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert all(len(line) <= WIDTH for line in lines)
        fields |= {line.split()[0] for line in lines if line.startswith("  ")}
    assert set(SETTINGS) <= fields


def test_help_for_all_sections_and_for_a_section_with_sections():
    assert fields_text("all").count("\n\n") == markdown().count("\n## ") - 1
    assert "data.arithmetic.seed" in fields_text("data")
    assert "stages[i].steps" in fields_text("stages")


def test_help_for_a_section_that_is_not_there(capsys):
    assert main(["train", "--help=rolout"]) == 2
    assert capsys.readouterr().err == (
        "error: --help=rolout: the config has no such section; did you mean rollout?\n"
    )


def test_what_a_section_declares_holds_for_its_fields():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        """Inside."""

        bound: tuple[int, ...] = setting((), "Numbers.", at_least=1, below=1 << 20)

    globals()["Inner"] = Inner

    @dataclasses.dataclass(frozen=True)
    class Outer:
        """Outside."""

        inner: Inner = setting(Inner(), resume=YES)

    outer, inner = declared_sections(Outer)
    assert (outer.name, outer.settings) == ("", ())
    assert (inner.name, inner.help) == ("inner", "Inside.")
    [field] = inner.settings
    assert (field.name, field.resume, field.allowed()) == ("inner.bound", YES, "[1, 2^20)")
