"""A whole run in an object store, by its real clients: gcsfs for files, tensorstore for arrays."""

import json
import time

import numpy as np
import pytest

from tests.support import fake_bucket
from tests.support.micro_run import final_leaves, finish, flags, make_base, start_train

pytestmark = pytest.mark.slow
WORKDIR = "gs://bucket/runs/one"
METRICS = "bucket/runs/one/metrics.jsonl"


@pytest.fixture
def bucket(monkeypatch):
    pytest.importorskip("gcsfs", reason="pip install '.[gcs]'")
    bucket = fake_bucket.Bucket()
    yield bucket
    bucket.close()


def upload(bucket, name, folder):
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.put(f"bucket/{name}/{path.relative_to(folder)}", path.read_bytes())


def wait_for_step(bucket, process, step, timeout_s=240):
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends and process.poll() is None:
        if METRICS in bucket.objects and bucket.read(METRICS).count(b"\n") >= step:
            return
        time.sleep(0.05)
    process.kill()
    pytest.fail(process.communicate()[0])


def test_a_killed_run_in_a_bucket_equals_one_on_a_disk(bucket, tmp_path):
    model, problems = make_base(tmp_path)
    upload(bucket, "base", model)
    bucket.put("bucket/data/problems.jsonl", problems.read_bytes())
    finish(start_train(tmp_path / "disk", flags(model, problems)))
    door = fake_bucket.environment(bucket)
    line = flags("gs://bucket/base", "gs://bucket/data/problems.jsonl")

    process = start_train(WORKDIR, line, **door)
    wait_for_step(bucket, process, 5)
    process.kill()
    process.communicate()
    out = finish(start_train(WORKDIR, line, **door))
    assert "resumed at step " in out
    assert "resumed at step 0" not in out
    assert "is not whole" not in out
    disk = tmp_path / "disk"
    assert bucket.read(METRICS) == (disk / "metrics.jsonl").read_bytes()
    assert bucket.read("bucket/runs/one/stages.json") == (disk / "stages.json").read_bytes()
    assert any("/tensorboard/events" in name for name in bucket.names("bucket/runs/one/"))
    assert "bucket/runs/one/checkpoints/tokenizer/tokenizer.json" in bucket.objects

    fetched = tmp_path / "fetched"
    for name in bucket.names("bucket/runs/one/"):
        path = fetched / name.removeprefix("bucket/runs/one/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.read(name))
    there, here = final_leaves(fetched), final_leaves(disk)
    assert there.keys() == here.keys()
    for name, leaf in here.items():
        assert np.array_equal(there[name], leaf), name
    assert "already complete" in finish(start_train(WORKDIR, line, **door))


def test_the_newest_run_owns_the_workdir(bucket, tmp_path):
    model, problems = make_base(tmp_path)
    door, line = fake_bucket.environment(bucket), flags(model, problems)
    older = start_train(WORKDIR, line, **door)
    wait_for_step(bucket, older, 3)
    newer = start_train(WORKDIR, line, **door)
    said, _ = older.communicate(timeout=300)
    assert older.returncode == 1, said
    last = said.strip().splitlines()[-1]
    assert "another run has taken it over (pid" in last
    finish(newer)
    steps = [json.loads(raw)["step"] for raw in bucket.read(METRICS).splitlines()]
    assert steps == list(range(9))
