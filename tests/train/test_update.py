"""The update: its gradient under any packing, its options, its skips, and one compile."""

import dataclasses
import itertools
import math
import re
import types
from typing import Any

import jax
import numpy as np
import pytest

from polaris_jax.batch import concat_graded, select_groups
from polaris_jax.config import MeshSection, ModelSection, ObjectiveSection
from polaris_jax.metrics import Mean
from polaris_jax.models import RopeScaling
from polaris_jax.sharding import make_mesh, private_copies
from polaris_jax.train.metrics import merge_metrics
from polaris_jax.train.programs import update_programs
from polaris_jax.train.sharded_model import warn_of_copies
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
from tests.tolerances import BF16_GRADIENT_RTOL, GRADIENT_RTOL, LOGPROB_ATOL


def logp_and_entropy(model, batch):
    return map(
        np.asarray,
        logprobs(model, batch.token_BT, batch.position_BT, batch.segment_BT, batch.temperature_BT),
    )


@pytest.mark.parametrize("config", [QWEN3, QWEN2], ids=["qwen3", "qwen2"])
def test_gradient_equals_the_plain_unpacked_one(config):
    model, graded = make_model(config), make_graded()
    got = accumulated_gradient(make_updater(), model, pack_case(graded))
    assert max_leaf_difference(got, plain_gradient(model, graded), relative=True) <= GRADIENT_RTOL


@pytest.mark.parametrize(
    ("row_len", "rows", "remat"),
    [(48, 8, "layer"), (64, 2, "none"), (33, 1, "none"), (256, 4, "none")],
)
def test_permuting_and_repacking_leaves_the_gradient(row_len, rows, remat):
    model, graded = make_model(), make_graded()
    want = accumulated_gradient(make_updater(), model, pack_case(graded))
    order = np.random.default_rng(row_len).permutation(len(graded))
    other = pack_case(select_groups(graded, order), row_len=row_len, rows=rows)
    section = ModelSection(dtype="float32", remat=remat)
    updater = make_updater(row_len=row_len, rows=rows, model=section)
    got = accumulated_gradient(updater, model, other)
    assert max_leaf_difference(got, want, relative=True) <= GRADIENT_RTOL


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 2, 2, 2)], ids=["one", "mesh"])
def test_stacked_microbatches_are_those_of_one_call_each(sizes, monkeypatch):
    """As accelerators run them: call by call, gradients and sums to the last bit."""
    monkeypatch.setattr("polaris_jax.train.update.STACKED_MICROBATCHES", 3)
    mesh = make_mesh(MeshSection(*sizes), jax.devices()[: math.prod(sizes)])
    updater = Updater(ObjectiveSection(), OPTIMIZER, FP32, mesh, rows=2, row_len=ROW_LEN)
    batch = pack_case(concat_graded([make_graded(), make_graded(1)]), rows=2)
    microbatches = batch.token_BT.shape[0] // 2
    assert microbatches > 3 and microbatches % 3, "several stacks, the last one not full"
    params = init_train_state(make_model(QWEN3), OPTIMIZER, mesh).params

    total, sums = updater.gradient(params, batch)
    assert len(sums) == -(-microbatches // 3)
    programs = updater._programs_for(QWEN3)
    want, want_sums = programs.zeros(), []
    for arrays in updater._microbatches(batch, programs):
        want, one = programs.accumulate(params, want, arrays, None)
        want_sums.append(one)
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in want_sums[0]:
        got = np.concatenate([np.asarray(part[name]) for part in sums])
        np.testing.assert_array_equal(got[:microbatches], [one[name] for one in want_sums])
        assert not got[microbatches:].any()

    # No more are computed than there are: of a full stack, the first alone.
    (stack, full), *_, (_, rest) = updater._stacks(batch, programs)
    assert (int(full), int(rest)) == (3, microbatches % 3)
    one = jax.device_put(np.int32(1), full.sharding)
    total, _ = programs.accumulate_many(params, programs.zeros(), stack, one, None)
    first = next(iter(updater._microbatches(batch, programs)))
    want, _ = programs.accumulate(params, programs.zeros(), first, None)
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def test_microbatch_token_mean_alone_depends_on_packing():
    graded = make_graded()

    def gradient(aggregation, rows):
        objective = ObjectiveSection(aggregation=aggregation)
        updater = make_updater(rows=rows)  # aggregation lives in the batch's weights
        return accumulated_gradient(updater, make_model(), pack_case(graded, objective, rows=rows))

    for aggregation in ("token_mean", "sequence_mean", "sequence_sum_constant"):
        gap = max_leaf_difference(gradient(aggregation, 2), gradient(aggregation, 8), relative=True)
        assert gap <= GRADIENT_RTOL, aggregation
    packed = max_leaf_difference(
        gradient("microbatch_token_mean", 2), gradient("microbatch_token_mean", 8), relative=True
    )
    assert packed > 100 * GRADIENT_RTOL


def test_bfloat16_compute_keeps_float32_masters_and_gradients():
    model, batch = make_model(), pack_case(make_graded())
    updater = make_updater(model=ModelSection(dtype="bfloat16", remat="layer"))
    got = accumulated_gradient(updater, model, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype("float32")}
    want = accumulated_gradient(make_updater(), model, batch)
    assert 0 < max_leaf_difference(got, want, relative=True) <= BF16_GRADIENT_RTOL
    state = init_train_state(model, OPTIMIZER, one_device_mesh())
    state, _ = updater.update(state, batch)
    floats = [x for x in jax.tree.leaves(state) if np.issubdtype(x.dtype, np.floating)]
    assert {x.dtype for x in floats} == {np.dtype("float32")}


def test_on_policy_update_has_ratio_one_no_clips_and_no_gap():
    model = make_model()
    batch = pack_case(make_graded())
    logp_BT, _ = logp_and_entropy(model, batch)  # as an exact sampler would report them
    batch = dataclasses.replace(batch, old_logp_BT=logp_BT * batch.fresh_BT)
    state = init_train_state(model, OPTIMIZER, one_device_mesh())
    _, metrics = make_updater().update(state, batch)
    got = values(metrics)
    assert got["update/ratio_mean"] == 1.0
    for name in ("low", "high", "dual"):
        assert got[f"update/clip_fraction_{name}"] == 0.0
    assert got["rollout/logp_gap_max"] <= LOGPROB_ATOL
    assert got["update/skipped"] == 0.0


def test_metrics_match_numpy():
    model, batch = make_model(), pack_case(make_graded())
    batch.fresh_BT[::2] = 0
    objective = ObjectiveSection(old_logprobs="sampler")
    state = init_train_state(model, OPTIMIZER, one_device_mesh())
    _, metrics = make_updater(objective).update(state, batch)
    logp, entropy = logp_and_entropy(model, batch)
    counted, fresh = batch.weight_BT != 0, batch.fresh_BT != 0
    ratio = np.exp(np.asarray(logp) - batch.old_logp_BT)
    low = (ratio < 0.8) & (batch.advantage_BT < 0)
    high = (ratio > 1.28) & (batch.advantage_BT > 0)
    gap = np.abs(np.asarray(logp) - batch.old_logp_BT)[fresh]
    got = values(metrics)
    want = {
        "update/entropy": np.asarray(entropy)[counted].mean(),
        "update/fresh_entropy": np.asarray(entropy)[fresh].mean(),
        "update/ratio_mean": ratio[counted].mean(),
        "update/clip_fraction_low": low[counted].mean(),
        "update/clip_fraction_high": high[counted].mean(),
        "update/tis_fraction": (ratio > 2)[counted].mean(),
        "rollout/logp_gap_mean": gap.mean(),
        "rollout/logp_gap_max": gap.max(),
    }
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-4), name
    assert metrics["update/entropy"].weight == batch.tokens == counted.sum()


def test_no_fresh_token_gives_no_gap_and_no_entropy_of_theirs():
    batch = pack_case(make_graded())
    batch.fresh_BT[:] = 0
    state = init_train_state(make_model(), OPTIMIZER, one_device_mesh())
    _, metrics = make_updater().update(state, batch)
    got = values(metrics)
    assert got["rollout/logp_gap_mean"] is None and got["rollout/logp_gap_max"] is None
    assert got["update/fresh_entropy"] is None and got["update/entropy"] > 0


def test_recompute_is_on_policy_at_first_and_keeps_the_gap_to_the_sampler():
    objective = ObjectiveSection(old_logprobs="recompute", minibatches=2)
    model, batch = make_model(), pack_case(make_graded())
    updater = make_updater(objective)
    state = init_train_state(model, OPTIMIZER, one_device_mesh())
    recomputed = updater.recompute_logprobs(state.params, batch)
    assert (recomputed.sampler_logp_BT == batch.old_logp_BT).all()
    assert (recomputed.old_logp_BT[batch.weight_BT == 0] == 0).all()
    parts = []
    for _ in range(2):
        state, metrics = updater.update(state, recomputed)
        parts.append(metrics)
    first, second = map(values, parts)
    assert first["update/ratio_mean"] == pytest.approx(1.0, abs=LOGPROB_ATOL)
    assert abs(second["update/ratio_mean"] - 1.0) > 10 * LOGPROB_ATOL
    gap = np.abs(recomputed.old_logp_BT - batch.old_logp_BT)[batch.fresh_BT != 0]
    for part in (first, second):
        assert part["rollout/logp_gap_mean"] == pytest.approx(gap.mean(), rel=1e-5)
    merged = values(merge_metrics(parts))
    mean = (first["update/entropy"] + second["update/entropy"]) / 2
    assert merged["update/entropy"] == pytest.approx(mean)
    assert merged["update/skipped"] == 0.0


def test_the_gap_is_that_of_the_first_minibatch_that_was_sampled_in_this_step():
    copies = {"rollout/logp_gap_mean": Mean(0.0, 0.0), "rollout/logp_gap_max": None}
    fresh = {"rollout/logp_gap_mean": Mean(5.0, 100.0), "rollout/logp_gap_max": 0.2}
    later = {"rollout/logp_gap_mean": Mean(9.0, 10.0), "rollout/logp_gap_max": 0.9}
    assert merge_metrics([copies, fresh, later]) == fresh
    assert merge_metrics([fresh, copies, later]) == fresh
    assert merge_metrics([copies, copies]) == copies


@pytest.mark.parametrize(
    ("data", "fsdp", "context", "said"),
    [
        (1, 4, 1, ""),
        (1, 3, 1, "mesh.fsdp=3 does not divide .* device holds all weights .* not 1/3 of them"),
        (1, 8, 3, "mesh.fsdp=8 x mesh.context=3 does not .* holds 1/8 of all .* not 1/24 of them"),
        (3, 1024, 1, "mesh.data=3 x mesh.fsdp=1024 does not .* holds all weights"),
    ],
)
def test_weights_that_an_axis_does_not_split_are_named(data, fsdp, context, said, capsys):
    mesh: Any = types.SimpleNamespace(shape={"data": data, "fsdp": fsdp, "context": context})
    warn_of_copies(dataclasses.replace(QWEN3, hidden_size=2560), mesh)
    printed = capsys.readouterr().err
    assert re.search(said, printed) and bool(printed) is bool(said)


def test_kl_pulls_to_the_reference_and_is_zero_at_it():
    model, other = make_model(), make_model(seed=1)
    batch = pack_case(make_graded())
    batch.advantage_BT[:] = 0
    updater = make_updater(ObjectiveSection(kl_coef=0.5))
    mesh = one_device_mesh()
    _, metrics = updater.update(init_train_state(model, OPTIMIZER, mesh), batch, reference=model)
    assert values(metrics)["update/kl"] == pytest.approx(0.0, abs=LOGPROB_ATOL)
    state, kls = init_train_state(model, OPTIMIZER, mesh), []
    for _ in range(6):
        state, metrics = updater.update(state, batch, reference=other)
        kls.append(values(metrics)["update/kl"])
    assert all(later < earlier for earlier, later in itertools.pairwise(kls))
    with pytest.raises(ValueError, match=r"objective.kl_coef=0.5.*reference"):
        updater.update(state, batch)


@pytest.mark.parametrize("placed", [True, False])
def test_a_reference_that_lies_right_is_held_once(placed, monkeypatch):
    mesh, updater, copied = one_device_mesh(), make_updater(ObjectiveSection(kl_coef=0.5)), []

    def copies(model, shardings):
        copied.append(model)
        return private_copies(model, shardings)

    monkeypatch.setattr("polaris_jax.train.update.private_copies", copies)
    state = init_train_state(make_model(), OPTIMIZER, mesh)
    reference = make_model(seed=1)
    if placed:
        reference = init_train_state(reference, OPTIMIZER, mesh).params
    for _ in range(2):
        state, _ = updater.update(state, pack_case(make_graded()), reference=reference)
    assert len(copied) == (0 if placed else 1)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(reference))


def test_entropy_bonus_raises_entropy():
    batch = pack_case(make_graded())
    batch.advantage_BT[:] = 0
    state = init_train_state(make_model(), OPTIMIZER, one_device_mesh())
    updater, entropies = make_updater(ObjectiveSection(entropy_coef=0.1)), []
    for _ in range(4):
        state, metrics = updater.update(state, batch)
        entropies.append(values(metrics)["update/entropy"])
    assert all(a < b for a, b in itertools.pairwise(entropies))


def test_a_non_finite_gradient_changes_nothing_but_the_counters():
    mesh, updater = one_device_mesh(), make_updater()
    good, bad = pack_case(make_graded()), pack_case(make_graded())
    bad.advantage_BT[0, :] = np.where(bad.weight_BT[0] != 0, np.inf, 0)
    state, _ = updater.update(init_train_state(make_model(), OPTIMIZER, mesh), good)
    before = jax.device_get(state)
    for skips in (1, 2):
        state, metrics = updater.update(state, bad)
        assert metrics["update/skipped"] == 1.0
        assert int(state.skips_in_a_row) == skips and int(state.step) == 1
    after = jax.device_get(state)
    for name in ("params", "opt_state"):
        pairs = zip(
            jax.tree.leaves(getattr(before, name)),
            jax.tree.leaves(getattr(after, name)),
            strict=True,
        )
        assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
    state, metrics = updater.update(state, good)
    assert metrics["update/skipped"] == 0.0
    assert int(state.skips_in_a_row) == 0 and int(state.step) == 2


def test_nothing_compiles_after_the_first_update_whatever_the_number_of_microbatches():
    compiles = []

    def listener(event, duration, **_):
        if "backend_compile" in event:
            compiles.append(event)

    graded = make_graded()
    mesh = one_device_mesh()
    updater = Updater(ObjectiveSection(), OPTIMIZER, FP32, mesh, rows=2, row_len=ROW_LEN)
    state = init_train_state(make_model(), OPTIMIZER, mesh)
    batches = [pack_case(graded, rows=2), pack_case(select_groups(graded, np.arange(2)), rows=2)]
    batches.append(pack_case(concat_graded([graded, make_graded(1)]), rows=2))
    assert len({b.token_BT.shape[0] for b in batches}) == 3
    update_programs.cache_clear()
    jax.monitoring.register_event_duration_secs_listener(listener)
    state, _ = updater.update(state, batches[0])
    first = len(compiles)
    assert first == 3  # the zero accumulator, accumulate, apply
    again = Updater(ObjectiveSection(), OPTIMIZER, FP32, mesh, rows=2, row_len=ROW_LEN)
    for batch in batches:
        state, _ = updater.update(state, batch)
        state, _ = again.update(state, batch)
    jax.monitoring.unregister_event_duration_listener(listener)
    assert len(compiles) == first


def test_reset_optimizer_keeps_weights_and_counters():
    updater = make_updater()
    state = init_train_state(make_model(), OPTIMIZER, one_device_mesh())
    state, _ = updater.update(state, pack_case(make_graded()))
    reset = updater.reset_optimizer(state)
    assert max_leaf_difference(reset.params, state.params, relative=False) == 0.0
    assert int(reset.step) == 1
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(reset.opt_state))
    updater.update(reset, pack_case(make_graded()))


def test_another_rotary_scaling_is_another_program_of_the_same_updater():
    def yarn(state):
        scaling = RopeScaling("yarn", 2.0, original_max_position_embeddings=16)
        is_model = lambda x: isinstance(x, type(model))  # noqa: E731
        return jax.tree.map(
            lambda x: x.with_rope_scaling(scaling) if is_model(x) else x, state, is_leaf=is_model
        )

    model, batch, updater = make_model(), pack_case(make_graded()), make_updater()
    state = init_train_state(model, OPTIMIZER, one_device_mesh())
    state, plain = updater.update(state, batch)
    state, scaled = updater.update(yarn(state), batch)
    assert state.params.config.rope_scaling is not None
    assert values(scaled)["update/entropy"] != values(plain)["update/entropy"]


def test_a_batch_of_another_shape_or_vocabulary_is_refused():
    updater, graded = make_updater(), make_graded()
    state = init_train_state(make_model(), OPTIMIZER, one_device_mesh())
    with pytest.raises(ValueError, match=r"batch.row_len"):
        updater.update(state, pack_case(graded, row_len=64))
    with pytest.raises(ValueError, match=r"multiple of 8 rows"):
        updater.update(state, pack_case(select_groups(graded, np.arange(2)), rows=3))
    foreign = pack_case(graded)
    foreign.token_BT[0, 0] = 64
    with pytest.raises(ValueError, match=r"must lie in \[0, 64\)"):
        updater.update(state, foreign)


def test_the_steady_state_moves_nothing_to_or_from_the_host_by_accident():
    """Batches go up and metrics come down by explicit calls; all else stays on the devices."""
    updater = make_updater()
    state = init_train_state(make_model(), OPTIMIZER, one_device_mesh())
    state, _ = updater.update(state, pack_case(make_graded()))
    with jax.transfer_guard("disallow"):
        with pytest.raises(Exception, match=r"[Dd]isallowed host-to-device transfer"):
            jax.jit(lambda x: x + 1)(np.ones(3))  # the guard is awake
        state, metrics = updater.update(state, pack_case(make_graded(1)))
    assert values(metrics)["update/skipped"] == 0.0
