"""The sampler's weights are the trainer's in another dtype and sharding, in memory of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from polaris_jax.config import MeshSection
from polaris_jax.models import Decoder, param_axes
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout import weights as module
from polaris_jax.rollout.live import CompileCounter
from polaris_jax.rollout.programs.abstract import abstract_weights, weight_sync_programs
from polaris_jax.rollout.weights import sync_weights
from polaris_jax.sharding import (
    SAMPLER_AXES,
    TRAINER_RULES,
    in_host_memory,
    make_mesh,
    make_sampler_mesh,
    moved,
    param_shardings,
    private_copies,
)
from tests.support.random_models import random_model
from tests.support.rollout.rollout_cases import CONFIG, small_model


def trainer_params(section: MeshSection, devices=None) -> Decoder:
    """The small model as a trainer holds it."""
    mesh = make_mesh(section, devices)
    where = param_shardings(small_model(), mesh, TRAINER_RULES, axes=param_axes(CONFIG))
    return private_copies(small_model(), where)


def same_values(weights: Decoder, dtype=jnp.float32) -> bool:
    leaves = zip(jax.tree.leaves(weights), jax.tree.leaves(small_model()), strict=True)
    return all(np.array_equal(a, b.astype(dtype)) for a, b in leaves)


def test_weights_are_cast_and_the_structure_stays():
    cast, report = sync_weights(small_model(), jnp.bfloat16, None)
    assert jax.tree.structure(cast) == jax.tree.structure(small_model())
    assert {x.dtype for x in jax.tree.leaves(cast)} == {jnp.dtype(jnp.bfloat16)}
    assert report.bytes == 2 * CONFIG.num_parameters
    assert report.seconds > 0


def test_the_trainers_arrays_may_be_deleted():
    model = random_model(CONFIG, 3)
    copy, _ = sync_weights(model, jnp.float32, None)
    expected = [np.asarray(x) for x in jax.tree.leaves(model)]
    for leaf in jax.tree.leaves(model):
        leaf.delete()
    for leaf, value in zip(jax.tree.leaves(copy), expected, strict=True):
        np.testing.assert_array_equal(leaf, value)


@pytest.mark.parametrize(("data", "tensor"), [(8, 1), (4, 2), (1, 2)])
@pytest.mark.parametrize(
    "section",
    [MeshSection(data=2, fsdp=4), MeshSection(fsdp=2, context=2, tensor=2)],
    ids=["data2-fsdp4", "fsdp2-context2-tensor2"],
)
def test_any_trainer_mesh_to_any_sampler_mesh(section, data, tensor):
    params = trainer_params(section)
    mesh = make_sampler_mesh(jax.devices(), data=data, tensor=tensor)
    weights, report = sync_weights(params, jnp.bfloat16, mesh)
    assert same_values(weights, jnp.bfloat16)
    written = 0
    for path, leaf in weights.params().items():
        assert set(leaf.sharding.mesh.axis_names) == set(SAMPLER_AXES)
        split = tensor if "norm" not in path and path != "embed_VD" else 1  # V = 61 is odd
        for shard in leaf.addressable_shards:
            assert shard.data.size * split == leaf.size, path
            written += shard.data.nbytes
    assert report.bytes == written
    assert same_values(params)  # the trainer goes on with its own


def test_devices_in_another_order_get_their_own_shards():
    params = trainer_params(MeshSection(fsdp=8), devices=jax.devices()[::-1])
    grid = np.array([jax.devices()[i] for i in (0, 1, 3, 2)]).reshape(2, 2)
    for devices in (grid, np.array(jax.devices()).reshape(4, 2)):
        mesh = Mesh(devices, SAMPLER_AXES, axis_types=(AxisType.Auto,) * 2)
        assert same_values(sync_weights(params, jnp.float32, mesh)[0])


def test_a_trainer_on_many_devices_serves_a_sampler_on_one():
    params = trainer_params(MeshSection(fsdp=8))
    weights, report = sync_weights(params, jnp.float32, None)
    assert same_values(weights)
    assert {x.sharding.device_set == {jax.devices()[0]} for x in jax.tree.leaves(weights)} == {True}
    assert report.bytes == 4 * CONFIG.num_parameters


@pytest.mark.parametrize("tensor", [None, 2], ids=["one-device", "mesh"])
def test_old_weights_are_freed_and_nothing_compiles_twice(tensor):
    mesh = None if tensor is None else make_sampler_mesh(jax.devices(), data=2, tensor=tensor)
    old, _ = sync_weights(small_model(), jnp.float32, mesh)
    with CompileCounter() as compiles:
        new, _ = sync_weights(small_model(), jnp.float32, mesh, old=old)
    assert compiles.count == 0
    assert all(x.is_deleted() for x in jax.tree.leaves(old))
    assert same_values(new)
    assert not any(x.is_deleted() for x in jax.tree.leaves(small_model()))


def test_the_planned_programs_are_those_that_run():
    params = trainer_params(MeshSection(fsdp=4, tensor=2))
    mesh = make_sampler_mesh(jax.devices(), data=4, tensor=2)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    planned = weight_sync_programs(abstract, jnp.bfloat16, mesh)
    weights, _ = sync_weights(params, jnp.bfloat16, mesh)
    assert [p.name for p in planned] == [f"weight_sync/{path}" for path in weights.params()]
    for program, leaf in zip(planned, jax.tree.leaves(weights), strict=True):
        (out,) = jax.tree.leaves(program.lower().compile().output_shardings)
        assert out.is_equivalent_to(leaf.sharding, leaf.ndim)
    for want, leaf in zip(
        jax.tree.leaves(abstract_weights(CONFIG, "bfloat16", mesh)),
        jax.tree.leaves(weights),
        strict=True,
    ):
        assert (want.shape, want.dtype, want.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)


def test_a_bfloat16_sampler_takes_float32_weights():
    # Not the native kernels, which pad their matrices.
    config = SamplerConfig(slots=2, num_pages=9, max_len=32, dtype="bfloat16", attention="xla")
    sampler = Sampler(small_model(), config)
    sampler.update_weights(small_model(1))
    response = sampler.generate([[1, 2, 3]], SamplingParams(max_tokens=5))[0][0]
    assert len(response.token_ids) == 5
    assert max(response.logprobs) <= 0
    assert sampler.stats()["weight_sync_bytes"] == 2 * 2 * CONFIG.num_parameters


@pytest.mark.parametrize("tensor", [1, 2])
def test_weights_come_from_host_memory_and_from_other_devices(tensor):
    mesh = make_sampler_mesh(jax.devices()[4:6], data=2 // tensor, tensor=tensor)
    params = trainer_params(MeshSection(fsdp=4), devices=jax.devices()[:4])
    where = jax.tree.map(lambda x: x.sharding, params)
    parked = moved(params, in_host_memory(where))
    weights, _ = sync_weights(parked, jnp.bfloat16, mesh)
    assert same_values(weights, jnp.bfloat16)
    for leaf in jax.tree.leaves(weights):
        assert leaf.sharding.device_set == set(mesh.devices.flat)
        assert leaf.sharding.memory_kind == "device"
    assert {x.sharding.memory_kind for x in jax.tree.leaves(parked)} == {"pinned_host"}
    assert same_values(parked)


def numpy_model(seed: int = 0) -> Decoder:
    params = small_model(seed).params()
    return Decoder.from_params(CONFIG, {path: np.asarray(x) for path, x in params.items()})


@pytest.mark.parametrize("tensor", [None, 2], ids=["one-device", "mesh"])
def test_numpy_arrays_replace_the_old_weights_leaf_by_leaf(tensor, monkeypatch):
    mesh = None if tensor is None else make_sampler_mesh(jax.devices()[:2], tensor=tensor)
    old, _ = sync_weights(small_model(), jnp.bfloat16, mesh)
    left, moved_by = [], module._moved

    def counted(*args):
        left.append(sum(not x.is_deleted() for x in jax.tree.leaves(old)))
        return moved_by(*args)

    monkeypatch.setattr(module, "_moved", counted)
    new, _ = sync_weights(numpy_model(), jnp.bfloat16, mesh, old=old)
    # Each has left before its own is uploaded.
    assert left == list(range(len(jax.tree.leaves(old))))[::-1]
    assert same_values(new, jnp.bfloat16)
    wanted, _ = sync_weights(small_model(), jnp.bfloat16, mesh)
    for leaf, other in zip(jax.tree.leaves(new), jax.tree.leaves(wanted), strict=True):
        assert (leaf.sharding, leaf.committed) == (other.sharding, other.committed)


def test_numpy_arrays_for_one_device_compile_nothing_anew():
    sampler = Sampler(small_model(), SamplerConfig(slots=2, num_pages=9, max_len=32))
    params = SamplingParams(max_tokens=5, temperature=0.0)
    expected = sampler.generate([[1, 2, 3]], params)[0][0].token_ids
    sampler.reset_stats()
    sampler.update_weights(numpy_model())
    assert sampler.generate([[1, 2, 3]], params)[0][0].token_ids == expected
    assert sampler.stats()["compiles"] == 0


def test_one_device_takes_parked_weights():
    model = jax.tree.map(jnp.copy, small_model())
    parked = moved(model, in_host_memory(jax.tree.map(lambda x: x.sharding, model)))
    weights, _ = sync_weights(parked, jnp.float32, None)
    assert same_values(weights)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(weights)} == {"device"}
