"""What a training run writes: the mark of a reward that something beside the answers decided."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from etils import epath

from polaris_jax.batch import RescueBuffer
from polaris_jax.checkpoint import step_folders
from polaris_jax.config import build_config, default_config
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.metrics import MetricsWriter
from polaris_jax.records import Graded
from polaris_jax.reward import Grader
from polaris_jax.run import workdir as workdir_lib
from polaris_jax.run.outputs import Outputs, numerics_of
from polaris_jax.run.owner import TakenOver
from polaris_jax.run.step_clock import GRADER_STATS


@pytest.mark.parametrize(
    ("failure", "repeatable"),
    [
        ("timeouts", False),
        ("crashes", False),
        ("memory", False),
        ("errors", True),
        ("invalid", True),
        ("graded", True),
    ],
)
def test_a_run_says_that_the_machine_decided_a_reward(tmp_path, monkeypatch, failure, repeatable):
    config = build_config(default_config())
    claim = workdir_lib.claim(tmp_path, config)
    outputs = Outputs(tmp_path, config, claim, tokenizer=None)
    with Grader(workers=1) as grader:
        stats = grader.stats()
        assert set(GRADER_STATS) <= stats.keys()
        monkeypatch.setattr(grader, "stats", lambda: stats | {failure: 1})
        outputs.note_grading(grader)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["deterministic"] is repeatable


def test_rows_of_a_replaced_group_name_its_donor(tmp_path):
    config = build_config(default_config())
    outputs = Outputs(
        epath.Path(tmp_path), config, workdir_lib.claim(tmp_path, config), tokenizer=None
    )

    def keep(*ids: str, attempt: int) -> None:
        graded = Graded(
            problem_ids=ids,
            prompts=[(1,)] * len(ids),
            golds=["1"] * len(ids),
            token_ids=[[(5,), (6,)] for _ in ids],
            logprobs=[[(-1.0,), (-1.0,)] for _ in ids],
            texts=[["x", "y"] for _ in ids],
            finish_reasons=[["stop", "stop"] for _ in ids],
            reward_PR=np.zeros((len(ids), 2), np.float32),
        )
        outputs.keep_rollouts(
            3,
            graded,
            rescued=graded,
            sink=RescueBuffer(),
            problems=[],
            draws=[0] * len(ids),
            attempt=attempt,
        )

    keep("aborted", attempt=0)
    keep("a", "b", attempt=0)
    keep("c", "d", attempt=1)
    outputs.write_rollouts(3, donors={0: 3, 2: 1})
    outputs.write_rollouts(4, donors={})
    text = workdir_lib.rollouts_path(tmp_path, 3).read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    found = [(r["problem_id"], r["attempt"], r.get("substituted_by")) for r in rows]
    wanted = [("a", 0, "d"), ("b", 0, None), ("c", 1, "b"), ("d", 1, None)]
    assert found == [group for group in wanted for _ in range(2)]
    assert workdir_lib.rollouts_path(tmp_path, 4).read_text() == ""


def test_a_resume_says_which_lines_of_metrics_are_lost(tmp_path, capsys):
    config = build_config(default_config())
    with workdir_lib.claim(tmp_path, config) as claim:
        (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 2}\n{"step": 3}\n')
        with contextlib.closing(
            Outputs(epath.Path(tmp_path), config, claim, tokenizer=build_tokenizer())
        ) as outputs:
            assert outputs.begin(first_step=3, lines_from=3) == 1
    assert json.loads((tmp_path / "run.json").read_text())["missing_metrics"] == [1]
    assert "no line for 1 of the steps before the checkpoint" in capsys.readouterr().err


def test_a_start_deletes_what_a_kill_left_of_the_tokenizer(tmp_path):
    config = build_config(default_config())
    folder = tmp_path / "checkpoints" / "tokenizer"
    for left in ("tokenizer.json.0123abcd.partial", "additional_chat_templates/a.0123abcd.partial"):
        (folder / left).parent.mkdir(parents=True, exist_ok=True)
        (folder / left).write_text("{")
    with (
        workdir_lib.claim(tmp_path, config) as claim,
        contextlib.closing(
            Outputs(epath.Path(tmp_path), config, claim, tokenizer=build_tokenizer())
        ) as outputs,
    ):
        outputs.begin(first_step=0, lines_from=0)
    assert (folder / "tokenizer.json").is_file()
    assert not list(folder.rglob("*.partial"))
    assert step_folders.fault(folder) is None
    (folder / "tokenizer_config.json").write_text("{}")
    assert "tokenizer_config.json" in step_folders.fault(folder)


def test_a_run_starts_twice_in_a_bucket(bucket):
    config, place = build_config(default_config()), epath.Path("gs://bucket/run")
    for _ in range(2):
        with (
            workdir_lib.claim(place, config) as claim,
            contextlib.closing(
                Outputs(place, config, claim, tokenizer=build_tokenizer())
            ) as outputs,
        ):
            outputs.begin(first_step=0, lines_from=0)
        assert step_folders.fault(place / "checkpoints" / "tokenizer") is None


def test_a_tokenizer_that_cannot_be_written_stops_a_resume_before_anything_is_cut(tmp_path):
    config = build_config(default_config())
    in_the_way = tmp_path / "checkpoints" / "tokenizer" / "tokenizer.json"
    in_the_way.mkdir(parents=True)
    with workdir_lib.claim(tmp_path, config) as claim:
        (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
        with (
            contextlib.closing(
                Outputs(epath.Path(tmp_path), config, claim, tokenizer=build_tokenizer())
            ) as outputs,
            pytest.raises(IsADirectoryError) as caught,
        ):
            outputs.begin(first_step=1, lines_from=1)
    assert caught.value.filename == str(in_the_way)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


def test_a_start_on_another_machine_is_said_and_recorded(tmp_path, capsys):
    config = build_config(default_config())
    here = numerics_of("native (c++ 12)")
    assert here["CPU threads"] >= 1 and here["versions"].keys() == {"jax", "jaxlib", "numpy"}
    elsewhere = here | {"decode kernels": "xla (no compiler)", "CPU features": "another"}

    def start(numerics, step):
        with (
            workdir_lib.claim(tmp_path, config) as claim,
            contextlib.closing(
                Outputs(
                    epath.Path(tmp_path),
                    config,
                    claim,
                    tokenizer=build_tokenizer(),
                    numerics=numerics,
                )
            ) as outputs,
        ):
            outputs.begin(first_step=step, lines_from=step)
        (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n')
        return json.loads((tmp_path / "run.json").read_text()), capsys.readouterr().err

    untrue = "xla (rollout.attention='native': is for one device without a mesh, the sampler has "
    start(here | {"decode kernels": f"{untrue}a mesh of 1)"}, 0)
    record, said = start(here, 2)  # what earlier versions recorded of one device
    assert record["deterministic"] is True and said == ""
    start(elsewhere, 0)
    record, said = start(here, 0)  # nothing of the run exists yet
    assert record["deterministic"] is True and said == ""
    record, said = start(here, 2)
    assert record["deterministic"] is True and said == ""
    record, said = start(elsewhere, 3)
    assert record["deterministic"] is False
    assert record["numerics"] == elsewhere
    kernels = ["native (c++ 12)", "xla (no compiler)"]
    assert record["numerics_changes"][0]["step"] == 3
    assert record["numerics_changes"][0]["decode kernels"] == kernels
    assert said.count("\n") == 1 and "CPU features, decode kernels differ" in said
    record, said = start(elsewhere, 3)
    assert len(record["numerics_changes"]) == 1 and said == ""


class Lost:
    """A claim that another run has taken over."""

    def check(self):
        raise TakenOver("another run has taken it over")


def test_a_run_that_was_taken_over_writes_nothing_more(tmp_path, monkeypatch):
    config = build_config(default_config())
    workdir_lib.claim(tmp_path, config).release()
    before = (tmp_path / "run.json").read_bytes()
    lost: Any = Lost()
    outputs = Outputs(epath.Path(tmp_path), config, lost, tokenizer=None)
    outputs._writer = MetricsWriter(tmp_path)
    with Grader(workers=1) as grader:
        stats = grader.stats() | {"timeouts": 1}
        monkeypatch.setattr(grader, "stats", lambda: stats)
        with pytest.raises(TakenOver):
            outputs.note_grading(grader)
    with pytest.raises(TakenOver):
        outputs.write_timing(0, {"time/save_s": 1.0})
    assert (tmp_path / "run.json").read_bytes() == before
    assert not (tmp_path / "timing.jsonl").exists()


def test_a_failure_is_recorded_before_the_trackers_are_closed(tmp_path, monkeypatch):
    """They may take long, and the scheduler may not wait."""
    config = build_config(default_config())
    recorded = []

    class Slow:
        def close(self):
            starts = json.loads((tmp_path / "run.json").read_text())["starts"]
            recorded.append(starts[-1]["ended"])

    slow: Any = Slow()
    with workdir_lib.claim(tmp_path, config) as claim:
        outputs = Outputs(epath.Path(tmp_path), config, claim, tokenizer=None)
        outputs._writer = slow
        outputs.__exit__(ValueError, ValueError("broke"), None)
    (end,) = recorded
    assert "failed: ValueError: broke" in json.dumps(end)
