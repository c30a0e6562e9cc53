"""An update whose rows share prompts, against one in which each response has its own."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from polaris_jax.batch import concat_graded, select_groups
from polaris_jax.config import ConfigError, MeshSection, ObjectiveSection
from polaris_jax.sharding import make_mesh
from polaris_jax.train.programs import resolve_share_prompts, update_programs
from polaris_jax.train.state import init_train_state
from polaris_jax.train.update import Updater
from tests.support.train.cases import (
    FP32,
    OPTIMIZER,
    QWEN2,
    QWEN3,
    ROW_LEN,
    accumulated_gradient,
    logprobs,
    make_graded,
    make_model,
    make_updater,
    max_leaf_difference,
    one_device_mesh,
    pack_case,
    plain_gradient,
    values,
)
from tests.tolerances import GRADIENT_RTOL, LOGPROB_ATOL, LOSS_RTOL

# Rows of 96 tokens hold several responses of a group and of the next one.
LONG = 96
CHUNKED = dataclasses.replace(FP32, attention="chunked")


@pytest.fixture
def tiles_of_8(monkeypatch):
    """Tiles that begin and end within prompts and branches."""
    monkeypatch.setattr("polaris_jax.models.attention.portable.SHORT_ROW_BLOCK_TOKENS", 8)


@pytest.mark.parametrize(
    "config", [pytest.param(QWEN3, marks=pytest.mark.slow), QWEN2], ids=["qwen3", "qwen2"]
)
def test_the_gradient_is_that_of_unpacked_sequences(config):
    model, graded = make_model(config), make_graded()
    batch = pack_case(graded, row_len=LONG, rows=2, share_prompts=True)
    assert batch.shared_prompt_tokens > 0 and batch.branch_BT.max() > 1
    got = accumulated_gradient(make_updater(row_len=LONG, rows=2), model, batch)
    assert max_leaf_difference(got, plain_gradient(model, graded), relative=True) <= GRADIENT_RTOL


def test_chunked_gives_that_gradient_too(tiles_of_8):
    model, graded = make_model(), make_graded()
    batch = pack_case(graded, row_len=LONG, rows=2, share_prompts=True)
    updater = make_updater(row_len=LONG, rows=2, model=CHUNKED)
    got = accumulated_gradient(updater, model, batch)
    assert max_leaf_difference(got, plain_gradient(model, graded), relative=True) <= GRADIENT_RTOL


SIZES = pytest.mark.parametrize(
    "sizes", [(1, 2, 2, 2), pytest.param((2, 1, 4, 1), marks=pytest.mark.slow)], ids=str
)


def on_mesh(sizes):
    """An updater with rows over context, heads over tensor, parameters over fsdp."""
    mesh = make_mesh(MeshSection(*sizes), jax.devices()[: math.prod(sizes)])
    return Updater(ObjectiveSection(), OPTIMIZER, CHUNKED, mesh, rows=2, row_len=LONG)


@SIZES
def test_a_mesh_gives_the_gradient_of_one_device(sizes, tiles_of_8):
    model, updater = make_model(), on_mesh(sizes)
    batch = pack_case(make_graded(), row_len=LONG, rows=2, share_prompts=True)
    got = accumulated_gradient(updater, model, batch)
    want = accumulated_gradient(make_updater(row_len=LONG, rows=2), model, batch)
    assert max_leaf_difference(got, want, relative=True) <= GRADIENT_RTOL
    assert updater.context_imbalance(batch) > 1


@SIZES
def test_a_mesh_gives_the_log_probs_of_own_prompts(sizes, tiles_of_8):
    model, graded, updater = make_model(), make_graded(), on_mesh(sizes)
    own = pack_case(graded, row_len=LONG, rows=2)
    logp_BT, _ = logprobs(model, own.token_BT, own.position_BT, own.segment_BT, own.temperature_BT)
    batch = pack_case(graded, row_len=LONG, rows=2, share_prompts=True)
    params = init_train_state(model, OPTIMIZER, updater.mesh).params
    got = by_response(batch, updater.recompute_logprobs(params, batch).old_logp_BT)
    want = by_response(own, np.asarray(logp_BT))
    assert got.keys() == want.keys() and len(got) == 24
    for key, logps in want.items():
        np.testing.assert_allclose(got[key], logps, rtol=0, atol=LOGPROB_ATOL)


def by_response(batch, values_BT) -> dict[tuple[int, ...], list[float]]:
    """Values of the tokens that count, by the response's own tokens; every response is unlike."""
    found = {}
    for row, weight_T in enumerate(batch.weight_BT):
        edges = np.flatnonzero(np.diff(np.pad(weight_T != 0, 1)))
        for begin, end in edges.reshape(-1, 2):
            key = tuple(batch.token_BT[row, begin + 1 : end + 1].tolist())
            found[key] = values_BT[row, begin:end].tolist()
    return found


@pytest.mark.slow
def test_log_probs_and_metrics_are_those_of_own_prompts():
    """Minibatches, recomputed log-probs and the KL term, whose reference sees the same rows."""
    objective = ObjectiveSection(old_logprobs="recompute", kl_coef=0.1, minibatches=2)
    graded = concat_graded([make_graded(), make_graded(1)])
    updater, model, reference = make_updater(objective), make_model(), make_model(seed=1)
    seen = {}
    for shares in (False, True):
        batch = pack_case(graded, objective, share_prompts=shares)
        state = init_train_state(model, OPTIMIZER, one_device_mesh())
        batch = updater.recompute_logprobs(state.params, batch)
        _, metrics = updater.update(state, batch, reference=reference)
        seen[shares] = by_response(batch, batch.old_logp_BT), values(metrics)
    (own_logps, own), (shared_logps, shared) = seen[False], seen[True]
    assert own_logps.keys() == shared_logps.keys() and len(own_logps) == 48
    for key, logps in own_logps.items():
        np.testing.assert_allclose(shared_logps[key], logps, rtol=0, atol=LOGPROB_ATOL)
    assert shared.pop("batch/shared_prompt_tokens") > 0
    assert shared["batch/padding_share"] >= 0
    for name in own.keys() - {"batch/padding_share", "batch/attention_imbalance"}:
        assert shared[name] == pytest.approx(own[name], rel=LOSS_RTOL, abs=LOGPROB_ATOL), name


def test_nothing_compiles_after_the_first_update():
    compiles = []

    def listener(event, duration, **_):
        if "backend_compile" in event:
            compiles.append(event)

    update_programs.cache_clear()  # of other tests
    graded, mesh = make_graded(), one_device_mesh()
    updater = Updater(ObjectiveSection(), OPTIMIZER, FP32, mesh, rows=2, row_len=ROW_LEN)
    state = init_train_state(make_model(), OPTIMIZER, mesh)
    # Prompts of one token have nothing to share: the same program.
    short = dataclasses.replace(make_graded(2, prompts=2), prompts=[[3], [5]])
    batches = [
        pack_case(g, rows=2, share_prompts=True)
        for g in (graded, select_groups(graded, np.arange(2)), short)
    ]
    assert batches[0].shared_prompt_tokens > 0 == batches[2].shared_prompt_tokens
    jax.monitoring.register_event_duration_secs_listener(listener)
    state, _ = updater.update(state, batches[0])
    first = len(compiles)
    for batch in batches:
        state, _ = updater.update(state, batch)
    jax.monitoring.unregister_event_duration_listener(listener)
    assert len(compiles) == first == 3  # the zero accumulator, accumulate, apply


@pytest.mark.parametrize(
    ("asked", "attention", "aggregation", "expected"),
    [
        ("auto", "chunked", "token_mean", True),
        ("auto", "reference", "sequence_mean", True),
        ("auto", "splash", "token_mean", False),
        ("auto", "triton", "token_mean", False),
        ("auto", "cudnn", "token_mean", False),
        ("auto", "chunked", "microbatch_token_mean", False),
        ("on", "chunked", "token_mean", True),
        ("off", "chunked", "token_mean", False),
    ],
)
def test_where_prompts_are_shared(asked, attention, aggregation, expected):
    objective = ObjectiveSection(aggregation=aggregation)
    assert resolve_share_prompts(asked, attention, objective) == expected


def test_what_cannot_share_is_refused_at_the_start():
    with pytest.raises(ConfigError, match=r"share_prompts=on: model\.attention=splash .*chunked"):
        resolve_share_prompts("on", "splash", ObjectiveSection())
    objective = ObjectiveSection(aggregation="microbatch_token_mean")
    updater = Updater(
        objective, OPTIMIZER, FP32, one_device_mesh(), rows=2, row_len=48, share_prompts="on"
    )
    with pytest.raises(ConfigError, match=r"share_prompts=on: under .*microbatch_token_mean"):
        updater.check_model(QWEN3, print)


def test_the_updater_resolves_auto_by_its_attention():
    sizes = {"rows": 2, "row_len": ROW_LEN, "share_prompts": "auto"}
    updater = Updater(ObjectiveSection(), OPTIMIZER, FP32, one_device_mesh(), **sizes)
    assert updater.shares_prompts(QWEN3)
    assert not make_updater().shares_prompts(QWEN3)  # off
