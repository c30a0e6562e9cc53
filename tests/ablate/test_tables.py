"""Every table of configs/ablations is one, and each of its runs has a config."""

import json
import runpy
from pathlib import Path

import pytest
from etils import epath

from polaris_jax.ablate.table import load_table
from polaris_jax.commands import ablate
from polaris_jax.commands.ablate_worker import config_of
from polaris_jax.demo.arithmetic import Mix, arithmetic_problems

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "ablations"
TABLES = sorted(path for path in FOLDER.rglob("*.py") if not path.name.startswith("_"))


@pytest.mark.parametrize("path", TABLES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_every_run_of_every_table_has_a_config(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = load_table(str(path))
    runs = ablate.distinct_runs(table)
    for run in runs:
        ablate.check(run, trained=table.train)
    for run in {run.arm: run for run in runs}.values():
        data = config_of(run, epath.Path("run")).data
        if not data.problems:  # as many are asked for as there are
            asked = (data.arithmetic.train, data.arithmetic.held_out)
            assert (
                tuple(map(len, arithmetic_problems(*asked, mix=Mix.of(data.arithmetic)))) == asked
            )
    text = path.read_text()
    assert f"polaris ablate {path.relative_to(ROOT)} --out" in text
    if path.parent == FOLDER:
        assert "Expected before the runs:" in text
    else:
        assert "Not run here." in text


def test_the_small_tables_are_the_fixed_design(monkeypatch):
    """Nine bases with one seed each; what is tuned is tuned on three other bases."""
    monkeypatch.chdir(ROOT)
    for path in FOLDER.glob("[!_]*.py"):
        table = load_table(str(path))
        assert len(table.bases) == 9
        assert table.seeds == (0,)
        if table.tuning is not None:
            assert len(table.tuning.values) == 3
            assert len(table.tuning.bases) == 3
            assert not set(table.tuning.bases) & set(table.bases)


def test_all_small_tables_but_those_that_the_script_knows_share_their_bases(monkeypatch):
    monkeypatch.chdir(ROOT)
    tables = {path.stem: load_table(str(path)) for path in FOLDER.glob("[!_]*.py")}
    shared = tables["parts"].base_run("base0").flags()
    others = {name for name, table in tables.items() if table.base_run("base0").flags() != shared}
    script = (ROOT / "launch" / "ablations.sh").read_text()
    assert f"    {' | '.join(sorted(others, reverse=True))}) bases=$out/$table/bases ;;" in script


def test_a_gain_is_split_beside_the_bases_that_are_counted(tmp_path):
    """A folder of shared bases also has those that rates were found on."""
    notes = runpy.run_path(str(FOLDER / "_task.py"))["decomposition"]
    assert notes(tmp_path) == ""
    right = {"text": "Add 5: 7 + 5 = 12", "reward": 1.0}
    wrong = {"text": "Add 5: 7 + 5 = 13", "reward": 0.0}
    for place, rows in {
        "bases/base0": [wrong, wrong, wrong, right],
        "bases/tuning": [right] * 4,
        "runs/plain/base0-0": [right, right, right, wrong],
    }.items():
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "responses.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = notes(tmp_path)
    assert "| `plain` | +50.0 | +50.0 | +0.0 | 100% | 75.0% | 0% |  |" in text
    assert "Before: 100% careful, 25.0% of them right; 0% hurried." in text
