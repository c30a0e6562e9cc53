"""In an object store the newest run owns the workdir, and a refused one changes nothing."""

import dataclasses

import pytest

from polaris_jax.config import ConfigError, build_config, default_config
from polaris_jax.run import workdir as workdir_lib
from polaris_jax.run.ownership import TakenOver

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
