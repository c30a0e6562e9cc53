"""The mesh, the rule tables, and the update on eight devices against one."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from polaris_jax.config import ConfigError, MeshSection
from polaris_jax.models import param_axes, param_shapes
from polaris_jax.sharding import (
    MESH_AXES,
    SAMPLER_RULES,
    TRAINER_RULES,
    leaf_spec,
    make_mesh,
    param_shardings,
)
from polaris_jax.train.state import init_train_state
from tests.tolerances import GRADIENT_RTOL, SHARDED_PARAMS_LR_SHARE
from tests.train.cases import (
    OPTIMIZER,
    QWEN2,
    QWEN3,
    accumulated_gradient,
    make_graded,
    make_model,
    make_updater,
    max_leaf_difference,
    one_device_mesh,
    pack_case,
)

STEPS = 3
# eps above the gradients' rounding (1e-8): below it Adam makes whole steps out of rounding, and one
# entry in some ten thousand then differs by up to the learning rate, on any two programs.
SMOOTH = dataclasses.replace(OPTIMIZER, eps=1e-6)
DATA2_FSDP4 = MeshSection(data=2, fsdp=4)


def test_fsdp_takes_the_rest_and_axes_are_auto():
    mesh = make_mesh(MeshSection(data=2, tensor=2))
    assert mesh.axis_names == MESH_AXES
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("section", "field"),
    [
        (MeshSection(data=3), "mesh.fsdp=-1"),
        (MeshSection(data=2, fsdp=2), "mesh.fsdp=2"),
        (MeshSection(data=16), "mesh.fsdp=-1"),
        (MeshSection(tensor=0), "mesh.tensor=0"),
        (MeshSection(fsdp=-2), "mesh.fsdp=-2"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(section, field):
    with pytest.raises(ConfigError, match=field):
        make_mesh(section)


def test_two_dimensions_on_one_mesh_axis_collide():
    mesh = make_mesh(DATA2_FSDP4)
    rules = TRAINER_RULES | {"mlp": ("fsdp",)}
    with pytest.raises(ValueError, match=r"gate.*'embed' and 'mlp' both claim mesh axis 'fsdp'"):
        leaf_spec("gate", (32, 48), ("embed", "mlp"), mesh=mesh, rules=rules)


def test_a_rule_for_no_mesh_axis_is_refused():
    with pytest.raises(ValueError, match="'expert'"):
        leaf_spec("w", (8,), ("embed",), mesh=make_mesh(DATA2_FSDP4), rules={"embed": ("expert",)})


@pytest.mark.parametrize("rules", [TRAINER_RULES, SAMPLER_RULES], ids=["trainer", "sampler"])
@pytest.mark.parametrize("config", [QWEN3, QWEN2], ids=["qwen3", "qwen2"])
def test_the_tables_hold_for_every_parameter(rules, config):
    mesh = make_mesh(MeshSection(data=2, tensor=2))
    shapes = {p: jax.ShapeDtypeStruct(s, np.float32) for p, s in param_shapes(config).items()}
    shardings = param_shardings(shapes, mesh, rules, axes=param_axes(config))
    assert shardings.keys() == shapes.keys()
    for path, sharding in shardings.items():
        sharding.shard_shape(shapes[path].shape)  # raises where it does not divide


def test_an_axis_that_does_not_divide_is_left_out():
    mesh = make_mesh(DATA2_FSDP4)
    spec = leaf_spec("w", (6, 10), ("embed", "mlp"), mesh=mesh, rules=TRAINER_RULES)
    assert spec == PartitionSpec("data", None)


def run(mesh, config):
    updater = make_updater(mesh=mesh, optimizer=SMOOTH)
    state = init_train_state(make_model(config), SMOOTH, mesh)
    for step in range(STEPS):
        state, metrics = updater.update(state, pack_case(make_graded(step)))
    return state, metrics


@pytest.mark.parametrize(
    ("section", "config"),
    [
        pytest.param(DATA2_FSDP4, QWEN3, id="data2-fsdp4-qwen3"),
        pytest.param(DATA2_FSDP4, QWEN2, id="data2-fsdp4-qwen2"),
        pytest.param(MeshSection(fsdp=2, context=2, tensor=2), QWEN3, id="fsdp2-context2-tensor2"),
    ],
)
def test_eight_devices_give_the_parameters_of_one(section, config):
    mesh = make_mesh(section)
    model, batch = make_model(config), pack_case(make_graded())
    one = accumulated_gradient(make_updater(optimizer=SMOOTH), model, batch)
    many = accumulated_gradient(make_updater(mesh=mesh, optimizer=SMOOTH), model, batch)
    assert max_leaf_difference(many, one, relative=True) <= GRADIENT_RTOL

    got, _ = run(mesh, config)
    want, _ = run(one_device_mesh(), config)
    bound = SHARDED_PARAMS_LR_SHARE * SMOOTH.learning_rate * STEPS
    assert max_leaf_difference(got.params, want.params, relative=False) <= bound


def test_each_device_holds_an_eighth_of_weights_and_moments():
    state, _ = run(make_mesh(DATA2_FSDP4), QWEN3)
    adam = state.opt_state[0]
    for tree in (state.params, adam.mu, adam.nu):
        for path, leaf in tree.params().items():
            if "norm" in path:
                continue  # vectors are whole everywhere
            for shard in leaf.addressable_shards:
                assert shard.data.size * 8 == leaf.size, path
                assert math.prod(shard.data.shape) == shard.data.size


def test_rows_that_do_not_divide_over_the_mesh_are_refused():
    with pytest.raises(ValueError, match=r"batch.rows=6.*= 8 parts"):
        make_updater(mesh=make_mesh(DATA2_FSDP4), rows=6)


def test_one_mesh_serves_many_batch_shapes_without_recompiling():
    mesh = make_mesh(DATA2_FSDP4)
    updater = make_updater(mesh=mesh, optimizer=SMOOTH)
    state = init_train_state(make_model(), SMOOTH, mesh)
    state, _ = updater.update(state, pack_case(make_graded()))
    compiles = []

    def listener(event, duration, **_):
        if "backend_compile" in event:
            compiles.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    for prompts in (2, 12):
        graded = make_graded(prompts, prompts=prompts)
        state, _ = updater.update(state, pack_case(graded))
    jax.monitoring.unregister_event_duration_listener(listener)
    assert not compiles
