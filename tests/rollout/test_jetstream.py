"""JetStream's own Driver over our engine, in a process of its own (it patches and logs)."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models import Decoder, param_shapes
from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.settings import PromptParams
from tests.support.rollout.rollout_cases import CONFIG, small_model

SCRIPT = Path(__file__).parents[1] / "support" / "rollout" / "drive_jetstream.py"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("decode_steps", "mode", "samples"),
    [
        pytest.param(1, "disaggregated", 1, id="greedy"),
        pytest.param(1, "disaggregated", 2, id="two samples a slot", marks=pytest.mark.slow),
        pytest.param(1, "interleaved", 1, id="interleaved", marks=pytest.mark.slow),
        pytest.param(4, "disaggregated", 1, id="four steps a call", marks=pytest.mark.slow),
        pytest.param(4, "disaggregated", 4, id="one slot of four samples", marks=pytest.mark.slow),
    ],
)
def test_the_driver_gets_the_tokens_that_our_scheduler_gets(decode_steps, mode, samples):
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(decode_steps), mode, str(samples)],
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
    rows = [tokens for group in report["ours"] for tokens in group]
    assert len(rows) == 7 * samples
    assert sum(map(len, rows)) > 60 * samples
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


SIZES = SamplerConfig(slots=4, page_size=4, num_pages=65, max_len=64, decode_steps=2)


def make_engine(*, samples_per_slot=1, model=None, config=SIZES):
    from polaris_jax.rollout.jetstream import jetstream_engine

    return jetstream_engine(
        model or small_model(),
        config,
        tokenizer=None,
        params=PromptParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=20, seed=3),
        samples_per_slot=samples_per_slot,
    )


def generate(engine, state, prompt, *, slot, calls=4):
    """[samples, tokens] of a prompt in a slot, by JetStream's verbs."""
    params = engine.load_params()
    prefix = engine.prefill(params=params, padded_tokens=np.array(prompt), true_length=len(prompt))
    state = engine.insert(prefix, state, slot=slot)
    parts = []
    for _ in range(calls):
        state, result = engine.generate(params, state)
        data = result.get_result_at_slot(slot)
        assert data.tokens.shape == (engine.samples_per_slot, 2)
        parts.append(np.where(data.valid, data.tokens, -1))
    return np.concatenate(parts, axis=1)


def test_samples_of_a_slot_share_its_prefix_and_give_the_pages_back():
    engine = make_engine(samples_per_slot=2)
    assert (engine.max_concurrent_decodes, engine.samples_per_slot) == (2, 2)
    state = engine.init_decode_state()
    prompt = list(range(3, 14))  # 10 written tokens: two full pages of 4, and one of two copies
    found = generate(engine, state, prompt, slot=1, calls=1)
    assert state.pages[2][:2] == state.pages[3][:2]
    assert state.allocator(2).references(state.pages[2][0]) == 2
    assert not set(state.pages[2][2:]) & set(state.pages[3][2:])
    assert len({tuple(row) for row in found.tolist()}) == 2
    engine.insert(
        engine.prefill(params=engine.load_params(), padded_tokens=np.array([5]), true_length=1),
        state,
        slot=1,
    )
    assert state.allocator(2).num_used == 2  # a page for each of the new samples


def test_rows_that_fit_a_smaller_bucket_do_not_cut_the_others_results_short():
    """The Driver takes the first token that is not valid for a sample's end."""
    config = SamplerConfig(
        slots=8, page_size=4, num_pages=129, max_len=64, decode_steps=4, min_rows=1
    )
    engine = make_engine(config=config)
    params, state = engine.load_params(), engine.init_decode_state()
    for slot, length in enumerate((62, 61, 59, 58, 57, 40, 40, 40)):
        prefix = engine.prefill(
            params=params, padded_tokens=np.arange(length) % 61, true_length=length
        )
        state = engine.insert(prefix, state, slot=slot)
    for _ in range(5):
        state, result = engine.generate(params, state)
        for slot in np.flatnonzero(state.rows.alive_B).tolist():
            assert result.get_result_at_slot(slot).valid.all()


def test_new_weights_are_taken_over_and_others_refused():
    engine = make_engine()
    other = jax.tree.map(lambda x: np.asarray(x)[..., ::-1].copy(), small_model())
    prompt = [5, 9, 2, 7]
    old = generate(engine, engine.init_decode_state(), prompt, slot=0)
    assert engine.load_params(other) is other
    assert engine.load_params() is other
    new = generate(engine, engine.init_decode_state(), prompt, slot=0)
    fresh = make_engine(model=other)
    np.testing.assert_array_equal(new, generate(fresh, fresh.init_decode_state(), prompt, slot=0))
    assert (new != old).any()
    with pytest.raises(ValueError, match="embed_VD is bfloat16"):
        engine.load_params(jax.tree.map(lambda x: x.astype(jnp.bfloat16), other))
    deep = dataclasses.replace(CONFIG, num_layers=3)
    deeper = Decoder.from_params(deep, {p: np.zeros(s) for p, s in param_shapes(deep).items()})
    with pytest.raises(ValueError, match="another architecture"):
        engine.load_params(deeper)


def test_slots_that_do_not_hold_whole_groups_of_samples_are_refused():
    with pytest.raises(ValueError, match="samples_per_slot=3: must be at least 1 and divide"):
        make_engine(samples_per_slot=3)


@pytest.mark.parametrize("attention", ["auto", "native", "xla"])
def test_the_dtype_is_the_weights_own(attention):
    sizes = dataclasses.replace(SIZES, attention=attention)
    rows = [
        generate(engine, engine.init_decode_state(), [5, 9, 2, 7], slot=0)
        for engine in (
            make_engine(config=sizes),
            make_engine(config=dataclasses.replace(sizes, dtype="float32")),
        )
    ]
    np.testing.assert_array_equal(*rows)


def test_another_dtype_than_the_weights_is_refused():
    with pytest.raises(ValueError, match=r"dtype='bfloat16'.*these are float32; cast the model"):
        make_engine(config=dataclasses.replace(SIZES, dtype="bfloat16"))
