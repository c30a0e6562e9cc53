"""Parameters go onto devices by layers and by shards; a process reads its own parts alone."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from polaris_jax.config import MeshSection
from polaris_jax.models import ModelConfig, param_axes, param_shapes
from polaris_jax.models.weights import tensors as tensors_lib
from polaris_jax.models.weights.hf import export, export_into
from polaris_jax.models.weights.tensors import (
    from_hf,
    hf_part,
    hf_shapes,
    param_reader,
    place_params,
)
from polaris_jax.sharding import TRAINER_RULES, make_mesh, param_shardings

CONFIG = ModelConfig(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    max_position_embeddings=64,
    tie_embeddings=False,
    qkv_bias=True,
    qk_norm=True,
)
F32 = np.dtype(np.float32)


class Counting:
    """Weights of distinct numbers that count the entries that are read of each tensor."""

    def __init__(self, config=CONFIG):
        self.tensors, self.read_entries = {}, {}
        start = 0
        for name, shape in hf_shapes(config).items():
            size = int(np.prod(shape))
            self.tensors[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
            start += size

    def names(self):
        return set(self.tensors)

    def shape(self, name):
        return self.tensors[name].shape

    def dtype(self, name):
        return F32

    def read(self, name, index=None):
        value = self.tensors[name] if index is None else self.tensors[name][index]
        self.read_entries[name] = self.read_entries.get(name, 0) + value.size
        return value

    def whole(self, path):
        """A parameter put together without any of the code under test but `from_hf`."""
        if not path.startswith("layers/"):
            return from_hf(path, self.tensors[CONFIG.family.hf_name(path)], CONFIG)
        layers = range(CONFIG.num_layers)
        return np.stack(
            [from_hf(path, self.tensors[CONFIG.family.hf_name(path, i)], CONFIG) for i in layers]
        )


def trainer_shardings(section):
    mesh = make_mesh(section, jax.devices()[: section.data * section.fsdp * section.tensor])
    abstract = {p: jax.ShapeDtypeStruct(s, F32) for p, s in param_shapes(CONFIG).items()}
    return param_shardings(abstract, mesh, TRAINER_RULES, axes=param_axes(CONFIG))


@pytest.mark.parametrize("path", list(param_shapes(CONFIG)))
def test_any_part_of_a_parameter_is_read_as_if_cut_from_the_whole(path):
    weights, shape = Counting(), param_shapes(CONFIG)[path]
    whole, rng = weights.whole(path), np.random.default_rng(0)
    read = param_reader(path, CONFIG, weights, F32)
    for _ in range(20):
        ends = [sorted(rng.choice(size + 1, 2, replace=False)) for size in shape]
        index = tuple(slice(int(a), int(b)) for a, b in ends)
        part = read(index)
        np.testing.assert_array_equal(part, whole[index])
        assert part.flags.c_contiguous
        assert not any(np.shares_memory(part, t) for t in weights.tensors.values())


def test_no_more_is_read_than_is_asked_for_but_for_split_heads():
    q = "layers/q_DNH"
    theirs, rest = hf_part(q, (slice(4, 8), slice(1, 3), slice(None)), CONFIG)
    assert theirs == (slice(8, 24), slice(4, 8))  # [N*H, D]
    assert all(part in (slice(None), slice(0, 8)) for part in rest)
    theirs, rest = hf_part(q, (slice(4, 8), slice(1, 3), slice(2, 4)), CONFIG)
    assert theirs == (slice(8, 24), slice(4, 8))
    assert rest[2] == slice(2, 4)


@pytest.mark.parametrize("staging_bytes", [0, 1 << 30], ids=["by layers", "staged"])
@pytest.mark.parametrize(
    "section",
    [MeshSection(fsdp=1), MeshSection(fsdp=4, tensor=2), MeshSection(data=2, fsdp=1, tensor=2)],
    ids=lambda s: f"data{s.data}-fsdp{s.fsdp}-tensor{s.tensor}",
)
def test_sharded_parameters_are_whole_and_in_place(section, staging_bytes, monkeypatch):
    monkeypatch.setattr(tensors_lib, "STAGING_BYTES", staging_bytes)
    weights, shardings = Counting(), trainer_shardings(section)
    params = place_params(CONFIG, weights, F32, shardings)
    assert params.keys() == param_shapes(CONFIG).keys()
    for path, value in params.items():
        assert value.sharding == shardings[path], path
        np.testing.assert_array_equal(np.asarray(value), weights.whole(path))
    # One process with all devices: every entry once, however many devices hold it.
    assert weights.read_entries == {n: t.size for n, t in weights.tensors.items()}


def test_a_process_reads_the_parts_of_its_own_devices_alone(monkeypatch):
    """Process 1 of 2 in imitation: a sharding of whose devices only half are addressable."""
    monkeypatch.setattr(tensors_lib, "STAGING_BYTES", 0)
    shardings = trainer_shardings(MeshSection(fsdp=4, tensor=2))
    mine = set(jax.devices()[4:8])
    original = NamedSharding.addressable_devices_indices_map

    def half(sharding, shape):
        indices = original(sharding, shape)
        return {device: index for device, index in indices.items() if device in mine}

    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", half)
    made = []

    def count_shards(shape, sharding, shards):
        made.append(len(shards))
        return jax.ShapeDtypeStruct(shape, F32)

    monkeypatch.setattr(jax, "make_array_from_single_device_arrays", count_shards)
    weights = Counting()
    for path in ("layers/q_DNH", "embed_VD"):
        shape = (1, *param_shapes(CONFIG)[path][1:]) if "/" in path else param_shapes(CONFIG)[path]
        read = param_reader(path, CONFIG, weights, F32)
        tensors_lib._put(shape, read, shardings[path])
    assert made == [4, 4]
    for name in (CONFIG.family.hf_name("layers/q_DNH", 0), "model.embed_tokens.weight"):
        assert weights.read_entries[name] == weights.tensors[name].size / 2, name
    assert len(weights.read_entries) == 2


@pytest.mark.slow
def test_two_processes_read_half_each(tmp_path):
    config = dataclasses.replace(CONFIG, qkv_bias=False)  # a true Qwen3
    weights = Counting(config)
    with export_into(epath.Path(tmp_path)):
        export(config, weights, epath.Path(tmp_path), ids={})
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    child = Path(__file__).parents[2] / "support" / "models" / "load_in_two_processes.py"
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    children = [
        subprocess.Popen(
            [sys.executable, child, address, str(i), tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for i in range(2)
    ]
    outcomes = [process.communicate(timeout=600) for process in children]
    for (out, err), process in zip(outcomes, children, strict=True):
        assert process.returncode == 0, err
        said = json.loads(out.splitlines()[-1])
        assert said["equal"]
        for name in ("model.embed_tokens.weight", CONFIG.family.hf_name("layers/gate_DF", 2)):
            assert said["entries"][name] == weights.tensors[name].size / 2, name


@pytest.mark.parametrize("staging_bytes", [0, 1 << 30], ids=["by layers", "staged"])
def test_without_shardings_arrays_are_free_to_move(staging_bytes, monkeypatch):
    monkeypatch.setattr(tensors_lib, "STAGING_BYTES", staging_bytes)
    weights = Counting()
    for path, value in place_params(CONFIG, weights, F32).items():
        np.testing.assert_array_equal(np.asarray(value), weights.whole(path))
        assert not value.committed
        assert len(value.sharding.device_set) == 1


def test_a_device_of_choice(monkeypatch):
    monkeypatch.setattr(tensors_lib, "STAGING_BYTES", 0)
    there = SingleDeviceSharding(jax.devices()[5])
    params = place_params(CONFIG, Counting(), F32, dict.fromkeys(param_shapes(CONFIG), there))
    assert all(value.devices() == {jax.devices()[5]} for value in params.values())


def test_layers_split_over_devices_are_staged():
    mesh = Mesh(np.array(jax.devices()[:3]), ("x",))
    split = NamedSharding(mesh, PartitionSpec("x"))
    weights = Counting()
    read = param_reader("layers/gate_DF", CONFIG, weights, F32)
    value = tensors_lib.place(param_shapes(CONFIG)["layers/gate_DF"], F32, read, split)
    np.testing.assert_array_equal(np.asarray(value), weights.whole("layers/gate_DF"))
