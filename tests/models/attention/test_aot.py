"""Every back end compiles for its chip at the recipe's row length, and memory grows linearly.

Nothing runs: Qwen3-4B's heads, one row of 53,248 tokens, forward and backward, by deviceless
compilation in a process of its own.
"""

import ctypes.util
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[3]
TARGET = ROOT / "polaris_jax" / "plan" / "targets" / "h100.txtpb"
LENGTHS = (13_312, 26_624, 53_248)
ROW_TOKENS = LENGTHS[-1]
GIB = 1 << 30
# Twice the tokens may cost this much more temporary memory; what is quadratic would cost four.
LINEAR = 2.1

tpu = [
    pytest.mark.xdist_group("libtpu"),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="no libtpu: pip install 'polaris_jax[tpu]'",
    ),
]
gpu = [
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda12_plugin") is None,
        reason="no CUDA plugin: pip install 'polaris_jax[cuda12]'",
    ),
]


def _has_cudnn() -> bool:
    """cuDNN's library, of pip's packages or of the system."""
    packages = importlib.util.find_spec("nvidia")
    if packages is not None and importlib.util.find_spec("nvidia.cudnn") is not None:
        return True
    return ctypes.util.find_library("cudnn") is not None


cudnn = [
    *gpu,
    pytest.mark.skipif(not _has_cudnn(), reason="no cuDNN: pip install 'polaris_jax[cuda12]'"),
]


def compile_for(platform: str, back_end: str, *lengths: int, flags: tuple[str, ...] = ()):
    script = Path(__file__).parents[2] / "support" / "models" / "attention" / "compile_attention.py"
    done = subprocess.run(
        [
            sys.executable,
            script,
            platform,
            back_end,
            *map(str, lengths),
            f"--target={TARGET}",
            *flags,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [report["length"] for report in reports] == list(lengths)
    return reports


@pytest.mark.parametrize(
    "platform",
    [
        pytest.param("cpu"),
        pytest.param("tpu", marks=tpu),
        pytest.param("gpu", marks=gpu),
    ],
)
def test_chunked_grows_linearly(platform):
    temporaries = [r["temporaries"] for r in compile_for(platform, "chunked", *LENGTHS)]
    for short, long in itertools.pairwise(temporaries):
        assert long <= LINEAR * short
    # Less than one head's scores in bytes, let alone 32 heads' in float32.
    assert temporaries[-1] < ROW_TOKENS**2 * 2


@pytest.mark.parametrize(
    ("platform", "back_end", "kernels", "limit_gib", "flags"),
    [
        pytest.param("tpu", "splash", 3, 3.0, (), id="splash", marks=tpu),
        pytest.param("tpu", "splash", 3, 1.5, ("--shards=4",), id="splash, 4 shards", marks=tpu),
        pytest.param("gpu", "triton", 3, 3.0, (), id="triton", marks=gpu),
        pytest.param("gpu", "cudnn", 2, 3.0, ("--one_segment",), id="cudnn full rows", marks=cudnn),
        pytest.param("gpu", "cudnn", 2, 3.0, (), id="cudnn padded rows", marks=cudnn),
    ],
)
def test_fused_kernels_compile_at_the_recipe_s_length(
    platform, back_end, kernels, limit_gib, flags
):
    (report,) = compile_for(platform, back_end, ROW_TOKENS, flags=flags)
    assert report["kernels"] >= kernels  # forward and backward are the kernel, not a fallback
    assert report["temporaries"] < limit_gib * GIB
