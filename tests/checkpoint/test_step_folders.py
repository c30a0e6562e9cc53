"""Checkpoints in an object store: no rename, no append, and a whole one after every change."""

from __future__ import annotations

import random

import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.checkpoint import Checkpointer, CheckpointError, step_folders
from polaris_jax.run.owner import TakenOver
from tests.support import fake_bucket

CHECKPOINTS = "gs://bucket/run/checkpoints"


@pytest.fixture(scope="module")
def server():
    bucket = fake_bucket.Bucket()
    yield bucket
    bucket.close()


@pytest.fixture
def bucket(server, monkeypatch):
    server.objects.clear()
    server.on_change = lambda change, name: None
    for name, value in fake_bucket.environment(server).items():
        monkeypatch.setenv(name, value)
    fake_bucket.mount(monkeypatch, server)
    return server


def tree(n):
    return {"w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) + n, "step": jnp.int32(n)}


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in b)


def test_a_checkpoint_comes_back_and_old_ones_go(bucket):
    saver = Checkpointer(CHECKPOINTS, keep_last=2, warn=pytest.fail)
    assert saver.latest() is None
    for step in (2, 4, 6):
        saver.save(step, tree(step), {"n": step})
    fresh = Checkpointer.of("gs://bucket/run", warn=pytest.fail)
    assert fresh.steps() == [4, 6]
    assert fresh.latest() == 6
    restored, host = fresh.restore(6, tree(0))
    assert same(restored, tree(6))
    assert host == {"n": 6}
    (part,) = [fresh.open_arrays(6, ["w"])["w"]]
    assert np.array_equal(part[1].read().result(), tree(6)["w"][1])
    assert {n.split("/")[3] for n in bucket.names("bucket/run/checkpoints/")} == {"4", "6"}


def test_a_damaged_one_is_warned_of(bucket):
    saver = Checkpointer(CHECKPOINTS)
    for step in (2, 4):
        saver.save(step, tree(step), {})
    name = next(n for n in bucket.names("bucket/run/checkpoints/4/") if "/arrays/d/" in n)
    data = bucket.read(name)
    bucket.put(name, data[:-1] + bytes([data[-1] ^ 1]))
    warnings = []
    assert Checkpointer(CHECKPOINTS, warn=warnings.append).latest() == 2
    assert "does not match its checksum" in warnings[0]


@pytest.mark.parametrize("replacing", [False, True], ids=["new step", "same step"])
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_an_end_before_any_change_leaves_a_whole_one(bucket, replacing, every):
    first, second = (4, 4) if replacing else (3, 4)
    saver = Checkpointer(CHECKPOINTS, keep_last=2)
    if not replacing:
        saver.save(2, tree(1), {"n": 1})  # so that the save also prunes
    saver.save(first, tree(1), {"n": 1})
    before = dict(bucket.objects)
    finished, moment = False, 0
    while not finished:
        bucket.objects.clear()
        bucket.objects.update(before)
        left = [moment]

        def refuse(change, name, left=left):
            if left[0] <= 0:
                raise PermissionError(13, "the run has ended", name)
            left[0] -= 1

        bucket.on_change = refuse
        try:
            Checkpointer(CHECKPOINTS, keep_last=2).save(second, tree(2), {"n": 2})
            finished = left[0] > 0
        except CheckpointError:
            pass
        bucket.on_change = lambda change, name: None
        fresh = Checkpointer(CHECKPOINTS, keep_last=2, warn=pytest.fail)
        latest = fresh.latest()
        assert latest in (first, second), moment
        restored, host = fresh.restore(latest, tree(0))
        assert same(restored, tree(host["n"])), moment
        fresh.save(second, tree(2), {"n": 2})
        assert Checkpointer(CHECKPOINTS, warn=pytest.fail).latest() == second
        tops = {n.split("/")[3] for n in bucket.names("bucket/run/checkpoints/")}
        assert tops == ({"4"} if replacing else {"3", "4"}), moment
        moment += every
    assert moment > 20


def test_a_run_that_was_taken_over_neither_commits_nor_sweeps(bucket):
    older_owns = [True]

    def may_write():
        if not older_owns[0]:
            raise TakenOver("another run has taken it over")

    older = Checkpointer(CHECKPOINTS, may_write=may_write)
    older.save(2, tree(2), {})

    def take_over(change, name):
        if name.endswith("host.json"):  # in the middle of the older run's save
            older_owns[0] = False

    bucket.on_change = take_over
    with pytest.raises(TakenOver):
        older.save(4, tree(4), {"whose": "older"})
    bucket.on_change = lambda change, name: None
    newer = Checkpointer(CHECKPOINTS, warn=pytest.fail)
    assert newer.latest() == 2
    newer.save(4, tree(40), {"whose": "newer"})
    with pytest.raises(TakenOver):
        older.save(6, tree(6), {})
    bucket.put("bucket/run/checkpoints/4/data-00000000/arrays/d/late", b"of the older run")
    fresh = Checkpointer(CHECKPOINTS, warn=pytest.fail)
    assert fresh.latest() == 4
    assert same(fresh.restore(4, tree(0))[0], tree(40))


def test_s3_goes_by_a_local_copy(bucket):
    saver = Checkpointer("s3://bucket/run/checkpoints", warn=pytest.fail)
    saver.save(2, tree(2), {"n": 2})
    fresh = Checkpointer("s3://bucket/run/checkpoints", warn=pytest.fail)
    assert fresh.latest() == 2
    restored, host = fresh.restore(2, tree(0))
    assert same(restored, tree(2))
    assert host == {"n": 2}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "arrays" / "d").mkdir(parents=True)
    for name, size in (("arrays/d/data", 3000), ("arrays/empty", 0), ("host.json", 20)):
        (tmp_path / name).write_bytes(random.Random(size).randbytes(size))
    files = step_folders.sync_and_sum(tmp_path, step_folders.list_files(tmp_path))
    step_folders.write_manifest(tmp_path, {"step": 4, "note": "é"}, files)
    step_folders.sync_folders(tmp_path)
    return tmp_path


def test_a_fresh_directory_is_whole_and_its_facts_come_back(folder):
    assert step_folders.fault(folder) is None
    facts = step_folders.read_manifest(folder)
    assert (facts["step"], facts["note"]) == (4, "é")
    assert sorted(facts["files"]) == ["arrays/d/data", "arrays/empty", "host.json"]


def test_every_flipped_bit_is_found(folder):
    rng = random.Random(0)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        data = path.read_bytes()
        for _ in range(min(40, 8 * len(data))):
            bit = rng.randrange(8 * len(data))
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert step_folders.fault(folder) is not None, (path, bit)
        path.write_bytes(data)
    assert step_folders.fault(folder) is None


@pytest.mark.parametrize("name", ["arrays/d/data", "host.json", step_folders.MANIFEST])
def test_every_truncation_is_found_without_reading_checksums(folder, name):
    data = (folder / name).read_bytes()
    for size in (0, 1, len(data) // 2, len(data) - 2):
        (folder / name).write_bytes(data[:size])
        assert step_folders.fault(folder, checksums=False) is not None


def test_missing_and_foreign_files_are_named(folder):
    (folder / "arrays" / "extra").write_text("x")
    assert step_folders.fault(folder) == "arrays/extra does not belong to it"
    (folder / "arrays" / "extra").unlink()
    (folder / "arrays" / "empty").unlink()
    assert step_folders.fault(folder) == "arrays/empty is missing"


def test_hidden_files_of_a_desktop_or_a_network_disk_do_no_harm(folder):
    (folder / ".DS_Store").write_text("x")
    (folder / "arrays" / ".nfs000000001").write_text("x")
    assert step_folders.fault(folder) is None


def test_a_manifest_of_another_format_is_not_trusted(folder, monkeypatch):
    monkeypatch.setattr(step_folders, "FORMAT", 2)
    assert step_folders.fault(folder) == "MANIFEST.json has format 1, this version reads 2"


def test_nothing_is_deleted_while_the_manifest_cannot_be_read(folder):
    (folder / "left").write_bytes(b"by a kill")
    whole = (folder / step_folders.MANIFEST).read_bytes()
    (folder / step_folders.MANIFEST).unlink()
    (folder / step_folders.MANIFEST).mkdir()  # any error of the disk or store
    with pytest.raises(OSError, match="directory"):
        step_folders.delete_others(folder)
    (folder / step_folders.MANIFEST).rmdir()
    (folder / step_folders.MANIFEST).write_bytes(whole)
    step_folders.delete_others(folder)
    assert step_folders.fault(folder) is None
    assert not (folder / "left").exists()


def test_reasons_for_nothing_at_all(tmp_path):
    assert step_folders.fault(tmp_path) == "the directory is empty"
    (tmp_path / "x").write_text("")
    assert step_folders.fault(tmp_path) == "MANIFEST.json is missing"


def test_a_clean_up_follows_no_link(tmp_path):
    """A checkpoint of others may link to folders of ours; a save cleans up what is not named."""
    kept = tmp_path / "outside"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    checkpointer = Checkpointer(tmp_path / "steps")
    checkpointer.save(1, tree(1), {})
    for place in ("x", "arrays/x"):
        (tmp_path / "steps/1" / place).symlink_to(kept)
        assert "does not belong" in (step_folders.fault(tmp_path / "steps/1") or "")
        step_folders.delete_others(tmp_path / "steps/1")
        assert not (tmp_path / "steps/1" / place).exists()
        assert step_folders.fault(tmp_path / "steps/1") is None
    assert (kept / "mine.txt").read_text() == "mine"
