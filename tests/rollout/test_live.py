"""Compilations are counted inside the block, for this thread, and the listener goes with it."""

import gc
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
from jax._src import monitoring

from polaris_jax.rollout.live import CompileCounter


def compile_something(size: int) -> None:
    jax.jit(lambda x: 2 * x + size)(jnp.zeros(size)).block_until_ready()


def test_only_the_block_counts():
    counter = CompileCounter()
    compile_something(3)
    assert counter.count == 0
    argument = jnp.zeros(5)
    fresh = jax.jit(lambda x: 3 * x)
    with counter:
        fresh(argument)
        fresh(argument)
    assert counter.count == 1


COUNT_ONE = """
import jax, jax.numpy as jnp
from polaris_jax.rollout.live import CompileCounter
argument, hits, counter = jnp.zeros(5), [], CompileCounter()
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
with counter:
    jax.jit(lambda x: 3 * x)(argument)
print(counter.count, sum(hits))
"""


def test_a_program_out_of_the_compilation_cache_counts_too(tmp_path):
    keep_all = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    for hits in (0, 1):
        out = subprocess.check_output(
            [sys.executable, "-c", COUNT_ONE], env=os.environ | keep_all, text=True
        )
        assert out.split() == ["1", str(hits)]


def test_other_threads_do_not_count():
    counter = CompileCounter()
    with counter:
        thread = threading.Thread(target=compile_something, args=(7,))
        thread.start()
        thread.join()
    assert counter.count == 0


def test_the_listener_goes_with_the_counter():
    before = len(monitoring.get_event_duration_listeners())
    counter = CompileCounter()
    assert len(monitoring.get_event_duration_listeners()) == before + 1
    del counter
    gc.collect()
    assert len(monitoring.get_event_duration_listeners()) == before
