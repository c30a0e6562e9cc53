"""Where a run starts from, how it ends in an error, and what a step counts."""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

import numpy as np
import pytest
from etils import epath

from polaris_jax import step
from polaris_jax.__main__ import main
from polaris_jax.assemble import PROMPTS, assemble
from polaris_jax.batch.substitution import Substitution
from polaris_jax.checkpoint.snapshots import Snapshot, SnapshotSaver
from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import run_command
from polaris_jax.config import ConfigError, build_config
from polaris_jax.measure.policy import Policy
from polaris_jax.run.owner import InUse
from polaris_jax.start import StartAt, check_start, open_state, start_from
from polaris_jax.step import count_batch
from polaris_jax.system.failures import at_run_time
from polaris_jax.system.progress import Progress
from tests.support.micro_run import flags, make_base
from tests.support.parts import make_parts, make_state, stage_at

MESH = ("--config.mesh.fsdp=8", "--config.batch.rows=8")  # all virtual devices


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Model and problems."""
    return make_base(tmp_path_factory.mktemp("base"))


ERRORS = [
    (ValueError("shapes (2, 3) and (4,) do not go together"), 1),
    (FileNotFoundError(2, "No such file or directory", "weights"), 1),
    (ConfigError("stages[1].max_response_tokens=9: too few"), 2),
    (KeyboardInterrupt(), 130),
]


@pytest.mark.parametrize(("error", "status"), ERRORS)
def test_what_fails_at_run_time_is_no_bad_input(error, status, capsys):
    def command() -> int:
        with at_run_time(lambda: "step 300"):
            raise error

    assert run_command(command) == status
    said = capsys.readouterr().err
    assert ("step 300: " in said) == (status == 1)
    assert "Traceback" not in said
    if status == 1:
        assert str(error) in said


def raises(*_: object, **__: object) -> NoReturn:
    raise ERRORS[0][0]


@pytest.mark.parametrize(
    ("command", "owner", "name", "where"),
    [
        ("train", step, "collect_rollouts", "step 0"),
        ("calibrate", Policy, "solve", "sampling"),
        ("probe", Policy, "solve", "sampling"),
        ("evaluate", Policy, "solve", "sampling"),
    ],
)
def test_every_command_says_so(monkeypatch, tmp_path, capsys, base, command, owner, name, where):
    monkeypatch.setattr(owner, name, raises)
    line = [*flags(*base, *MESH, f"--config.evaluate.problems={base[1]}")]
    assert main([command, *line, f"--workdir={tmp_path / 'run'}"]) == 1
    assert f"error: {where}: ValueError: {ERRORS[0][0]}" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["train", "skip", "none"])
def test_a_step_counts_what_it_did_with_its_batch(action):
    before = {"rescued_groups": 5, "resampled_batches": 3, "steps_without_update": 4}
    state = make_state(counts={**before, "rescued_groups": 7})
    swapped = Substitution(np.arange(8), 3, 5, 2, action)
    state, metrics = count_batch(state, swapped, updated=action == "train", before=before)
    assert metrics == {
        "batch/rescued_groups": 2,
        "batch/resampled_batches": 0,
        "batch/steps_without_update": int(action != "train"),
        "batch/informative_groups": 3,
        "batch/substituted_groups": 5,
        "batch/donors_reused": 2,
        "batch/rescued_age": 0.0,
        "rollout/reset_tokens": 0,
    }
    assert state.counts["substituted_groups"] == 5
    assert state.counts["donors_reused"] == 2


def test_a_step_tells_what_all_its_attempts_have_rescued():
    swapped = Substitution(np.arange(4), 2, 1, 1, "train")
    state = make_state(counts={"rescued_groups": 7})
    _, metrics = count_batch(state, swapped, updated=True, before={"rescued_groups": 4})
    assert metrics["batch/rescued_groups"] == 3
    # No group had been rescued before the step began.
    assert count_batch(state, swapped, updated=True, before={})[1]["batch/rescued_groups"] == 7


def test_counting_leaves_the_state_before_it():
    state = make_state(counts={"rescued_groups": 1})
    assert state.counted(rescued_groups=2, dropped_problems=0).counts == {
        "rescued_groups": 3,
        "dropped_problems": 0,
    }
    assert state.counts == {"rescued_groups": 1}


class Saved:
    """In the place of a `Checkpointer`: the steps that it was given."""

    def __init__(self, events: list[Any]) -> None:
        self._events = events

    def save(self, step: int, arrays: Any, host: dict[str, Any], *, facts: Any) -> None:
        self._events.append((step, host["owed"]))


def test_a_snapshot_is_saved_once_and_a_later_one_of_its_step_replaces_it():
    events: list[Any] = []
    saver: Any = Saved(events)
    checkpoints = SnapshotSaver(saver, before_save=lambda: events.append("time-outs"))

    def snapshot(step: int, stage: int = 0, owed: float | None = None) -> Snapshot:
        return Snapshot(step, stage, owed is not None, None, {"owed": owed})

    for taken in (snapshot(2, owed=0.5), snapshot(2, owed=0.5), snapshot(2), snapshot(2)):
        checkpoints.save(taken)
    # Time-outs are noted before the state is kept in which they count.
    assert events == ["time-outs", (2, 0.5), "time-outs", (2, None)]
    events.clear()
    checkpoints.save(snapshot(2, stage=1))  # the next stage has been entered
    checkpoints.found(snapshot(3))
    checkpoints.save(snapshot(3))
    assert events == ["time-outs", (2, None)]


class OtherRun:
    """A checkpoint of a run that was in its third stage."""

    def latest_or_error(self) -> int:
        return 7

    arrays: Mapping[str, Any] = {"params/embed_VD": [], "step": []}

    def facts(self, step: int) -> dict[str, Any]:
        return {"arrays": self.arrays}

    def restore(
        self, step: int, abstract: Any, *, partial: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        raise AssertionError("it is refused before anything is read")

    def host(self, step: int) -> dict[str, Any]:
        state = make_state(stage=stage_at(2), loader=Position(), train=Train())
        return state.snapshot().host


class Train:
    """A train state of which only the rotary scaling is read."""

    params = SimpleNamespace(config=SimpleNamespace(rope_scaling=None))


class Architecture:
    def architecture(self) -> dict[str, Any]:
        return {}


class Position:
    digests: ClassVar[dict[str, str]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {}


def test_the_stage_that_the_other_run_was_in_must_be_known(monkeypatch):
    monkeypatch.setattr("polaris_jax.start.Checkpointer.of", lambda *_, **__: OtherRun())
    config = build_config({"stages": [{"steps": 1}, {"steps": 1}]})
    start = StartAt(1, epath.Path("runs/other"))
    parts = make_parts(config, model_config=Architecture())
    refused = [
        lambda: start_from(parts, start),
        lambda: check_start(start, config, epath.Path("runs/own"), overwrite=True),
    ]
    for refuse in refused:
        with pytest.raises(ConfigError, match="in stage 2, and the config has stages 0 to 1"):
            refuse()
    monkeypatch.setattr(OtherRun, "arrays", {"params/embed_VD": []})
    for refuse in refused:
        with pytest.raises(ConfigError, match=r"holds weights alone.*`polaris convert`"):
            refuse()


def test_the_first_step_knows_the_lengths_that_calibration_measured(tmp_path, base):
    rows = [json.loads(line) for line in base[1].read_text().splitlines()]
    known = rows[: len(rows) // 2]
    for tokens, row in enumerate(known, 5):
        row["response_tokens"] = tokens
    problems = tmp_path / "measured.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = [*flags(base[0], problems, *MESH), f"--workdir={tmp_path / 'run'}"]
    command = parse("train", line, doc="", define=lambda _: None)
    with assemble(command.config, command.workdir, progress=Progress(enabled=False)) as parts:
        lengths = open_state(parts).lengths
        expected = lengths.expected([row["id"] for row in known], max_response_tokens=100)
        unknown = lengths.expected(
            [row["id"] for row in rows[len(known) :]], max_response_tokens=100
        )
    assert expected == [float(row["response_tokens"]) for row in known]
    assert unknown is None


def test_processes_compare_the_ids_of_their_prompts(tmp_path, base, monkeypatch):
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("polaris_jax.system.processes.agree", told.append)

    def prompts(name: str, suffix: str) -> str:
        told.clear()
        line = [*flags(*base, *MESH), f"--config.data.prompt_suffix={suffix}"]
        command = parse("train", [*line, f"--workdir={tmp_path / name}"], doc="")
        with assemble(command.config, command.workdir, progress=Progress(enabled=False)):
            (fact,) = [facts[PROMPTS] for facts in told if PROMPTS in facts]
        return fact

    assert prompts("a", " Answer.") == prompts("b", " Answer.") != prompts("c", " Say.")


def test_a_run_whose_checkpoints_are_gone_or_damaged_does_not_begin_anew(tmp_path, base, capsys):
    run = tmp_path / "run"
    fields = ("checkpoint.every_steps=1", "stages[0].steps=1", "stages[1].temperature_rule=fixed")
    line = ["train", *flags(*base, *MESH, *(f"--config.{field}" for field in fields))]
    line.append(f"--workdir={run}")
    assert main([*line, "--config.stages[1].steps=2"]) == 0
    lines = (run / "metrics.jsonl").read_bytes()
    kept = sorted(
        path for path in run.glob("checkpoints/*/MANIFEST.json") if path.parent.name != "tokenizer"
    )
    assert kept
    texts = [path.read_bytes() for path in kept]
    for path in kept:
        path.write_bytes(b"{}")
    capsys.readouterr()
    assert main([*line, "--config.stages[1].steps=3"]) == 2
    said = capsys.readouterr().err
    assert "can be read, so that the run would begin anew and delete its metrics" in said
    assert "of 3 steps" in said
    assert (run / "metrics.jsonl").read_bytes() == lines and list(run.glob("rollouts/*"))
    (run / "checkpoints").rename(tmp_path / "elsewhere")  # a disk that is not mounted
    assert main([*line, "--config.stages[1].steps=3"]) == 2
    assert "holds no checkpoint, and one is due every 1 steps" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == lines
    (tmp_path / "elsewhere").rename(run / "checkpoints")
    for path, text in zip(kept, texts, strict=True):
        path.write_bytes(text)
    assert main([*line, "--config.stages[1].steps=3"]) == 0
    longer = (run / "metrics.jsonl").read_bytes()
    assert longer.startswith(lines) and len(longer) > len(lines)
    # What the sampler refuses is refused before the former run is deleted.
    assert main([*line, "--overwrite", "--config.rollout.attention=ragged"]) == 2
    assert "rollout.attention='ragged': runs on tpu" in capsys.readouterr().err
    # So is what no prompt fits.
    assert main([*line, "--overwrite", "--config.data.max_prompt_tokens=1"]) == 2
    assert "data.max_prompt_tokens" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == longer


@pytest.mark.parametrize(("launch", "status"), [("", 2), ("slurm-7", 1)])
def test_files_that_another_process_owns_may_be_free_for_a_restart(launch, status, monkeypatch):
    """A launcher that repeats its line must not take them for bad input; a person gets 2."""
    monkeypatch.setenv("POLARIS_LAUNCH", launch)

    def command() -> int:
        raise InUse("workdir=w: `polaris train` already runs in it (pid 1 on h); wait for it")

    assert run_command(command) == status
