"""One program compiled for virtual devices: its bytes, and the lock that keeps libtpu to one."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polaris_jax.plan.compile import Program, compile_program, device_bytes, only_libtpu_user

MESH = Mesh(np.array(jax.devices()[:4]), ("x",))


def abstract(shape, spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(MESH, PartitionSpec(*spec)))


def test_bytes_of_a_device_count_shards():
    tree = {"split": abstract((8, 16), ("x",)), "whole": abstract((3,), (), jnp.bfloat16)}
    assert device_bytes(tree) == 8 * 16 * 4 // 4 + 3 * 2


def test_a_donated_argument_is_not_counted_twice():
    total = abstract((64, 64), ("x",))
    fn = jax.jit(lambda total, x: total + x, donate_argnums=0)
    done = compile_program(
        Program("add", fn, (total, abstract((64, 64), ("x",)))), devices=4, platform="cpu"
    )
    shard = 64 * 64 * 4 // 4
    assert (done.argument, done.output, done.alias) == (2 * shard, shard, shard)
    assert done.total == 2 * shard + done.temporary + done.code
    assert not done.refusal


def test_a_second_plan_waits_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("POLARIS_PLAN_LOCK", str(tmp_path / "lock"))
    said, entered = [], threading.Event()

    def second():
        with only_libtpu_user(said.append):
            entered.set()

    with only_libtpu_user(said.append):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
    thread.join(10)
    assert entered.is_set()
    assert len(said) == 1
    assert "another plan holds libtpu" in said[0]
