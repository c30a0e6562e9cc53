"""Checkpoints: bit for bit, whole or passed over, and never in the way of the next one."""

import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from polaris_jax.checkpoint import Checkpointer, CheckpointError, step_folders
from polaris_jax.checkpoint import checkpointer as checkpoint_lib
from polaris_jax.config import ConfigError
from polaris_jax.models import Decoder, ModelConfig, param_shapes
from polaris_jax.run.owner import TakenOver

TINY = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    max_position_embeddings=64,
    tie_embeddings=True,
    qkv_bias=True,
    qk_norm=False,
)
HOST = {"stage": 1, "ids": ["a", "é"], "logp": [-0.1, 1e-300], "none": None}


def mesh_of(shape):
    axes = ("data", "fsdp")
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(shape, axes, axis_types=types, devices=jax.devices()[: np.prod(shape)])


def tree(seed=0):
    key = jax.random.key(seed)
    return {
        "params": jax.random.normal(key, (8, 6)),
        "half": jax.random.normal(key, (8, 4), jnp.bfloat16),
        "ids": jax.random.randint(key, (5,), -(2**31), 2**31 - 1),
        "opt": (jnp.float32(jnp.nan), {"count": jnp.int32(seed), "flag": jnp.bool_(True)}),
    }


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def saver(tmp_path, warnings):
    return Checkpointer(tmp_path / "checkpoints", keep_last=2, warn=warnings.append)


def names_in(saver):
    return sorted(path.name for path in saver.directory.iterdir())


# ---- what comes back


def test_every_leaf_comes_back_bit_for_bit_with_its_type_and_host_state(saver):
    state = tree()
    saver.save(7, state, HOST)
    restored, host = saver.restore(7, abstract(state))
    assert bits(restored) == bits(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert [x.dtype for x in jax.tree.leaves(restored)] == [x.dtype for x in jax.tree.leaves(state)]
    assert host == HOST


def test_a_model_is_a_tree_like_any_other(saver):
    rng = np.random.default_rng(0)
    shapes = param_shapes(TINY)
    model = Decoder.from_params(
        TINY, {p: jnp.asarray(rng.normal(size=s), jnp.float32) for p, s in shapes.items()}
    )
    saver.save(0, {"params": model, "step": jnp.int32(3)}, {})
    like = jax.eval_shape(lambda key: Decoder.init(TINY, key), jax.random.key(0))
    restored, _ = saver.restore(0, {"params": like}, partial=True)
    assert isinstance(restored["params"], Decoder)
    assert bits(restored["params"]) == bits(model)


@pytest.mark.parametrize(
    ("saved_on", "restored_on"),
    [((2, 4), (2, 4)), ((2, 4), (1, 2)), ((1, 1), (2, 4)), ((4, 2), (2, 4))],
    ids=["same", "fewer devices", "more devices", "another mesh"],
)
def test_restores_onto_any_sharding(saver, saved_on, restored_on):
    def placed(shape):
        mesh = mesh_of(shape)
        specs = {
            "params": PartitionSpec("fsdp"),
            "half": PartitionSpec(None, "fsdp"),
            "ids": PartitionSpec(),
        }
        leaves = {k: v for k, v in tree().items() if k in specs}
        return {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in leaves.items()}

    state, like = placed(saved_on), placed(restored_on)
    saver.save(1, state, {})
    restored, _ = saver.restore(1, abstract(like))
    assert bits(restored) == bits(state)
    for name, leaf in restored.items():
        assert leaf.sharding.is_equivalent_to(like[name].sharding, leaf.ndim), name


def test_an_array_that_was_free_to_move_stays_so(saver):
    mesh = mesh_of((2, 4))
    sharded = jax.device_put(jnp.ones((8, 2)), NamedSharding(mesh, PartitionSpec("fsdp")))
    state = {"w": sharded, "step": jnp.int32(3)}
    saver.save(0, state, {})
    restored, _ = saver.restore(0, state)
    out = jax.jit(lambda s: s["w"] + s["step"])(restored)  # refused if step were committed
    assert float(out[0, 0]) == 4.0
    assert restored["w"].committed


def test_host_state_may_hold_numpy_scalars_and_comes_back_plain(saver):
    host = {"i": np.int64(2**40), "f": np.float32(0.1), "b": np.bool_(True), "t": (1, (2,))}
    saver.save(0, {"w": jnp.ones(2)}, host)
    _, back = saver.restore(0, {"w": jnp.ones(2)})
    assert back == {"i": 2**40, "f": float(np.float32(0.1)), "b": True, "t": [1, [2]]}


def test_host_state_may_hold_arrays_and_they_come_back_bit_for_bit(saver):
    arrays = {
        "i": np.arange(7, dtype=np.int32),
        "big endian": np.arange(3, dtype=">f8") / 3,
        "columns": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "empty": np.zeros((0, 4), np.int64),
        "scalar": np.array(True),
    }
    saver.save(3, {"w": jnp.ones(2)}, {"rows": [{"x": x} for x in arrays.values()], "n": 1})
    _, back = saver.restore(3, {"w": jnp.ones(2)})
    assert back["n"] == 1
    for saved, read in zip(arrays.values(), back["rows"], strict=True):
        assert read["x"].dtype == saved.dtype.newbyteorder("=")
        assert read["x"].shape == saved.shape
        assert np.array_equal(read["x"], saved)
        assert read["x"].flags.writeable  # memory of its own


def test_a_flipped_bit_in_the_arrays_of_the_host_state_is_found(saver):
    saver.save(3, {"w": jnp.ones(2)}, {"x": np.zeros(8, np.int32)})
    path = saver.directory / "3" / "host.bin"
    assert path.stat().length == 32
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    assert Checkpointer(saver.directory, warn=lambda text: None).latest() is None


def test_equal_host_states_give_equal_bytes(saver):
    for step, host in enumerate(({"a": 1, "b": [2.5]}, {"b": [2.5], "a": 1})):
        saver.save(step, {"w": jnp.ones(2)}, host)
    files = [(saver.directory / str(step) / "host.json").read_bytes() for step in (0, 1)]
    assert files[0] == files[1] == b'{"a":1,"b":[2.5]}'


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"table": {1: 2}}, r"host\.table has the key 1"),
        ({"rows": [{"x": {None: 1}}]}, r"host\.rows\[0\]\.x has the key None"),
        ({"array": np.array(["a"])}, "ndarray"),
        ({"x": {"__array__": 1}}, r"host\.x has the key '__array__', which marks an array"),
    ],
    ids=["int key", "None key", "array of texts", "key of an array"],
)
def test_host_state_that_would_not_come_back_is_refused_before_anything_is_written(
    saver, host, words
):
    with pytest.raises(ValueError, match=words):
        saver.save(0, {"w": jnp.ones(2)}, host)
    assert not saver.directory.exists()


def test_a_numpy_leaf_is_refused_by_name(saver):
    with pytest.raises(ValueError, match="opt/count is a int64"):
        saver.save(0, {"opt": {"count": np.int64(1)}}, {})


# ---- which ones there are


def test_keep_last_deletes_the_oldest(saver):
    for step in (2, 4, 10, 12):
        saver.save(step, tree(step), {"step": step})
    assert saver.steps() == [10, 12]
    assert names_in(saver) == ["10", "12"]
    assert saver.latest() == saver.newest_saved == 12
    assert saver.restore(10, tree())[1] == {"step": 10}


def test_nothing_yet(saver):
    assert saver.latest() is None
    assert saver.newest_saved is None
    assert saver.steps() == []
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        saver.latest_or_error()


def test_saving_a_step_again_replaces_it(saver):
    saver.save(3, tree(0), {"n": 0})
    saver.save(3, tree(1), {"n": 1})
    restored, host = saver.restore(3, tree())
    assert host == {"n": 1}
    assert bits(restored) == bits(tree(1))
    assert names_in(saver) == ["3"]


def test_a_disk_that_fails_once_a_checkpoint_is_whole_is_no_failure(saver, monkeypatch, warnings):
    def refuse(directory):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    saver.save(1, tree(1), {"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(step_folders, "delete_others", refuse)
        saver.save(2, tree(2), {"n": 2})
    assert saver.latest() == 2
    saver.save(3, tree(3), {"n": 3})
    assert names_in(saver) == ["2", "3"]
    assert not warnings


def test_what_a_user_names(saver, tmp_path):
    for step in (1, 2):
        saver.save(step, tree(step), {"step": step})
    for path in (tmp_path, tmp_path / "checkpoints"):
        assert Checkpointer.of(path).latest_or_error() == 2
    one = Checkpointer.of(tmp_path / "checkpoints" / "1")
    assert one.latest_or_error() == 1
    assert one.restore(1, tree())[1] == {"step": 1}
    with pytest.raises(ConfigError, match="no such directory"):
        Checkpointer.of(tmp_path / "elsewhere")
    workdir = tmp_path / "7"
    Checkpointer(workdir / "checkpoints").save(3, tree(), {})
    assert Checkpointer.of(workdir).latest_or_error() == 3


def test_keep_last_below_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="keep_last=0"):
        Checkpointer(tmp_path, keep_last=0)


# ---- damage


def flip_a_bit(step_dir: Path):
    path = max((step_dir / "arrays" / "d").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(step_dir: Path):
    path = max((step_dir / "arrays" / "d").iterdir(), key=lambda p: p.stat().st_size)
    os.truncate(path, path.stat().st_size - 1)


def empty(step_dir: Path):
    for path in sorted(step_dir.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


DAMAGE = {
    "flipped bit": (flip_a_bit, "does not match its checksum"),
    "truncated": (truncate, "bytes, expected"),
    "empty": (empty, "the directory is empty"),
    "no manifest": (lambda d: (d / step_folders.MANIFEST).unlink(), "MANIFEST.json is missing"),
    "torn manifest": (lambda d: os.truncate(d / step_folders.MANIFEST, 50), "cannot be read"),
    "missing file": (lambda d: (d / "host.json").unlink(), "host.json is missing"),
    "foreign file": (lambda d: (d / "notes").write_text("x"), "notes does not belong"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_falls_back_to_the_last_whole_one_and_does_not_block_the_retry(
    saver, warnings, name
):
    damage, reason = DAMAGE[name]
    for step in (2, 4):
        saver.save(step, tree(step), {"step": step})
    damage(Path(saver.directory / "4"))
    fresh = Checkpointer(saver.directory, keep_last=1, warn=warnings.append)
    assert fresh.latest() == 2
    (warning,) = warnings
    assert "checkpoint 4 " in warning
    assert reason in warning
    restored, host = fresh.restore(2, tree())
    assert host == {"step": 2}
    assert bits(restored) == bits(tree(2))
    with pytest.raises(CheckpointError, match=r"checkpoint 4 .* is not whole"):
        fresh.restore(4, tree())
    fresh.save(4, tree(5), {"again": True})
    assert fresh.latest() == 4
    assert fresh.restore(4, tree())[1] == {"again": True}
    assert fresh.steps() == [4]
    assert names_in(fresh) == ["4"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, None])
@pytest.mark.parametrize("place", ["_crc32", "read_bytes", "is_folder", "is_there"])
def test_a_disk_that_does_not_answer_is_no_damage(saver, warnings, monkeypatch, place, number):
    for step in (2, 4):
        saver.save(step, tree(step), {"step": step})

    def no_answer(path, **_):
        raise OSError(number, "no answer") if number else OSError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(step_folders, place, no_answer)
        fresh = Checkpointer(saver.directory, warn=warnings.append)
        with pytest.raises(OSError, match="no answer") as error:
            fresh.latest()
        if place in ("_crc32", "read_bytes"):
            assert error.value.filename == str(saver.directory / "4")
            assert "start again once it can be read" in str(error.value)
            with pytest.raises(CheckpointError, match="could not be saved"):
                fresh.save(4, tree(4), {"step": 4})  # what lies there may be whole
    assert not warnings
    assert Checkpointer(saver.directory, warn=warnings.append).latest() == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_the_right_to_read_it_is_no_absent_one(saver):
    saver.save(2, tree(2), {"step": 2})
    saver.directory.chmod(0)
    try:
        with pytest.raises(PermissionError):
            Checkpointer(saver.directory).latest()
    finally:
        saver.directory.chmod(0o755)


def test_an_empty_step_directory_is_passed_over(saver, warnings):
    saver.save(3, tree(), {})
    (saver.directory / "4").mkdir()
    (saver.directory / "notes").mkdir()
    assert saver.latest() == 3
    assert len(warnings) == 1


def test_a_torn_one_does_not_count_among_those_kept(saver):
    for step in (2, 4):
        saver.save(step, tree(step), {})
    flip_a_bit(Path(saver.directory / "4"))
    fresh = Checkpointer(saver.directory, keep_last=2, warn=lambda text: None)
    assert fresh.latest() == 2
    fresh.save(6, tree(6), {})
    assert fresh.steps() == [2, 6]


class Killed(BaseException):
    """Ends a save at once, with no clean-up: what kill -9 leaves on the disk."""


# Every call of ours that changes names on the disk. Orbax's are behind `_orbax`: it makes them in
# other threads, and only inside a folder that no manifest names yet.
DEADLY = (
    (os, "mkdir"),
    (os, "replace"),
    (os, "rename"),
    (os, "remove"),
    (os, "unlink"),
    (os, "rmdir"),
    (checkpoint_lib, "_orbax"),
    (step_folders, "sync_and_sum"),
)


def killed_at(moment, monkeypatch, save):
    """Runs `save` until its call number `moment`; whether it came to its end."""
    calls = 0

    def deadly(function):
        def call(*args, **kwargs):
            nonlocal calls
            if threading.current_thread() is threading.main_thread():
                if calls == moment:
                    raise Killed  # from here on nothing changes any more
                calls += 1
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in DEADLY:
            patch.setattr(owner, name, deadly(getattr(owner, name)))
        try:
            save()
        except Killed:
            return False
    return True


def test_one_step_that_was_asked_for_falls_back_to_none(saver, warnings):
    for step in (2, 4):
        saver.save(step, tree(step), {"step": step})
    damage, reason = DAMAGE["flipped bit"]
    damage(Path(saver.directory / "4"))
    asked = Checkpointer.of(saver.directory / "4", warn=warnings.append)
    with pytest.raises(ConfigError, match="no whole checkpoint 4 in it"):
        asked.latest_or_error()
    (warning,) = warnings
    assert reason in warning
    assert "falling back" not in warning


@pytest.mark.parametrize("replacing", [False, True], ids=["new step", "same step"])
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_one(tmp_path, monkeypatch, replacing):
    first, second = (4, 4) if replacing else (2, 4)
    saver = Checkpointer(tmp_path / "before", keep_last=2)
    saver.save(first, tree(1), {"n": 1})
    if not replacing:
        saver.save(3, tree(1), {"n": 1})  # so that the save also prunes
    finished, moment = False, 0
    while not finished:
        folder = tmp_path / str(moment)
        shutil.copytree(tmp_path / "before", folder)
        saver = Checkpointer(folder, keep_last=2)
        finished = killed_at(moment, monkeypatch, lambda: saver.save(second, tree(2), {"n": 2}))  # noqa: B023
        fresh = Checkpointer(folder, keep_last=2, warn=pytest.fail)
        latest = fresh.latest()
        assert latest is not None, moment
        assert latest >= (first if replacing else 3), moment
        restored, host = fresh.restore(latest, tree())
        assert bits(restored) == bits(tree(host["n"])), moment
        assert host == {"n": 2} or not finished
        fresh.save(second, tree(2), {"n": 2})
        assert Checkpointer(folder, warn=pytest.fail).latest() == second
        assert names_in(fresh) == (["4"] if replacing else ["3", "4"]), moment
        moment += 1
    assert moment > 10  # the moments are there


# ---- a disk that refuses

FILE_LIMIT_BYTES = 100_000


@pytest.fixture
def file_size_limit():
    """Files over 100 kB cannot be written: a refusal that needs no full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_a_refused_write_is_one_line_and_keeps_the_last_good_one(saver, file_size_limit):
    saver.save(1, tree(), {"n": 1})
    large = {"w": jax.random.normal(jax.random.key(0), (500, 1000))}
    with pytest.raises(CheckpointError) as caught:
        saver.save(2, large, {})
    text = str(caught.value)
    assert "\n" not in text
    assert "checkpoint 2 could not be saved" in text
    assert "File too large" in text
    assert "checkpoint 1 is kept" in text
    assert names_in(saver) == ["1"]
    saver.save(2, tree(), {"n": 2})
    assert saver.latest() == 2


def test_a_disk_that_fills_up_at_the_very_end(saver, monkeypatch):
    saver.save(1, tree(), {"n": 1})

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(step_folders, "write_manifest", full)
        with pytest.raises(CheckpointError, match=r"No space left on device; free some space"):
            saver.save(2, tree(), {"n": 2})
    assert names_in(saver) == ["1"]
    assert saver.latest() == 1


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root on Linux"
)
def test_a_really_full_disk(tmp_path, warnings):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this sandbox allows no mounts")
    try:
        saver = Checkpointer(folder / "checkpoints", warn=warnings.append)
        saver.save(1, tree(), {"n": 1})
        large = {"w": jax.random.normal(jax.random.key(0), (1000, 1000))}
        with pytest.raises(CheckpointError, match=r"No space left.*checkpoint 1 is kept"):
            saver.save(2, large, {})
        assert names_in(saver) == ["1"]
        saver.save(2, tree(), {"n": 2})
        assert saver.latest() == 2
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# ---- another architecture


def test_another_architecture_names_the_fields_before_any_array_is_read(tmp_path, monkeypatch):
    saved = {"hidden_size": 16, "num_layers": 2, "rope_scaling": None}
    other = {"hidden_size": 32, "num_layers": 2, "rope_scaling": {"factor": 1.5}}
    Checkpointer(tmp_path, architecture=saved).save(1, tree(), {})
    monkeypatch.setattr(checkpoint_lib, "_orbax", lambda: pytest.fail("an array was read"))
    with pytest.raises(ConfigError) as caught:
        Checkpointer(tmp_path, architecture=other).restore(1, tree())
    text = str(caught.value)
    assert "hidden_size=16 there, 32 here" in text
    assert "rope_scaling=None there, {'factor': 1.5} here" in text
    assert "num_layers" not in text


def test_other_shapes_are_named_even_without_an_architecture(saver, monkeypatch):
    saver.save(1, {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, {})
    monkeypatch.setattr(checkpoint_lib, "_orbax", lambda: pytest.fail("an array was read"))
    with pytest.raises(ConfigError) as caught:
        saver.restore(1, {"w": jnp.ones((2, 4)), "c": jnp.ones(3, jnp.bfloat16)})
    text = str(caught.value)
    assert "w is float32[2,3] there, float32[2,4] here" in text
    assert "b is float32[3] there, absent here" in text
    assert "c is absent there, bfloat16[3] here" in text
    with pytest.raises(ConfigError, match="c is absent there"):
        saver.restore(1, {"c": jnp.ones(3)}, partial=True)


def test_the_manifest_records_config_and_architecture(tmp_path):
    Checkpointer(tmp_path, config_hash="abc", architecture={"a": (1, 2)}).save(5, tree(), {})
    facts = json.loads((tmp_path / "5" / step_folders.MANIFEST).read_text())
    assert (facts["step"], facts["config_hash"]) == (5, "abc")
    assert facts["architecture"] == {"a": [1, 2]}
    assert facts["arrays"]["half"] == ["bfloat16", [8, 4]]


# ---- in processes of their own


QUIET = """
import resource, signal, sys
import jax, jax.numpy as jnp
from polaris_jax.checkpoint import Checkpointer, CheckpointError
saver = Checkpointer(sys.argv[1])
saver.save(saver.latest() + 2, {"w": jnp.ones(3)}, {})
saver.restore(3, {"w": jnp.ones(3)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    saver.save(4, {"w": jax.random.normal(jax.random.key(0), (500, 1000))}, {})
except CheckpointError:
    print(sorted({"torch", "tensorflow"} & set(sys.modules)))
"""


def test_stderr_has_the_warning_alone_and_nothing_heavy_is_imported(saver):
    saver.save(1, tree(), {})
    (saver.directory / "2").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(saver.directory), str(FILE_LIMIT_BYTES)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
    assert done.stderr == (  # and none of orbax's stack traces
        f"warning: checkpoint 2 in {saver.directory} is not whole: the directory is empty; falling "
        "back to an older one\n"
    )


TWO_PROCESSES = textwrap.dedent(
    """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    from polaris_jax.checkpoint import Checkpointer
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    def make(spec, n):
        sharding = NamedSharding(mesh, spec)
        full = np.random.default_rng(n).normal(size=(16, 4)).astype(np.float32)
        return jax.make_array_from_callback(full.shape, sharding, lambda i: full[i])
    def state(n):
        return {"w": make(PartitionSpec("fsdp"), n), "r": make(PartitionSpec(), n + 100)}
    saver = Checkpointer(sys.argv[3], keep_last=1)
    assert saver.latest() is None
    for step in (1, 2):
        saver.save(step, state(step), {"step": step})
    assert saver.latest() == 2
    fresh = Checkpointer(sys.argv[3])
    restored, host = fresh.restore(2, state(0))
    assert host == {"step": 2}
    for name, leaf in state(2).items():
        assert restored[name].sharding == leaf.sharding
        for a, b in zip(restored[name].addressable_shards, leaf.addressable_shards, strict=True):
            assert np.array_equal(a.data, b.data), name
    print("ok", flush=True)
    jax.distributed.shutdown()
    """
)


def test_two_processes_write_one_checkpoint_that_one_process_reads(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    folder = tmp_path / "checkpoints"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, address, str(i), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for i in range(2)
    ]
    outputs = [child.communicate(timeout=120) for child in children]
    for out, err in outputs:
        assert out.endswith("ok\n"), err
    saver = Checkpointer(folder)
    assert saver.steps() == [2]  # keep_last=1
    assert (folder / "2" / "arrays" / "ocdbt.process_1").is_dir()  # both have written
    restored, _ = saver.restore(2, {k: jax.ShapeDtypeStruct((16, 4), jnp.float32) for k in "wr"})
    full = np.random.default_rng(2).normal(size=(16, 4)).astype(np.float32)
    assert np.array_equal(restored["w"], full)


def test_a_copy_under_another_number_is_no_checkpoint(tmp_path):
    saver = Checkpointer(tmp_path)
    saver.save(8, tree(8), {})
    shutil.copytree(tmp_path / "8", tmp_path / "99")
    warnings = []
    assert Checkpointer(tmp_path, warn=warnings.append).latest() == 8
    assert "checkpoint 99" in warnings[0] and "that of step 8" in warnings[0]
    assert Checkpointer(tmp_path).steps() == [8]


@pytest.mark.parametrize("name", ["\u00b2", "08", "+8", "8 ", "8" * 30], ids=ascii)
def test_only_decimal_names_are_steps(tmp_path, name):
    saver = Checkpointer(tmp_path, warn=pytest.fail)
    saver.save(8, tree(8), {})
    shutil.copytree(tmp_path / "8", tmp_path / name)
    fresh = Checkpointer(tmp_path, warn=pytest.fail)
    assert fresh.latest() == 8
    fresh.save(9, tree(9), {})
    assert (tmp_path / name).is_dir()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", []),
        ("files", {"host.json": 7}),
        ("files", {"host.json": {"size": "7", "crc32": 1}}),
        ("files", {"host.json": {"size": 7}}),
        ("files", None),
        ("step", "8"),
        ("step", True),
        ("data", "../6/"),
        ("data", 3),
        ("arrays", {"params": ["float32", "8"]}),
        ("arrays", {"params": ["float32", [8, -6]]}),
        ("arrays", 3),
        ("architecture", []),
        ("config_hash", 5),
        ("format", [1]),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_manifest_of_other_types_falls_back(tmp_path, field, value):
    saver = Checkpointer(tmp_path)
    for step in (6, 8):
        saver.save(step, tree(step), {})
    body = step_folders.read_manifest(tmp_path / "8") | {field: value}
    body["self"] = zlib.crc32(step_folders._canonical(body))
    (tmp_path / "8" / "MANIFEST.json").write_text(json.dumps(body))
    warnings = []
    assert Checkpointer(tmp_path, warn=warnings.append).latest() == 6
    assert "checkpoint 8" in warnings[0] and "MANIFEST.json" in warnings[0]


def test_what_a_kill_left_goes_when_the_run_is_opened_again(tmp_path):
    saver = Checkpointer(tmp_path, keep_last=3)
    for step in (4, 6, 8):
        saver.save(step, tree(step), {})
    shutil.copytree(tmp_path / "4", tmp_path / "10")  # killed while it was written
    (tmp_path / "10" / "MANIFEST.json").unlink()
    (tmp_path / "10.unfinished").touch()
    finished = Checkpointer(tmp_path, keep_last=2, warn=pytest.fail)
    assert finished.latest() == 8
    finished.tidy()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["6", "8"]
    assert Checkpointer(tmp_path, warn=pytest.fail).latest() == 8


def test_nothing_is_tidied_in_a_directory_that_another_run_owns(tmp_path):
    def taken():
        raise TakenOver("taken")

    for step in (4, 6, 8):
        Checkpointer(tmp_path, keep_last=3).save(step, tree(step), {})
    with pytest.raises(TakenOver):
        Checkpointer(tmp_path, keep_last=1, may_write=taken).tidy()
    assert Checkpointer(tmp_path).steps() == [4, 6, 8]


FEW_DESCRIPTORS = """
import gc, os, resource, sys
import jax.numpy as jnp
from polaris_jax.checkpoint import Checkpointer, CheckpointError
tree = {f"a{i}": jnp.ones((4, 4)) for i in range(8)}
checkpointer = Checkpointer(sys.argv[1])
checkpointer.save(1, tree, {})
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
for spare in (0, 1, 3, 8, 12, 40):
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, most))
    for work in (lambda: checkpointer.save(2, tree, {}), lambda: checkpointer.restore(1, tree)):
        try:
            work()
            print("done")
        except CheckpointError as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
gc.collect()
checkpointer.save(2, tree, {})
print(checkpointer.latest())
"""


def test_without_file_descriptors_a_save_is_one_line_and_no_traceback(tmp_path):
    command = [sys.executable, "-c", FEW_DESCRIPTORS, str(tmp_path / "steps")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    *lines, newest = ran.stdout.splitlines()
    assert (ran.returncode, ran.stderr, newest) == (0, "", "2")
    assert len(lines) == 12
    assert all("Too many open files" in line for line in lines), lines
    assert all("`ulimit -n`" in line for line in lines[::2])
