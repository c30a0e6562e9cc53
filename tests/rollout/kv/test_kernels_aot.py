"""The kernels compile for chips that are not here, at the recipe's shapes, with bounded memory.

Nothing runs: numerics are tested on each layout's plain-jax stand-in (test_layouts.py).
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from polaris_jax.models.presets import preset
from polaris_jax.rollout.kv import ragged_v3

ROOT = Path(__file__).parents[3]
GIB = 1 << 30
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("libtpu"), pytest.mark.timeout(3000)]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled: all layers, or so many, which tell as much of the kernels.

    The tensor degrees leave room for the whole model's weights and a pool on the chip.
    """

    topology: str
    model: str
    tensors: tuple[int, ...]
    layers: int = 0
    attention: str = "auto"
    kinds: str = "decode,prefill"
    pages: int = 2_000  # of a shard's small pool; the large one has twice as many

    @property
    def id(self) -> str:
        kernel = "" if self.attention == "auto" else f"-{self.attention}"
        kind = "-verify" if self.kinds == "verify" else ""
        return f"{self.topology.split(':')[0]}-{self.model}{kernel}{kind}"


QWEN, R1 = "qwen3-4b", "r1-distill-qwen-7b"  # 4 and 7 query heads a KV head
CASES = [
    Case("v5p:2x2x1", QWEN, (1, 4)),
    Case("v5p:2x2x1", R1, (1, 4)),
    Case("v5e:2x2", QWEN, (4,), layers=2),
    Case("v5e:2x2", R1, (4,), layers=2),
    Case("v6e:2x2", QWEN, (1, 4), layers=2),
    # Prefill with tensor=2 takes 4.9 MB of temporaries beside a pool of 0.26 GB, 31.6 beside 0.52,
    # 34.9 beside 1.05 and 34.5 beside 2.10, 4.19 and 8.39; with tensor=4 1.7 MB beside 0.52 GB and
    # then 6.1 and 5.9. So the pools lie above that.
    Case("v6e:2x2", R1, (2, 4), layers=2, pages=16_000),
    Case("v5p:2x2x1", QWEN, (1, 4), layers=2, attention="ragged_v3"),
    Case("v6e:2x2", QWEN, (1,), layers=2, attention="ragged_v3"),
    Case("h100:4", QWEN, (1, 4)),
    # A GPU's prefill takes 270 MiB more from a pool of about 1 GB on, however large: both pools lie
    # above that with 4 layers.
    Case("h100:4", R1, (1, 4), layers=4),
    Case("v5p:2x2x1", QWEN, (1, 4), layers=2, kinds="verify"),
    Case("h100:4", QWEN, (1,), layers=2, kinds="verify"),
]


def missing(case: Case):
    """Skips a case whose compiler is not installed."""
    wanted = {"libtpu": "'polaris_jax[tpu]'"}
    if case.topology.startswith("h100"):
        wanted = {"jax_cuda12_plugin": "'polaris_jax[cuda12]'"}
    if case.attention == "ragged_v3":
        wanted[ragged_v3.PACKAGE] = "--no-deps tpu-inference"
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    reason = "; ".join(f"no {name}: pip install {wanted[name]}" for name in absent)
    return pytest.mark.skipif(bool(absent), reason=reason)


@pytest.fixture(scope="module", params=[pytest.param(c, id=c.id, marks=missing(c)) for c in CASES])
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def lines(case) -> list[dict]:
    """What compile_sampler.py says, a dict a program."""
    done = subprocess.run(
        [
            *(
                sys.executable,
                str(Path(__file__).parents[2] / "support" / "rollout" / "compile_sampler.py"),
            ),
            *(case.topology, case.model),
            f"--tensor={','.join(map(str, case.tensors))}",
            f"--layers={case.layers}",
            f"--kinds={case.kinds}",
            f"--pages={case.pages}",
            f"--attention={case.attention}",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=2900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def of_programs(lines: list[dict]) -> list[tuple[dict, dict]]:
    """Each decode and prefill program with a small and with a large pool."""
    by_program = defaultdict(list)
    for line in lines:
        if not line["program"].startswith("weight_sync"):
            by_program[line["program"], line["data"], line["tensor"]].append(line)
    return [(small, large) for small, large in by_program.values()]


def test_the_pool_is_donated_and_temporaries_do_not_grow_with_it(lines):
    for small, large in of_programs(lines):
        assert large["pool"] == 2 * small["pool"]
        for line in (small, large):
            assert line["aliased"] >= line["pool"]
        assert large["temporaries"] <= 1.02 * small["temporaries"]
        assert large["temporaries"] < 1.5 * GIB


def test_decode_runs_the_platforms_kernel(lines, case):
    kernels = {(s["program"], s["tensor"]): s["kernels"] for s, _ in of_programs(lines)}
    wanted = {(kind, tensor) for kind in case.kinds.split(",") for tensor in case.tensors}
    if not case.layers:
        wanted |= {("decode-xla", 1), ("decode-int8", 1), ("prefill-int8", 1)}
        assert kernels["decode-xla", 1] == 0
        assert kernels["decode-int8", 1]
    assert kernels.keys() == wanted
    # A GPU's kernel takes one query a row, so a verify call has none there.
    ours = "decode" if "decode" in case.kinds else "verify"
    none = ours == "verify" and case.topology.startswith("h100")
    assert all(bool(kernels[ours, tensor]) is not none for tensor in case.tensors)


def test_no_collective_crosses_data_shards(lines):
    for line in lines:
        if line["tensor"] == 1 and not line["program"].startswith("weight_sync"):
            assert not any(line["collectives"].values()), line


def test_a_weight_sync_needs_room_for_one_leaf_beside_the_weights(lines, case):
    synced = [line for line in lines if line["program"].startswith("weight_sync")]
    assert bool(synced) is not bool(case.layers)
    weight_bytes = 2 * preset(case.model).num_parameters
    for tensor in case.tensors if synced else ():
        own = [line for line in synced if line["tensor"] == tensor]
        largest = max(line["outputs"] for line in own)
        assert max(line["temporaries"] for line in own) <= 2.1 * largest
        assert sum(line["outputs"] for line in own) < 1.02 * weight_bytes / (
            1 if tensor == 1 else 3.5
        )
