"""The train state: private copies, placement, and its abstract twin."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.config import MeshSection
from polaris_jax.models import Decoder
from polaris_jax.sharding import make_mesh
from polaris_jax.train.state import (
    abstract_train_state,
    init_train_state,
    random_train_state,
)
from tests.support.train.cases import (
    OPTIMIZER,
    QWEN3,
    make_graded,
    make_model,
    make_updater,
    one_device_mesh,
    pack_case,
)
from tests.tolerances import FUSED_RTOL


def test_updates_leave_the_source_model_alone():
    model = make_model()
    before = jax.tree.map(lambda x: np.array(x, copy=True), model)
    state = init_train_state(model, OPTIMIZER, one_device_mesh())
    updater = make_updater()
    for _ in range(2):
        state, _ = updater.update(state, pack_case(make_graded()))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(model), strict=True):
        assert not b.is_deleted()
        assert (np.asarray(b) == a).all()


def test_the_donated_state_is_gone():
    state = init_train_state(make_model(), OPTIMIZER, one_device_mesh())
    make_updater().update(state, pack_case(make_graded()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_bfloat16_weights_become_float32_masters():
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_model())
    state = init_train_state(model, OPTIMIZER, one_device_mesh())
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(model), strict=True):
        assert a.dtype == jnp.float32
        assert (np.asarray(a) == np.asarray(b, np.float32)).all()


@pytest.mark.parametrize("section", [MeshSection(), MeshSection(data=2, tensor=2)], ids=str)
def test_abstract_state_tells_shape_dtype_and_place(section):
    mesh = make_mesh(section)
    state = init_train_state(make_model(), OPTIMIZER, mesh)
    abstract = abstract_train_state(QWEN3, OPTIMIZER, mesh=mesh)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)


def test_a_placed_model_is_taken_and_not_copied():
    mesh = make_mesh(MeshSection(data=2, tensor=2))
    placed = init_train_state(make_model(), OPTIMIZER, mesh).params

    def buffers(model):
        return [leaf.unsafe_buffer_pointer() for x in jax.tree.leaves(model) for leaf in parts(x)]

    def parts(leaf):
        return [shard.data for shard in leaf.addressable_shards]

    taken = init_train_state(placed, OPTIMIZER, mesh, take=True)
    assert buffers(taken.params) == buffers(placed)
    copied = init_train_state(placed, OPTIMIZER, mesh)
    assert not set(buffers(copied.params)) & set(buffers(placed))
    elsewhere = init_train_state(placed, OPTIMIZER, one_device_mesh(), take=True)
    assert not set(buffers(elsewhere.params)) & set(buffers(placed))


def test_random_state_equals_init_and_is_made_in_place():
    mesh = make_mesh(MeshSection(data=2))
    state = random_train_state(QWEN3, jax.random.key(3), optimizer=OPTIMIZER, mesh=mesh)
    want = Decoder.init(QWEN3, jax.random.key(3))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=FUSED_RTOL)
    assert int(state.step) == int(state.skips_in_a_row) == 0


def test_moments_in_host_memory_change_where_they_lie_and_nothing_else():
    section = dataclasses.replace(OPTIMIZER, moments_in_host_memory=True)
    mesh = make_mesh(MeshSection(fsdp=2), jax.devices()[:2])
    results = {}
    for optimizer in (OPTIMIZER, section):
        state = init_train_state(make_model(), optimizer, mesh)
        updater = make_updater(mesh=mesh, optimizer=optimizer)
        for step in range(2):
            state, _ = updater.update(state, pack_case(make_graded(step)))
        results[optimizer.moments_in_host_memory] = state
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(results[True].opt_state[0].mu)}
    assert kinds == {"pinned_host"}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(results[True].params)} == {"device"}
    for a, b in zip(jax.tree.leaves(results[True]), jax.tree.leaves(results[False]), strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()


def test_a_parked_state_leaves_the_devices_and_comes_back_bit_for_bit():
    mesh = make_mesh(MeshSection(fsdp=2), jax.devices()[:2])
    updater = make_updater(mesh=mesh, parks=True)
    state = init_train_state(make_model(), OPTIMIZER, mesh)
    before = [np.array(x) for x in jax.tree.leaves(state)]
    shardings = [x.sharding for x in jax.tree.leaves(state)]

    parked = updater.park(state)
    moments = parked.opt_state[0]
    for leaf in jax.tree.leaves((parked.params, moments.mu, moments.nu)):
        assert leaf.sharding.memory_kind == "pinned_host"
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert updater.park(parked).params.embed_VD[...] is parked.params.embed_VD[...]

    fetched = updater.fetch(parked)
    assert [x.sharding for x in jax.tree.leaves(fetched)] == shardings
    for leaf, value in zip(jax.tree.leaves(fetched), before, strict=True):
        np.testing.assert_array_equal(leaf, value)

    fresh = updater.reset_optimizer(updater.park(fetched))
    assert {x.sharding.memory_kind for x in jax.tree.leaves(fresh.opt_state[0].mu)} == {
        "pinned_host"
    }


def test_a_state_stays_where_it_is_unless_it_is_to_be_parked():
    updater = make_updater()
    state = init_train_state(make_model(), OPTIMIZER, one_device_mesh())
    assert updater.park(state) is state
    assert updater.fetch(state) is state
