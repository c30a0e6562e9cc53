"""Bytes of a decode step: of a small program compiled here, and of Qwen3-4B's for absent TPUs."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from polaris_jax.plan.decode_bytes import decode_bytes, main_loop_ledger, owned_bytes
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
    """What `launch/decode_bytes.py` says of each chip, tensor split, kv_dtype and pool."""
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
    return {
        (one["host"].split(":")[0], one["tensor"], one["kv_dtype"], one["pages"]): one
        for one in found
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.xdist_group("libtpu")
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'polaris_jax[tpu]'"
)
class TestOnChips:
    """Qwen3-4B, 64 rows x 16K live tokens."""

    def test_what_a_step_moves_is_near_what_it_needs(self, on_chips):
        assert {key[:3] for key in on_chips} == set(
            itertools.product(("v5p", "v6e"), (1, 4), ("auto", "int8"))
        )
        for one in on_chips.values():
            assert one["pool_kernels"] == 36  # a layer each
            assert 1 <= one["ratio"] <= 1.4
            assert one["ratio_with_filters"] <= 1.4
            # Long contexts hide the rest: it has a bound of its own.
            assert one["ratio_without_kv"] <= 1.4
            # Every weight is read, and no page but by the kernel and the scatter.
            assert one["weight_bytes"] <= one["moved_bytes"]["weights"]
            assert one["live_bytes"] <= one["moved_bytes"]["KV"] <= 1.01 * one["live_bytes"]

    def test_8_bit_keys_and_values_move_at_most_0_62_of_the_bytes(self, on_chips):
        for (chip, tensor, kv_dtype, pages), one in on_chips.items():
            if kv_dtype == "int8":
                exact = on_chips[chip, tensor, "auto", pages]
                moved, before = (sum(x["moved_bytes"].values()) for x in (one, exact))
                assert one["live_bytes"] * 2 == exact["live_bytes"]
                assert moved <= 0.62 * before

    def test_the_pool_is_updated_in_place_and_temporaries_do_not_know_its_size(self, on_chips):
        for key in on_chips:
            one, other = on_chips[key], on_chips[*key[:3], 1_000]
            assert one["alias_bytes"] >= one["pool_bytes"]
            assert one["temporary_bytes"] == other["temporary_bytes"]

    def test_neither_pool_nor_weights_are_gathered(self, on_chips):
        layer_key_bytes = 2560 * 8 * 128 * 2  # the smallest matrix of a layer
        for (_, tensor, _, _), one in on_chips.items():
            assert one["largest_all_gather_bytes"] < layer_key_bytes / 2
            # Hidden states and draws; a layer's output is at most [64, 2560] in float32.
            assert one["all_gather_bytes_a_step"] <= (tensor > 1) * 36 * 4 * 64 * 2560 * 4


# Four layers of [8, 8] matrices, a head [16, 8], a pool of 6 x [2, 8], two rows; five steps.
LAYERS, STEPS = 4, 5
MATRIX, HEAD, POOL, NEW, ROWS = 8 * 8 * 2, 16 * 8 * 2, 6 * 2 * 8 * 2, 2 * 1 * 8 * 2, 2 * 8 * 2
OWNERS = {0: "weights", 1: "weights", 2: "KV"}

# What goes round the loop over layers, and the loop over steps.
LAYER = "(s32[], bf16[4,8,8]{2,1,0}, bf16[2,8]{1,0:S(1)}, bf16[6,2,8]{2,1,0})"
STEP = "(s32[], bf16[4,8,8]{2,1,0}, bf16[16,8]{1,0}, bf16[6,2,8]{2,1,0})"
PROGRAM = """HloModule decode

%multiply_slice () -> () {
  %w = bf16[4,8,8]{2,1,0} parameter(0)
  %x = bf16[2,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  %one = bf16[1,8,8]{2,1,0} dynamic-slice(%w, %i, %z, %z), dynamic_slice_sizes={1,8,8}
  %m = bf16[8,8]{1,0} bitcast(%one)
  ROOT %y = bf16[2,8]{1,0} dot(%x, %m), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%write_pages () -> () {
  %p = bf16[6,2,8]{2,1,0} parameter(0)
  %at = s32[2,1]{1,0:S(1)} parameter(1)
  %kv = bf16[2,1,8]{2,1,0} parameter(2)
  ROOT %s = bf16[6,2,8]{2,1,0} scatter(%p, %at, %kv), to_apply=%keep
}

%layer () -> () {
  %state = LAYER parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%state), index=0
  %w = bf16[4,8,8]{2,1,0} get-tuple-element(%state), index=1
  %x = bf16[2,8]{1,0:S(1)} get-tuple-element(%state), index=2
  %p = bf16[6,2,8]{2,1,0} get-tuple-element(%state), index=3
  %y = bf16[2,8]{1,0:S(1)} fusion(%w, %x, %i), kind=kOutput, calls=%multiply_slice
  %at = s32[2,1]{1,0:S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %kv = bf16[2,1,8]{2,1,0:S(1)} bitcast(%y)
  %q = bf16[6,2,8]{2,1,0} fusion(%p, %at, %kv), kind=kCustom, calls=%write_pages
  %o = bf16[2,8]{1,0:S(1)} custom-call(%y, %q), custom_call_target="tpu_custom_call"
  %one = s32[]{:S(6)} constant(1)
  %next = s32[]{:S(6)} add(%i, %one)
  ROOT %t = LAYER tuple(%next, %w, %o, %q)
}

%below () -> () {
  %s = LAYER parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%s), index=0
  %n = s32[]{:S(6)} constant(4)
  ROOT %lt = pred[]{:S(6)} compare(%i, %n), direction=LT
}

%plain () -> () {
  ROOT %a = f32[2,16]{1,0} parameter(0)
}

%filtered () -> () {
  %b = f32[2,16]{1,0} parameter(0)
  ROOT %n = f32[2,16]{1,0} negate(%b)
}

%step () -> () {
  %s = STEP parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%s), index=0
  %w = bf16[4,8,8]{2,1,0} get-tuple-element(%s), index=1
  %h = bf16[16,8]{1,0} get-tuple-element(%s), index=2
  %p = bf16[6,2,8]{2,1,0} get-tuple-element(%s), index=3
  %zero = s32[]{:S(6)} constant(0)
  %x = bf16[2,8]{1,0:S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %t = LAYER tuple(%zero, %w, %x, %p)
  %layers = LAYER while(%t), condition=%below, body=%layer
  %y = bf16[2,8]{1,0:S(1)} get-tuple-element(%layers), index=2
  %q = bf16[6,2,8]{2,1,0} get-tuple-element(%layers), index=3
  %hs = (bf16[16,8]{1,0:S(1)}, bf16[16,8]{1,0}, u32[]{:S(2)}) copy-start(%h)
  %hd = bf16[16,8]{1,0:S(1)} copy-done(%hs)
  %logits = f32[2,16]{1,0} dot(%y, %hd), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %any = pred[]{:S(6)} constant(true)
  %drawn = f32[2,16] conditional(%any, %logits, %logits), branch_computations={%filtered, %plain}
  %one = s32[]{:S(6)} constant(1)
  %next = s32[]{:S(6)} add(%i, %one)
  ROOT %r = STEP tuple(%next, %w, %h, %q)
}

%going () -> () {
  %s = STEP parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%s), index=0
  %n = s32[]{:S(6)} constant(5)
  ROOT %lt = pred[]{:S(6)} compare(%i, %n), direction=LT
}

ENTRY %main () -> () {
  %w = bf16[4,8,8]{2,1,0} parameter(0)
  %h = bf16[16,8]{1,0} parameter(1)
  %p = bf16[6,2,8]{2,1,0} parameter(2)
  %zero = s32[]{:S(6)} constant(0)
  %other = bf16[16,8]{0,1} copy(%h), metadata={op_name="jit(decode)/transpose"}
  %t = STEP tuple(%zero, %w, %other, %p)
  %loop = STEP while(%t), condition=%going, body=%step
  ROOT %q = bf16[6,2,8]{2,1,0} get-tuple-element(%loop), index=3
}
""".replace("LAYER", LAYER).replace("STEP", STEP)


def ledger(text=PROGRAM, *, share=1.0, branch="least"):
    return main_loop_ledger(text, owners=OWNERS, kernel_share={"KV": share}, branch=branch)


def test_a_step_counts_each_layer_once_and_what_is_not_in_hbm_not_at_all():
    found = ledger()
    assert found.turns == STEPS
    assert owned_bytes(found.turn) == {
        # One matrix a layer, and the head, whose copy in VMEM is read from HBM once.
        "weights": LAYERS * MATRIX + HEAD,
        # New keys and values are read and written in place; the kernel is given all pages.
        "KV": LAYERS * (2 * NEW + POOL),
        "other": 2 * 16 * 4,  # logits
    }


def test_a_kernel_reads_its_share_of_the_pool():
    lines = [line for line in ledger(share=0.25).turn if line.kernel]
    assert [(line.times, line.owned["KV"]) for line in lines] == [(LAYERS, LAYERS * POOL / 4)]


def test_one_branch_of_a_conditional_runs():
    least, most = (owned_bytes(ledger(branch=b).turn)["other"] for b in ("least", "most"))
    assert most - least == 2 * (2 * 16 * 4)


def test_what_runs_once_a_call_stands_outside():
    (line,) = ledger().outside
    assert (line.opcode, line.origin) == ("copy", "jit(decode)/transpose")
    assert line.owned == {"weights": HEAD, "other": HEAD}


def test_a_program_without_a_loop_is_refused():
    text = """
ENTRY %main (a: f32[2]) -> f32[2] {
  ROOT %a = f32[2]{0} parameter(0)
}
"""
    with pytest.raises(ValueError, match="no loop at its top"):
        ledger(text)


def test_a_loop_that_ends_at_run_time_only_is_refused():
    text = PROGRAM.replace("compare(%i, %n), direction=LT", "compare(%i, %n), direction=NE")
    with pytest.raises(ValueError, match="known at run time only"):
        ledger(text)


def test_a_loop_compiled_here_reads_its_weights_once_a_turn():
    width, rows = 256, 4

    def f(w, x):
        return jax.lax.fori_loop(0, STEPS, lambda _, x: jnp.tanh(x @ w), x)

    text = jax.jit(f).lower(jnp.ones((width, width)), jnp.ones((rows, width))).compile().as_text()
    found = main_loop_ledger(text, owners={0: "weights"}, kernel_share={})
    assert found.turns == STEPS
    owned = owned_bytes(found.turn)
    assert owned["weights"] == width * width * 4
    assert owned["other"] <= 8 * rows * width * 4
