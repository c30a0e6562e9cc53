"""What `calibrate` and `probe` ask of the sampler, and what they leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.wiring.lines import Micro, write_problems
from tests.support.wiring.spies import Asked, Calls, Recorded, read_json, run, table

pytestmark = pytest.mark.xdist_group("wiring")  # one worker makes what its tests share

EASIEST = {"full": 1.0, "drop_perfect": 0.999, "aggressive": 0.5}  # pass rate that stays


def graded_problems(directory: Path) -> Path:
    """Problems that any well-formed answer solves, or some, or none."""
    digits = ["1234", "1234", "1234", "1234", "123", "12", "12", "9"]
    return write_problems(directory / "graded.jsonl", digits, first=30)


@pytest.fixture(scope="module")
def calibrated(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """`calibrate` without filtering."""
    directory = tmp_path_factory.mktemp("calibrated")
    return Recorded(directory / "run", calibrate(micro, directory, "full"))


def calibrate(micro: Micro, directory: Path, preset: str) -> Calls:
    """The calls of `calibrate` with a preset, always in the same workdir."""
    fields = {
        "calibrate.n": 3,
        "calibrate.temperature": 0.5,
        "calibrate.batch_prompts": 5,
        "calibrate.preset": preset,
    }
    line = micro.line(fields, problems=graded_problems(directory))
    return run("calibrate", line, directory / "run")


def test_calibrate_samples_at_its_temperature(calibrated: Recorded):
    asked = calibrated.calls.asked(3)
    assert [len(call.prompts) for call in asked] == [5, 3]
    assert [call.params.temperature for call in asked] == [0.5, 0.5]
    assert [call.params.max_tokens for call in asked] == [12, 12]  # the first stage's
    assert read_json(calibrated.workdir / "calibrate.json")["temperature"] == 0.5


def test_the_curated_set_follows_from_the_preset(calibrated: Recorded, micro: Micro):
    sizes = []
    for preset, easiest in EASIEST.items():
        calls = calibrate(micro, calibrated.workdir.parent, preset)
        assert calls.of(Asked) == []  # the pass rates are there already
        rated, curated = (
            table(calibrated.workdir / f"{name}.parquet") for name in ("difficulty", "curated")
        )
        kept = [problem.id for problem in rated if (problem.pass_rate or 0.0) <= easiest]
        assert [problem.id for problem in curated] == kept
        summary = read_json(calibrated.workdir / "calibrate.json")
        assert (summary["preset"], summary["kept"]) == (preset, len(kept))
        sizes.append(len(kept))
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_probe_takes_its_grid_problems_and_samples_from_the_config(micro: Micro, tmp_path: Path):
    fields = {
        "probe.start": 0.4,
        "probe.stop": 1.0,
        "probe.step": 0.3,
        "probe.problems": 5,
        "probe.n": 3,
    }
    calls = run("probe", micro.line(fields), tmp_path)
    asked = calls.of(Asked)
    assert [call.params.temperature for call in asked] == [0.4, 0.7, 1.0]
    assert {(len(call.prompts), call.params.n) for call in asked} == {(5, 3)}
    assert len({tuple(call.prompts) for call in asked}) == 1
    assert {call.params.max_tokens for call in asked} == {12}  # the first stage's
    summary = read_json(tmp_path / "probe.json")
    assert summary["temperatures"] == [0.4, 0.7, 1.0]
    assert (summary["problems"], summary["n"]) == (5, 3)
    assert [len(summary[name]) for name in ("accuracies", "diversities")] == [3, 3]
