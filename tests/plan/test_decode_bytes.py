"""Bytes of a decode step: of a small program compiled here, and of Qwen3-4B's for absent TPUs."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from polaris_jax.plan.decode_bytes import decode_bytes
from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.programs.abstract import decode_program
from polaris_jax.sharding import make_sampler_mesh
from tests.support.rollout.rollout_cases import CONFIG

ROOT = Path(__file__).resolve().parents[2]


MESH = make_sampler_mesh(jax.devices()[:1])
CONTEXT_TOKENS = 64


@pytest.fixture(scope="module")
def small():
    """(compiled text, arguments, sizes) of a one-layer model's decode program."""
    config = SamplerConfig(
        slots=4, page_size=4, num_pages=65, max_len=64, decode_steps=3, dtype="float32"
    )
    program = decode_program(dataclasses.replace(CONFIG, num_layers=1), config, MESH)
    return program.lower().compile().as_text(), program.args, config


def test_a_step_compiled_here_reads_every_weight(small):
    text, args, config = small
    found = decode_bytes(text, args, config=config, mesh=MESH, context_tokens=CONTEXT_TOKENS)
    model, leaves = args[0].config, jax.tree.leaves(args[0])
    assert found.weights == sum(leaf.size * 4 for leaf in leaves)
    # A CPU's program copies each layer's slice of the stacks and reads the copy.
    assert found.weights <= found.moved["weights"] < 2.1 * found.weights
    token_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 4
    assert found.live == config.slots * CONTEXT_TOKENS * token_bytes


def test_a_program_of_other_arguments_is_refused(small):
    text, args, config = small
    with pytest.raises(ValueError, match="parameters for"):
        decode_bytes(text, args[:3], config=config, mesh=MESH, context_tokens=CONTEXT_TOKENS)


@pytest.fixture(scope="module")
def on_chips(tmp_path_factory):
    """What `launch/decode_bytes.py` says of each chip, tensor split and pool."""
    out = tmp_path_factory.mktemp("decode")
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "launch" / "decode_bytes.py")),
            *(f"--out={out / 'table.md'}", f"--json={out / 'all.json'}"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((out / "all.json").read_text())
    return {(one["host"].split(":")[0], one["tensor"], one["pages"]): one for one in found}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("libtpu")
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'polaris_jax[tpu]'"
)
class TestOnChips:
    """Qwen3-4B, 64 rows x 16K live tokens."""

    def test_what_a_step_moves_is_near_what_it_needs(self, on_chips):
        assert {(chip, tensor) for chip, tensor, _ in on_chips} == {
            (chip, tensor) for chip in ("v5p", "v6e") for tensor in (1, 4)
        }
        for one in on_chips.values():
            assert one["pool_kernels"] == 36  # a layer each
            assert 1 <= one["ratio"] <= 1.4
            assert one["ratio_with_filters"] <= 1.4
            # Long contexts hide the rest: it has a bound of its own.
            assert one["ratio_without_kv"] <= 1.4
            # Every weight is read, and no page but by the kernel and the scatter.
            assert one["weight_bytes"] <= one["moved_bytes"]["weights"]
            assert one["live_bytes"] <= one["moved_bytes"]["KV"] <= 1.01 * one["live_bytes"]

    def test_the_pool_is_updated_in_place_and_temporaries_do_not_know_its_size(self, on_chips):
        for chip, tensor, pages in on_chips:
            one, other = on_chips[chip, tensor, pages], on_chips[chip, tensor, 1_000]
            assert one["alias_bytes"] >= one["pool_bytes"]
            assert one["temporary_bytes"] == other["temporary_bytes"]

    def test_neither_pool_nor_weights_are_gathered(self, on_chips):
        layer_key_bytes = 2560 * 8 * 128 * 2  # the smallest matrix of a layer
        for (_, tensor, _), one in on_chips.items():
            assert one["largest_all_gather_bytes"] < layer_key_bytes / 2
            # Hidden states and draws; a layer's output is at most [64, 2560] in float32.
            assert one["all_gather_bytes_a_step"] <= (tensor > 1) * 36 * 4 * 64 * 2560 * 4
