"""The page of the small ablations, from the tables that were run."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

from etils import epath

from polaris_jax.ablate.outcome import Outcome, write_outcome
from polaris_jax.ablate.page import as_markdown, summarise
from polaris_jax.ablate.table import load_table

ROOT = Path(__file__).resolve().parents[2]


def leave_runs(runs: Path, name: str, gain: float) -> None:
    """What `polaris ablate` leaves of a table in which the second arm gains that much."""
    table = load_table(f"configs/ablations/{name}.py")
    outcomes = [
        Outcome(
            run.arm,
            run.base,
            run.seed,
            before=0.3,
            scores=((0, 0.3 + number / 100 + gain * (run.arm == table.arms[1].name)),),
            sampled_tokens=10,
            updates=1,
            value=run.value,
        )
        for number, run in enumerate([*table.tuning_runs(), *table.runs()])
    ]
    summary = summarise(table, outcomes)
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "ablations.json").write_text(json.dumps(summary))
    (folder / "ablations.md").write_text(as_markdown(summary, title=f"{name}.py", failures={}))
    (folder / "ablations.png").write_bytes(name.encode())


def make(runs: Path, out: Path) -> str:
    subprocess.run([sys.executable, "launch/ablations.py", str(runs), str(out)], check=True)
    return (out / "ablations.md").read_text()


def test_a_table_that_was_not_run_again_keeps_what_was_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    leave_runs(tmp_path / "both", "controls", gain=-0.5)
    leave_runs(tmp_path / "both", "temperature", gain=0.5)
    page = make(tmp_path / "both", out)
    for line in ("permuted rewards teach nothing", "a cold temperature explores too little"):
        assert page.count(line) == 1, page
    verdicts = [line.split(" | ")[-1] for line in page.splitlines() if line.startswith("| blog")]
    assert "a gain; expected a loss |" in verdicts
    assert "expected before the runs: both controls stay" in page.lower()

    assert "Not run yet: headline, headline_mastered," in page
    assert "temperature," not in page.split("Not run yet: ")[1].split("\n")[0]
    recorded = json.loads((out / "ablations.json").read_text())
    left = json.loads((tmp_path / "both" / "controls" / "ablations.json").read_text())
    assert {name: recorded["controls"][name] for name in left} == left

    leave_runs(tmp_path / "one", "temperature", gain=0.5)
    assert make(tmp_path / "one", out) == page
    assert (out / "ablations_controls.png").read_bytes() == b"controls"
    leave_runs(tmp_path / "other", "temperature", gain=-0.5)
    assert make(tmp_path / "other", out) != page


def test_the_demo_prints_what_was_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    leave_runs(tmp_path / "runs", "headline", gain=0.02)
    make(tmp_path / "runs", tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "ablations.json").read_text())["headline"]
    lines = runpy.run_path("launch/demo_result.py")["recorded"](summary)
    assert lines[0].startswith("recorded, 9 bases with one seed each")
    assert [line.split("  ")[0] for line in lines[1:3]] == ["plain GRPO", "POLARIS"]
    assert lines[3].startswith("difference of the mean held-out score over the run: +")


def test_a_headline_that_was_stopped_compares_the_pairs_that_are_finished(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = load_table("configs/ablations/headline.py")
    runs = {(run.arm, run.base): run for run in table.runs()}
    for (arm, base), run in runs.items():
        folder = epath.Path(tmp_path / run.name)
        folder.mkdir(parents=True)  # as a worker does before it trains
        if base in ("base0", "base1") or (arm, base) == ("polaris", "base2"):
            # Of plain's two scores the second lies beyond the other arm's steps.
            scores = ((9, 0.4 + 0.1 * (arm == "polaris")), (19, 0.9))[: 1 + (arm == "plain")]
            write_outcome(
                folder, Outcome(arm, base, 0, 0.3, scores, 60, updates=1, total_tokens=80)
            )
    text = runpy.run_path("configs/ablations/_task.py")["at_equal_updates"](tmp_path)
    assert "takes 25% of its tokens" in text
    assert "its difference to `plain` is +10.0 ± 0.0 points" in text
