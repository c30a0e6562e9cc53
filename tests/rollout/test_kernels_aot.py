"""The kernels compile for chips that are not here, at Qwen3-4B's shape, with bounded memory.

Nothing runs: numerics are tested on each layout's plain-jax stand-in (test_kv_layouts.py).
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("POLARIS_SHARED", ROOT.parent / "shared"))
TARGET_CONFIG = SHARED / "data" / "h100_target_config.txtpb"
GIB = 1 << 30
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("tpu"), pytest.mark.timeout(3000)]


def compiled(*arguments: str) -> list[dict]:
    """What compile_sampler.py says, a dict a program."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_sampler.py")), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=2900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            ("tpu", "v5p:2x2x1"),
            id="v5p",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
            ),
        ),
        pytest.param(
            ("cuda", "1x1x4", str(TARGET_CONFIG)),
            id="h100",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("jax_cuda12_plugin") is None or not TARGET_CONFIG.exists(),
                reason="jax's CUDA plugin or the H100's target config is missing",
            ),
        ),
    ],
)
def lines(request) -> list[dict]:
    return compiled(*request.param)


def of_programs(lines: list[dict]) -> list[tuple[dict, dict]]:
    """Each decode and prefill program with a small and with a large pool."""
    by_program = defaultdict(list)
    for line in lines:
        if not line["program"].startswith("weight_sync"):
            by_program[line["program"], line["data"], line["tensor"]].append(line)
    assert len(by_program) == 5
    return [(small, large) for small, large in by_program.values()]


def test_the_pool_is_donated_and_temporaries_do_not_grow_with_it(lines):
    for small, large in of_programs(lines):
        assert large["pool"] == 2 * small["pool"]
        for line in (small, large):
            assert line["aliased"] >= line["pool"]
        assert large["temporaries"] <= 1.02 * small["temporaries"]
        assert large["temporaries"] < 1.5 * GIB


def test_decode_runs_the_platforms_kernel(lines):
    kernels = {(s["program"], s["tensor"]): s["kernels"] for s, _ in of_programs(lines)}
    assert kernels["decode", 1] and kernels["decode", 4]
    assert kernels["decode-xla", 1] == 0


def test_no_collective_crosses_data_shards(lines):
    for line in lines:
        if line["tensor"] == 1 and not line["program"].startswith("weight_sync"):
            assert not any(line["collectives"].values()), line


def test_a_weight_sync_needs_room_for_one_leaf_beside_the_weights(lines):
    synced = [line for line in lines if line["program"].startswith("weight_sync")]
    for tensor in (1, 4):
        own = [line for line in synced if line["tensor"] == tensor]
        largest = max(line["outputs"] for line in own)
        assert max(line["temporaries"] for line in own) <= 2.1 * largest
        assert sum(line["outputs"] for line in own) < 7.6 * GIB / (1 if tensor == 1 else 3.5)
