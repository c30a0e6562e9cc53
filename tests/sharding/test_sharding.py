"""The mesh, the rule tables, and the update on eight devices against one."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from polaris_jax.config import ConfigError, MeshSection, ModelSection, ObjectiveSection
from polaris_jax.models import ContextShard, param_axes, param_shapes
from polaris_jax.sharding import (
    MESH_AXES,
    SAMPLER_RULES,
    TRAINER_RULES,
    leaf_spec,
    make_mesh,
    param_shardings,
    split_devices,
)
from polaris_jax.train.programs import abstract_arguments, update_programs
from polaris_jax.train.state import init_train_state
from polaris_jax.train.update import Updater
from tests.support.train.cases import (
    FP32,
    OPTIMIZER,
    QWEN2,
    QWEN3,
    ROW_LEN,
    ROWS,
    accumulated_gradient,
    logprobs,
    make_graded,
    make_model,
    make_updater,
    max_leaf_difference,
    one_device_mesh,
    pack_case,
    values,
)
from tests.tolerances import (
    BF16_GRADIENT_RTOL,
    CLOSED_FORM_ATOL,
    GRADIENT_RTOL,
    LOGPROB_ATOL,
    LOSS_RTOL,
    NEAR_ZERO_GRADIENT,
    NEAR_ZERO_SHARE,
    SHARDED_PARAMS_LR_SHARE,
)

STEPS = 3
# eps above the gradients' rounding (1e-8): below it Adam makes whole steps out of rounding, and one
# entry in some ten thousand then differs by up to the learning rate, on any two programs.
SMOOTH = dataclasses.replace(OPTIMIZER, eps=1e-6)
# Two query heads share each of 8 KV heads, so that all sizes of `tensor` divide them.
GROUPED = {"num_heads": 16, "num_kv_heads": 8, "head_dim": 8}
FAMILIES = {
    "qwen3": dataclasses.replace(QWEN3, **GROUPED),  # QK-norm, tied tables
    "qwen2": dataclasses.replace(QWEN2, **GROUPED),  # biases, a head of its own
}
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


def test_devices_are_shared_or_split():
    everywhere = jax.devices()
    assert split_devices(0) == (everywhere, everywhere)
    assert split_devices(3) == (everywhere[:5], everywhere[5:])
    for count in (8, 9, -1):
        with pytest.raises(ConfigError, match=f"rollout.devices={count}: a process has 8"):
            split_devices(count)


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
    # Of several the one that splits more, whatever the order.
    spec = leaf_spec("w", (12, 10), ("embed", "mlp"), mesh=mesh, rules=TRAINER_RULES)
    assert spec == PartitionSpec("fsdp", None)


def run(mesh, config, *, optimizer=SMOOTH, model=FP32):
    updater = make_updater(mesh=mesh, optimizer=optimizer, model=model)
    state = init_train_state(make_model(config), optimizer, mesh)
    for step in range(STEPS):
        state, metrics = updater.update(state, pack_case(make_graded(step)))
    return state, metrics


def gradient(mesh, config, *, model=FP32):
    updater = make_updater(mesh=mesh, optimizer=SMOOTH, model=model)
    return accumulated_gradient(updater, make_model(config), pack_case(make_graded()))


def assert_equals_one_device(sizes, config, *, model=FP32):
    """Loss, gradient and three updates; the one device always with dense attention, no remat."""
    mesh = make_mesh(MeshSection(*sizes))
    many, one = gradient(mesh, config, model=model), gradient(one_device_mesh(), config)
    assert max_leaf_difference(many, one, relative=True) <= GRADIENT_RTOL

    got, got_metrics = run(mesh, config, model=model)
    want, want_metrics = run(one_device_mesh(), config)
    bound = SHARDED_PARAMS_LR_SHARE * SMOOTH.learning_rate * STEPS
    assert max_leaf_difference(got.params, want.params, relative=False) <= bound
    got_values, want_values = values(got_metrics), values(want_metrics)
    for name in ("update/loss", "update/entropy", "update/grad_norm"):
        assert got_values[name] == pytest.approx(want_values[name], rel=LOSS_RTOL), name


# Every way to make 8 of the four axes, the families in turn: each meets every axis alone and
# together with others. Those of FAST are in the default suite.
FACTORISATIONS = [
    sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(sizes) == 8
]
MESH_CASES = dict(zip(FACTORISATIONS, itertools.cycle(FAMILIES), strict=False))
FAST = {(2, 4, 1, 1), (1, 2, 1, 4), (1, 2, 2, 2), (1, 1, 4, 2)}


@pytest.mark.parametrize(
    ("sizes", "family"),
    [
        pytest.param(
            sizes,
            family,
            id="data{}-fsdp{}-context{}-tensor{}".format(*sizes) + f"-{family}",
            marks=() if sizes in FAST else pytest.mark.slow,
        )
        for sizes, family in MESH_CASES.items()
    ],
)
def test_eight_devices_give_the_parameters_of_one(sizes, family):
    assert_equals_one_device(sizes, FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_meets_context_and_tensor_without_context(family):
    met = [sizes for sizes, f in MESH_CASES.items() if f == family]
    assert any(context > 1 for _, _, context, _ in met)
    assert any(tensor > 1 and context == 1 for _, _, context, tensor in met)


def test_tiled_attention_and_remat_on_a_mesh_give_the_parameters_of_one_device(monkeypatch):
    # A shard's row is two pieces of 12 tokens: three tiles each, over twelve tiles of keys.
    monkeypatch.setattr("polaris_jax.models.attention.portable.SHORT_ROW_BLOCK_TOKENS", 4)
    model = ModelSection(dtype="float32", attention="chunked", remat="layer")
    assert_equals_one_device((1, 2, 2, 2), FAMILIES["qwen2"], model=model)


def test_bfloat16_on_a_mesh_has_the_gradient_of_float32():
    """Its products on a CPU have a backward pass of their own (`models.products`)."""
    config, bfloat16 = FAMILIES["qwen2"], ModelSection(dtype="bfloat16", remat="layer")
    many = gradient(make_mesh(MeshSection(1, 2, 2, 2)), config, model=bfloat16)
    one = gradient(one_device_mesh(), config)
    assert 0 < max_leaf_difference(many, one, relative=True) <= BF16_GRADIENT_RTOL


def test_shards_of_many_chunks_give_the_gradient_of_one_device(monkeypatch):
    # 48 tokens in chunks of 4: each of two shards has three pairs.
    for bound in ("MIN", "MAX"):
        monkeypatch.setattr(f"polaris_jax.models.attention.shards.CHUNK_TOKENS_{bound}", 4)
    assert ContextShard("context", 2).pieces(ROW_LEN) == 6
    section = ModelSection(dtype="float32", attention="chunked")
    mesh, config = make_mesh(MeshSection(1, 2, 2, 2)), FAMILIES["qwen3"]
    # An updater of its own: what it compiles must not outlive the patch.
    updater = Updater(ObjectiveSection(), SMOOTH, section, mesh, rows=ROWS, row_len=ROW_LEN)
    many = accumulated_gradient(updater, make_model(config), pack_case(make_graded()))
    assert max_leaf_difference(many, gradient(one_device_mesh(), config), relative=True) <= (
        GRADIENT_RTOL
    )


def test_at_the_recipes_eps_only_near_zero_gradients_move_otherwise():
    """Adam at eps 1e-8 turns the rounding of a near-zero gradient into a whole step."""
    mesh, config = make_mesh(MeshSection(1, 2, 2, 2)), FAMILIES["qwen2"]
    assert OPTIMIZER.eps == 1e-8
    got, _ = run(mesh, config, optimizer=OPTIMIZER)
    want, _ = run(one_device_mesh(), config, optimizer=OPTIMIZER)
    bound = SHARDED_PARAMS_LR_SHARE * OPTIMIZER.learning_rate * STEPS
    first = gradient(one_device_mesh(), config).params()
    differing, entries = 0, 0
    for path, want_leaf in want.params.params().items():
        differs = np.abs(np.asarray(got.params.params()[path]) - np.asarray(want_leaf)) > bound
        magnitude = np.abs(np.asarray(first[path]))
        assert (magnitude[differs] <= NEAR_ZERO_GRADIENT * magnitude.max()).all(), path
        differing, entries = differing + int(differs.sum()), entries + differs.size
    assert differing <= NEAR_ZERO_SHARE * entries


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 2, 2, 2)], ids=["one", "mesh"])
def test_layer_inputs_in_host_memory_leave_the_gradient(sizes):
    """A CPU's compiler keeps them where they are; accelerators are told to move each layer's."""
    mesh = make_mesh(MeshSection(*sizes), jax.devices()[: math.prod(sizes)])
    config, offload = FAMILIES["qwen2"], dataclasses.replace(FP32, remat="layer_offload")
    kept, moved = gradient(mesh, config), gradient(mesh, config, model=offload)
    assert max_leaf_difference(moved, kept, relative=True) == 0.0

    programs = update_programs(config, ObjectiveSection(), SMOOTH, offload, mesh, row_len=ROW_LEN)
    state, total, arrays = abstract_arguments(config, SMOOTH, mesh=mesh, rows=ROWS, row_len=ROW_LEN)
    traced = programs.accumulate.trace(state.params, total, arrays, None)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count('"pinned_host"') == config.num_layers


@pytest.mark.parametrize("sizes", [(1, 1, 4, 2), (2, 2, 1, 2)], ids=str)
def test_recomputed_logprobs_come_back_in_row_order(sizes):
    model, batch = make_model(QWEN3), pack_case(make_graded())
    got = make_updater(mesh=make_mesh(MeshSection(*sizes))).recompute_logprobs(
        init_train_state(model, OPTIMIZER, make_mesh(MeshSection(*sizes))).params, batch
    )
    want, _ = logprobs(
        model, batch.token_BT, batch.position_BT, batch.segment_BT, batch.temperature_BT
    )
    np.testing.assert_allclose(
        got.old_logp_BT, np.asarray(want) * batch.fresh_BT, rtol=0, atol=LOGPROB_ATOL
    )


def test_the_imbalance_of_context_shards_is_weighted_by_work():
    batch = pack_case(make_graded())
    # Shards hold tokens 0, 1, 6, 7 and 2, 3, 4, 5. Padding alone is balanced as one segment is.
    segment_BT = np.array([[1, 1, 1, 1, 1, 1, 2, 2], [0] * 8])
    batch = dataclasses.replace(batch, segment_BT=segment_BT)
    work_BC = np.array([[1 + 2 + 1 + 2, 3 + 4 + 5 + 6], [18, 18]])
    want = work_BC.max(axis=1).sum() / work_BC.mean(axis=1).sum()
    two = make_updater(mesh=make_mesh(MeshSection(context=2)))
    assert two.context_imbalance(batch) == pytest.approx(want, rel=CLOSED_FORM_ATOL)
    assert make_updater().context_imbalance(batch) == 1.0


@pytest.mark.parametrize(
    ("section", "row_len", "words"),
    [
        (MeshSection(tensor=4), ROW_LEN, "mesh.tensor=4: must divide the model's num_kv_heads=2"),
        (MeshSection(context=8), 40, "batch.row_len=40.*mesh.context=8.*a multiple of 16"),
    ],
    ids=["heads", "tokens"],
)
def test_a_mesh_that_does_not_fit_the_model_is_refused(section, row_len, words):
    updater = make_updater(mesh=make_mesh(section), row_len=row_len)
    state = init_train_state(make_model(QWEN3), OPTIMIZER, make_mesh(section))
    with pytest.raises(ConfigError, match=words):
        updater.update(state, pack_case(make_graded(), row_len=row_len))


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
