"""What `calibrate` and `probe` ask of the sampler, and what they leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.wiring.lines import Micro, write_problems
from tests.support.wiring.spies import (
    Asked,
    Calls,
    Recorded,
    main,
    read_json,
    read_lines,
    run,
    table,
)

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


FIELDS = {
    "calibrate.n": 3,
    "calibrate.temperature": 0.5,
    "calibrate.batch_prompts": 5,
    "calibrate.keep_responses": True,
}


def calibrate(micro: Micro, directory: Path, preset: str, *more: str) -> Calls:
    """The calls of `calibrate` with a preset, always in the same workdir."""
    line = micro.line({**FIELDS, "calibrate.preset": preset}, problems=graded_problems(directory))
    return run("calibrate", line, directory / "run", *more)


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


def test_a_range_of_pass_rates_and_a_limit_sample_nothing_again(calibrated: Recorded, micro: Micro):
    directory = calibrated.workdir.parent
    limits = ("--config.calibrate.min_rate=0.3", "--config.calibrate.max_rate=0.7")
    assert calibrate(micro, directory, "range", *limits).of(Asked) == []
    rated, curated = (
        table(calibrated.workdir / f"{name}.parquet") for name in ("difficulty", "curated")
    )
    assert [p.id for p in curated] == [p.id for p in rated if 0.3 <= (p.pass_rate or 0) <= 0.7]
    assert read_json(calibrated.workdir / "calibrate.json")["rates"] == [0.3, 0.7]
    assert calibrate(micro, directory, "full", "--config.calibrate.problems=3").of(Asked) == []
    fewer = table(calibrated.workdir / "difficulty.parquet")
    assert len(fewer) == 3
    assert [p.id for p in fewer] == [p.id for p in rated if p.id in {q.id for q in fewer}]
    found = read_json(calibrated.workdir / "calibrate.json")
    assert (found["problems"], found["not_sampled"]) == (3, 5)


def test_kept_responses_are_those_that_were_counted(calibrated: Recorded):
    files = sorted((calibrated.workdir / "calibrate_responses").iterdir())
    assert len(files) == 2  # one for each batch
    rows = [row for path in files for row in read_lines(path)]
    progress = read_lines(calibrated.workdir / "calibrate_progress.jsonl")
    assert len(rows) == 3 * len(progress) == 24
    for counted in progress:
        own = [row for row in rows if row["problem_id"] == counted["id"]]
        assert [row["sample"] for row in own] == [0, 1, 2]
        assert sum(row["reward"] for row in own) == counted["correct"]
        assert sum(row["tokens"] for row in own) == 3 * counted["tokens"]
        assert all(row["text"] and row["gold"] for row in own)


def test_another_checkpoint_is_refused_by_name_and_has_files_of_its_own_with_a_tag(
    calibrated: Recorded, micro: Micro, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = tmp_path / "copy"  # the base's weights as a checkpoint: another name, the same policy
    assert main(["convert", f"--from={micro.base}", f"--to={copy}", "--format=orbax"]) == 0
    directory = calibrated.workdir.parent
    line = micro.line({**FIELDS, "calibrate.preset": "full"}, problems=graded_problems(directory))
    line += [f"--workdir={calibrated.workdir}", f"--checkpoint={copy}"]
    before = (calibrated.workdir / "calibrate_progress.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["calibrate", *line]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --checkpoint={copy}: another weights")
    assert (calibrated.workdir / "calibrate_progress.jsonl").read_bytes() == before
    calls = calibrate(micro, directory, "full", f"--checkpoint={copy}", "--tag=copy")
    assert len(calls.asked(3)) == 2
    mine, base = (
        read_lines(calibrated.workdir / f"{tag}calibrate_progress.jsonl") for tag in ("copy_", "")
    )
    assert mine == base
    found = read_json(calibrated.workdir / "copy_calibrate.json")
    assert found["checkpoint"] == f"{copy} (step 0)"
    identity = read_json(calibrated.workdir / "copy_calibrate_progress.identity.json")
    assert identity["inputs"]["weights"].endswith(" of step 0")


def test_probe_takes_its_grid_refines_it_and_records_what_it_saw(micro: Micro, tmp_path: Path):
    fields = {
        "probe.start": 0.4,
        "probe.stop": 1.0,
        "probe.step": 0.3,
        "probe.problems": 5,
        "probe.n": 3,
        "probe.refine": 1,
    }
    calls = run("probe", micro.line(fields), tmp_path)
    asked = calls.of(Asked)
    temperatures = [call.params.temperature for call in asked]
    summary = read_json(tmp_path / "probe.json")
    assert temperatures[:3] == [0.4, 0.7, 1.0]
    assert temperatures[3:] == summary["refined"]
    assert summary["temperatures"] == sorted(temperatures)
    assert {(len(call.prompts), call.params.n) for call in asked} == {(5, 3)}
    assert len({tuple(call.prompts) for call in asked}) == 1
    assert {call.params.max_tokens for call in asked} == {12}  # the first stage's
    assert (summary["problems"], summary["n"]) == (5, 3)
    names = ("accuracies", "diversities", "entropies", "mean_lengths", "clip_ratios")
    assert {len(summary[name]) for name in names} == {len(asked)}
    assert all(0 < length <= 12 for length in summary["mean_lengths"])
    assert all(0 <= share <= 1 for share in summary["clip_ratios"])
    assert summary["entropies"][-1] > summary["entropies"][0] > 0  # heat raises it
    assert str(summary["initial_temperature"]) in summary["reason"]
