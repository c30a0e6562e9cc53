"""Claiming a workdir, its record, and the small files of a run."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from polaris_jax.config import (
    ADDED_FIELDS,
    ConfigError,
    RunConfig,
    StageSection,
    build_config,
    config_hash,
    declared_name,
    default_config,
)
from polaris_jax.run import record as run_record
from polaris_jax.run import workdir as workdir_lib
from polaris_jax.run.owner import TakenOver


@pytest.fixture
def config():
    return build_config(default_config())


def changed(config: RunConfig, section: str, **fields) -> RunConfig:
    new = dataclasses.replace(getattr(config, section), **fields)
    return dataclasses.replace(config, **{section: new})


def with_last_stage(config: RunConfig, **fields) -> RunConfig:
    last = dataclasses.replace(config.stages[-1], **fields)
    return dataclasses.replace(config, stages=(*config.stages[:-1], last))


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def test_first_claim_is_new_then_resume_with_a_full_record(tmp_path, config):
    folder = tmp_path / "a" / "b"
    for status in ("new", "resume", "resume"):
        with workdir_lib.claim(folder, config) as claim:
            assert claim.status == status
    record = record_of(folder)
    assert record["config_hash"] == config_hash(config)
    assert record["config"]["optimizer.learning_rate"] == config.optimizer.learning_rate
    assert record["versions"]["jax"]
    assert record["deterministic"] is True
    assert len(record["starts"]) == 3


@pytest.mark.parametrize(("name", "local"), [("here", True), ("org/name", False)])
def test_a_run_records_whether_it_began_with_a_path_or_a_hub_id(
    name, local, tmp_path, config, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    given = changed(changed(config, "model", path=name), "data", problems=f"{name},split=train")
    workdir_lib.claim(tmp_path / "run", given).release()
    expected = ["model.path", "data.problems"] if local else []
    assert record_of(tmp_path / "run")["local"] == expected
    monkeypatch.chdir("/")  # where a later start may find neither
    workdir_lib.claim(tmp_path / "run", given).release()
    assert record_of(tmp_path / "run")["local"] == expected


def test_another_config_is_refused_with_the_fields_and_both_values(tmp_path, config):
    workdir_lib.claim(tmp_path, config).release()
    other = changed(config, "optimizer", learning_rate=0.5)
    other = changed(other, "batch", rescue=not config.batch.rescue)
    with pytest.raises(ConfigError) as caught:
        workdir_lib.claim(tmp_path, other)
    text = str(caught.value)
    assert f"optimizer.learning_rate={config.optimizer.learning_rate!r} there, 0.5 here" in text
    assert "batch.rescue=True there, False here" in text
    assert "--overwrite" in text
    assert "\n" not in text
    assert text.count(" there, ") == 2
    assert len(record_of(tmp_path)["starts"]) == 1  # a refusal leaves no trace
    workdir_lib.claim(tmp_path, config).release()  # and no lock


def test_a_command_beside_a_run_may_differ_in_other_sections_only(tmp_path, config):
    sections = ("model", "data")
    other = changed(config, "model", path="another")
    run_record.refuse_other_run(tmp_path, other, sections=sections)  # no run here yet
    workdir_lib.claim(tmp_path, config).release()
    run_record.refuse_other_run(
        tmp_path, changed(config, "optimizer", learning_rate=0.5), sections=sections
    )
    with pytest.raises(ConfigError, match=r"another config: model\.path='' there, 'another' here;"):
        run_record.refuse_other_run(tmp_path, other, sections=sections)


def test_a_run_on_prepared_problems_names_their_source(tmp_path, config):
    """`prepare --config.data.problems=FILE`, then `train` without it: FILE is that run's."""
    workdir_lib.claim(tmp_path, config).release()
    (tmp_path / "prepare.json").write_text(json.dumps({"source": "a.jsonl"}))
    own, other = (changed(config, "data", problems=f"{name}.jsonl") for name in "ab")
    run_record.refuse_other_run(tmp_path, own, sections=("data",))
    with pytest.raises(ConfigError, match=r"'a\.jsonl' there, data\.problems='b\.jsonl' here"):
        run_record.refuse_other_run(tmp_path, other, sections=("data",))


def test_a_run_from_before_a_field_was_there_goes_on_under_what_it_did(tmp_path, config):
    workdir_lib.claim(tmp_path, config).release()
    path = tmp_path / "run.json"
    record = json.loads(path.read_text())
    for name in [name for name in record["config"] if declared_name(name) in ADDED_FIELDS]:
        del record["config"][name]
        record["binding"].remove(name)
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"partial_share=0\.8 there, 0\.9 here"):
        workdir_lib.claim(tmp_path, changed(config, "rollout", partial_share=0.9))
    with workdir_lib.claim(tmp_path, config) as claim:
        assert claim.status == "resume"


def test_a_run_from_when_a_field_was_binding_goes_on_with_another_value(tmp_path, config):
    workdir_lib.claim(tmp_path, config).release()
    path = tmp_path / "run.json"
    record = json.loads(path.read_text())
    record["binding"].append("rollout.num_pages")
    path.write_text(json.dumps(record))
    with workdir_lib.claim(tmp_path, changed(config, "rollout", num_pages=90_000)) as claim:
        assert claim.status == "resume"


def test_an_added_stage_is_refused(tmp_path, config):
    workdir_lib.claim(tmp_path, config).release()
    more = dataclasses.replace(config, stages=(*config.stages, StageSection()))
    with pytest.raises(ConfigError, match=r"stages\[1\]\.max_response_tokens='absent' there"):
        workdir_lib.claim(tmp_path, more)


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ("metrics", {"tensorboard": False}),
        ("checkpoint", {"every_steps": 3}),
        ("evaluate", {"n": 64}),
        ("reward", {"workers": 7}),
    ],
    ids=["logging", "cadence", "evaluation", "workers"],
)
def test_free_fields_may_change_and_the_record_follows(tmp_path, config, section, fields):
    workdir_lib.claim(tmp_path, config).release()
    with workdir_lib.claim(tmp_path, changed(config, section, **fields)) as claim:
        assert claim.status == "resume"
    ((name, value),) = fields.items()
    assert record_of(tmp_path)["config"][f"{section}.{name}"] == value


def test_the_last_stage_may_grow_and_not_shrink(tmp_path, config):
    steps = config.stages[-1].steps
    workdir_lib.claim(tmp_path, config).release()
    workdir_lib.claim(tmp_path, with_last_stage(config, steps=steps + 5)).release()
    with pytest.raises(ConfigError, match=rf"steps={steps}: .* has {steps + 5}.*only grow"):
        workdir_lib.claim(tmp_path, config)


def test_overwrite_deletes_what_training_made_and_nothing_else(tmp_path, config):
    workdir_lib.claim(tmp_path, config).release()
    ours = [
        "metrics.jsonl",
        "timing.jsonl",
        "stages.json",
        "checkpoints/4/arrays/d/0",
        "checkpoints/6.partial/host.json",
        "checkpoints/tokenizer/tokenizer.json",  # the next model's may be another
        "rollouts/step_000003.jsonl",
        "tensorboard/events.out.tfevents.1.host",
    ]
    others = [
        "curated.parquet",
        "eval.json",
        "notes.txt",
        "base_model/config.json",
        "checkpoints/keep-me/weights",
        "rollouts/my_analysis.ipynb",
    ]
    for name in ours + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    other = changed(config, "optimizer", learning_rate=0.5)
    with workdir_lib.claim(tmp_path, other, overwrite=True) as claim:
        assert claim.status == "new"
    assert [name for name in ours if (tmp_path / name).exists()] == []
    assert [name for name in others if not (tmp_path / name).exists()] == []
    assert not (tmp_path / "tensorboard").exists()
    assert len(record_of(tmp_path)["starts"]) == 1


def test_overwrite_does_not_follow_a_link_out_of_the_workdir(tmp_path, config):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "weights").write_text("x")
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "4").symlink_to(outside)
    workdir_lib.claim(folder, config, overwrite=True).release()
    assert (outside / "weights").exists()


def test_checkpoints_without_a_record_are_not_taken_over(tmp_path, config):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"checkpoints but no run\.json.*--overwrite"):
        workdir_lib.claim(tmp_path, config)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 1'], ids=repr)
def test_a_damaged_record_is_named(tmp_path, config, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json: .*restore the file, or use --overwrite"):
        workdir_lib.claim(tmp_path, config)
    workdir_lib.claim(tmp_path, config, overwrite=True).release()


def test_a_workdir_that_cannot_be_is_a_config_error(tmp_path, config):
    (tmp_path / "file").write_text("")
    for make in (workdir_lib.ensure_workdir, lambda path: workdir_lib.claim(path, config)):
        with pytest.raises(ConfigError, match=r"workdir=.*cannot be written \(Not a directory\)"):
            make(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only directory")
def test_an_unwritable_workdir_is_a_config_error(tmp_path, config):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\)"):
        workdir_lib.claim(tmp_path, config)


def test_a_workdir_that_refuses_a_write_is_a_config_error_for_root_too(
    tmp_path, config, monkeypatch
):
    def refused(path, data):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(workdir_lib, "write_bytes", refused)
    for make in (workdir_lib.ensure_workdir, lambda path: workdir_lib.claim(path, config)):
        with pytest.raises(ConfigError, match=r"workdir=.*cannot be written \(Permission denied\)"):
            make(tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "passes"), [(errno.EACCES, False), (errno.ESTALE, True), (errno.ENOSPC, True)]
)
def test_a_workdir_that_cannot_be_written_just_now_is_not_bad_input(
    tmp_path, config, monkeypatch, number, passes
):
    """Under a launcher its exit status is 1: 2 tells a scheduler that no restart can mend it."""

    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(workdir_lib, "write_bytes", fails)
    with pytest.raises(ConfigError, match="cannot be written") as refused:
        workdir_lib.claim(tmp_path, config)
    assert refused.value.may_pass is passes


HOLDER = """
import sys, time
from polaris_jax.run import workdir
from polaris_jax.config import build_config, default_config
claim = workdir.claim(sys.argv[1], build_config(default_config()))
print("jax" in sys.modules, flush=True)
time.sleep(60)
"""


def test_two_trainings_do_not_share_a_workdir_and_a_kill_leaves_no_lock(tmp_path, config):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "False\n"  # and claiming brings in no jax
        with pytest.raises(
            ConfigError, match=rf"already runs in it \(pid {holder.pid} on "
        ) as refused:
            workdir_lib.claim(tmp_path, config)
        assert refused.value.may_pass
        # The other processes of the same run do not claim it again.
        assert workdir_lib.claim(tmp_path, config, primary=False).status == "resume"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with workdir_lib.claim(tmp_path, config) as claim:
        assert claim.status == "resume"


def test_notes_and_the_mark_of_a_timeout_outlive_a_resume(tmp_path, config):
    workdir_lib.claim(tmp_path, config).release()
    workdir_lib.note(tmp_path, devices=["cpu"])
    workdir_lib.mark_nondeterministic(tmp_path)
    workdir_lib.claim(tmp_path, config).release()
    assert record_of(tmp_path)["devices"] == ["cpu"]
    assert record_of(tmp_path)["deterministic"] is False


def test_rollouts_are_deterministic_and_cut_back_to_a_step(tmp_path):
    rows = [{"text": "é\n", "reward": 1.0}, {"reward": 0.0, "text": "b"}]
    for step in (0, 1, 2, 10):
        workdir_lib.write_rollouts(tmp_path, step, rows)
    lines = workdir_lib.rollouts_path(tmp_path, 2).read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    before = workdir_lib.rollouts_path(tmp_path, 1).read_bytes()
    time.sleep(0.01)
    workdir_lib.write_rollouts(tmp_path, 1, [dict(reversed(row.items())) for row in rows])
    assert workdir_lib.rollouts_path(tmp_path, 1).read_bytes() == before
    (tmp_path / "rollouts" / "step_000000.jsonl.partial").write_text("torn")
    (tmp_path / "rollouts" / "notes.txt").write_text("mine")
    workdir_lib.delete_rollouts_from(tmp_path, 2)
    left = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert left == ["notes.txt", "step_000000.jsonl", "step_000001.jsonl"]
    workdir_lib.delete_rollouts_from(tmp_path / "nowhere", 0)


def test_write_json_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "stages.json"
    workdir_lib.write_json(path, [{"b": 1, "a": 2.5}])
    before = path.read_bytes()
    workdir_lib.write_json(path, [{"a": 2.5, "b": 1}])
    assert path.read_bytes() == before

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        workdir_lib.write_json(path, [1])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["stages.json"]
    with pytest.raises(ValueError):
        workdir_lib.write_json(path, [float("nan")])
    assert path.read_bytes() == before


WORKDIR = "gs://bucket/run"


def test_the_newest_run_wins_and_the_older_one_is_told(bucket):
    config = build_config(default_config())
    older = workdir_lib.claim(WORKDIR, config)
    older.check()
    newer = workdir_lib.claim(WORKDIR, config)
    assert (older.status, newer.status) == ("new", "resume")
    with pytest.raises(TakenOver, match=r"workdir=gs://bucket/run: another run has taken it over"):
        older.check()
    older.release()  # must not remove the token of the newer one
    newer.check()
    newer.release()
    assert "bucket/run/.lock" not in bucket.objects


def test_a_run_of_another_config_does_not_put_the_owner_out(bucket):
    config = build_config(default_config())
    owner = workdir_lib.claim(WORKDIR, config)
    changed = dataclasses.replace(config.optimizer, learning_rate=0.5)
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate"):
        workdir_lib.claim(WORKDIR, dataclasses.replace(config, optimizer=changed))
    owner.check()


def test_overwrite_empties_the_workdir_of_what_training_made(bucket):
    config = build_config(default_config())
    workdir_lib.claim(WORKDIR, config).release()
    for name in (
        "metrics.jsonl",
        "checkpoints/4/MANIFEST.json",
        "checkpoints/4.unfinished",
        "mine",
    ):
        bucket.put(f"bucket/run/{name}", b"x")
    with workdir_lib.claim(WORKDIR, config, overwrite=True) as claim:
        assert claim.status == "new"
        left = {name.removeprefix("bucket/run/") for name in bucket.objects}
        assert left == {"mine", "run.json", ".lock"}
