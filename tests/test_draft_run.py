"""A run that drafts trains what it would train without, and a checkpoint holds its history."""

import json
from pathlib import Path

import pytest

from polaris_jax.config import RolloutSection, RunConfig
from polaris_jax.rollout.draft_store import DraftStore
from polaris_jax.state import tables
from tests.support.kills import metrics
from tests.support.micro_run import finish, flags, make_base, start_train
from tests.support.parts import make_parts, make_state

DRAFTS = RolloutSection(draft="history", draft_store_tokens=100)


def test_a_checkpoint_of_an_earlier_version_has_no_drafts():
    store = DraftStore(100)
    store.record(["a"], [[[1, 2, 3]]])
    host = {name: getattr(make_state(), name).state_dict() for name in ("accuracy", "sink")}
    parts = make_parts(RunConfig(rollout=DRAFTS))
    assert tables(parts, host)["drafts"].tokens == 0
    host["drafts"] = store.array_state()
    assert tables(parts, host)["drafts"].texts("a")[0].tolist() == [1, 2, 3]
    # Without drafts nothing is stored, and what a checkpoint holds is dropped.
    off = tables(make_parts(RunConfig()), host)["drafts"]
    off.record(["a"], [[[1, 2, 3]]])
    assert off.tokens == 0


RUN_S = 1200  # for one of the four runs, on a loaded machine


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> list[str]:
    """Five steps over problems that return in the third."""
    fields = ("stages[0].steps=3", "stages[1].steps=2", "stages[1].rope_factor=1.0")
    fields += ("rollout.decode_steps=2",)  # short calls leave more of a response to draft
    more = (*fields, "stages[0].drop_above=0.2")
    base = make_base(tmp_path_factory.mktemp("base"))
    return flags(*base, *(f"--config.{field}" for field in more))


def run(workdir: Path, line: list[str], *more: str, command: str = "train") -> Path:
    program = ("tests.support.always_drafts",)
    process = start_train(workdir, [*line, *more], program=program, command=command)
    finish(process, timeout_s=RUN_S)
    return workdir


def sampled(workdir: Path) -> list[list[tuple[str, int, str]]]:
    """The responses of every step: text, number of tokens, end."""
    files = sorted((workdir / "rollouts").iterdir(), key=lambda f: int(f.stem.split("_")[1]))
    rows = [map(json.loads, f.read_text().splitlines()) for f in files]
    return [[(r["text"], r["tokens"], r["finish_reason"]) for r in step] for step in rows]


def timing(workdir: Path) -> list[dict]:
    return [json.loads(row) for row in (workdir / "timing.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(4 * RUN_S)
def test_a_run_that_drafts_trains_the_same(line, tmp_path):
    plain, drafts = tmp_path / "plain", tmp_path / "drafts"
    run(plain, line)
    run(drafts, line, "--config.rollout.draft=history")
    assert sampled(drafts) == sampled(plain)
    for one, other in zip(metrics(drafts), metrics(plain), strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            # Last bits of the sampler's log-probs, which stored responses bring into updates.
            tolerance = 1e-5 if name.startswith("rollout/logp_gap") else 1e-6
            assert one[name] == pytest.approx(value, rel=1e-3, abs=tolerance), name
    assert (drafts / "stages.json").read_bytes() == (plain / "stages.json").read_bytes()
    lines = timing(drafts)
    assert sum(step["sampler/draft_accepted"] for step in lines) > 0
    assert lines[2]["sampler/compiles"] == 0 == lines[4]["sampler/compiles"]
    assert all(step["sampler/draft_tokens"] == 0 for step in timing(plain))

    # A run that is resumed drafts from what the checkpoint holds: the same bytes.
    parts = tmp_path / "parts"
    run(parts, line, "--config.rollout.draft=history", "--config.stages[1].steps=1")
    run(parts, line, "--config.rollout.draft=history")
    assert (parts / "metrics.jsonl").read_bytes() == (drafts / "metrics.jsonl").read_bytes()
    counts = [[step["sampler/draft_accepted"] for step in timing(w)] for w in (parts, drafts)]
    assert counts[0] == counts[1]


@pytest.mark.slow
@pytest.mark.timeout(4 * RUN_S)
@pytest.mark.parametrize("command", ["calibrate", "probe"])
def test_measurements_with_drafts_are_those_without(line, tmp_path, command):
    plain, drafts = tmp_path / "plain", tmp_path / "drafts"
    run(plain, line, command=command)
    run(drafts, line, "--config.rollout.draft=history", command=command)
    written = sorted(path.name for path in plain.glob(f"{command}*.json*"))
    assert f"{command}.json" in written
    found, expected = (
        json.loads((workdir / f"{command}.json").read_text()) for workdir in (drafts, plain)
    )
    # Means of log-probs, whose last bits depend on how many tokens a call takes.
    assert found.pop("entropies", []) == pytest.approx(expected.pop("entropies", []), abs=1e-5)
    assert found == expected
