"""JetStream's own Driver over our engine, in a process of its own (it patches and logs)."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from polaris_jax.rollout import SamplerConfig
from tests.rollout.rollout_cases import small_model

SCRIPT = Path(__file__).with_name("drive_jetstream.py")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("decode_steps", "mode"),
    [
        (1, "disaggregated"),
        pytest.param(1, "interleaved", marks=pytest.mark.slow),
        pytest.param(4, "disaggregated", marks=pytest.mark.slow),
    ],
)
def test_the_driver_gets_the_tokens_that_our_scheduler_gets(decode_steps, mode):
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(decode_steps), mode],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        check=False,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("REPORT ")]
    assert lines, ended.stdout[-2000:] + ended.stderr[-2000:]
    report = json.loads(lines[0].removeprefix("REPORT "))
    assert report["driver"] == report["ours"]
    assert sum(map(len, report["ours"])) > 60
    assert report["is_engine"]
    assert report["stand_ins_left"] == []
    assert report["root_level_kept"]
    assert not report["tensorflow"]


def test_a_pool_that_would_need_preemption_is_refused():
    from polaris_jax.rollout.jetstream import jetstream_engine

    with pytest.raises(ValueError, match="4 slots of max_len=64 need 65 pages"):
        jetstream_engine(
            small_model(),
            SamplerConfig(slots=4, page_size=4, num_pages=64, max_len=64),
            tokenizer=None,
        )


def test_jetstream_is_installed():
    assert importlib.util.find_spec("jetstream") is not None
