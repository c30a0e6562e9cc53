"""One program compiled for virtual devices: its bytes, and the lock that keeps libtpu to one."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polaris_jax.plan.compile import compile_program, device_bytes
from polaris_jax.rollout.programs.abstract import AbstractProgram

ROOT = Path(__file__).parents[2]
MESH = Mesh(np.array(jax.devices()[:4]), ("x",))


def abstract(shape, spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(MESH, PartitionSpec(*spec)))


def test_bytes_of_a_device_count_shards():
    tree = {"split": abstract((8, 16), ("x",)), "whole": abstract((3,), (), jnp.bfloat16)}
    assert device_bytes(tree) == 8 * 16 * 4 // 4 + 3 * 2


def test_a_donated_argument_is_not_counted_twice():
    total = abstract((64, 64), ("x",))
    fn = jax.jit(lambda total, x: total + x, donate_argnums=0)
    done, _ = compile_program(
        AbstractProgram("add", fn, (total, abstract((64, 64), ("x",)))), devices=4, platform="cpu"
    )
    shard = 64 * 64 * 4 // 4
    assert (done.argument, done.output, done.alias) == (2 * shard, shard, shard)
    assert done.total == 2 * shard + done.temporary + done.code
    assert not done.refusal


HOLD = """
import sys
from pathlib import Path
from polaris_jax.plan.compile import hold_libtpu

def say(text):
    print(text, flush=True)

hold_libtpu(say)
hold_libtpu(say)  # it is held already
say("held")
sys.stdin.read()
"""


def test_a_second_plan_waits_until_the_first_has_ended_and_says_so(tmp_path):
    env = os.environ | {"POLARIS_PLAN_LOCK": str(tmp_path / "lock"), "PYTHONPATH": str(ROOT)}

    def start():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", HOLD], env=env, text=True, **pipes)

    with start() as first, start() as second:
        said = {process: process.stdout.readline().strip() for process in (first, second)}
        waiting, holding = sorted((first, second), key=lambda process: said[process] == "held")
        assert said[holding] == "held"
        assert "another plan holds libtpu" in said[waiting]
        holding.communicate()
        assert waiting.communicate()[0].strip() == "held"
