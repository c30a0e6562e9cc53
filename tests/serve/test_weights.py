"""The served weights: read to the devices that use them, at the start and at an update."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import json
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from polaris_jax.__main__ import main
from polaris_jax.checkpoint import Checkpointer
from polaris_jax.checkpoint.convert import convert, load_on_host
from polaris_jax.config import ConfigError
from polaris_jax.models import RopeScaling, save_pretrained
from polaris_jax.rollout import Sampler, SamplingParams
from polaris_jax.rollout.weights import weight_shardings
from polaris_jax.serve import weights as module
from polaris_jax.serve.gauges import Gauges
from polaris_jax.serve.weights import Updates, load_served, newest_step
from polaris_jax.serve.worker import Worker
from polaris_jax.sharding import make_sampler_mesh
from tests.support.models.object_store import mount
from tests.support.random_models import random_model
from tests.support.serving import SIZES, small_model

PARAMS = SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=())


@functools.cache
def two_heads():
    """The small model, with KV heads and a vocabulary that two devices can share."""
    model, tokenizer = small_model()
    config = dataclasses.replace(model.config, num_heads=2, num_kv_heads=2, vocab_size=1024)
    return random_model(config, 0), tokenizer


@pytest.fixture(scope="module")
def mesh():
    return make_sampler_mesh(jax.devices()[:2], tensor=2)


@pytest.fixture(scope="module", params=["hf", "orbax"])
def saved(request, tmp_path_factory):
    """The small model on disk in each form."""
    folder = tmp_path_factory.mktemp("saved")
    model, tokenizer = two_heads()
    save_pretrained(model, folder / "hf", tokenizer)
    if request.param == "orbax":
        convert(str(folder / "hf"), str(folder / "orbax"), form="orbax", dtype="float32")
    return folder / request.param


def updates_of(sampler, config, mesh, monkeypatch):
    """A worker, which is not started, its updates, and the models that the sampler is given."""
    given, update = [], sampler.update_weights
    monkeypatch.setattr(
        sampler, "update_weights", lambda model: (given.append(model), update(model))
    )
    worker = Worker(sampler, lambda events: None, max_waiting=8)
    updates = Updates(
        worker,
        config,
        source="small",
        dtype="float32",
        gauges=Gauges(),
        log=lambda line: None,
        mesh=mesh,
    )
    return worker, updates, given


def test_each_device_reads_its_own_part(saved, mesh):
    model, _ = load_served(str(saved), dtype="float32", mesh=mesh)
    whole, _ = load_served(str(saved), dtype="float32")
    wanted = weight_shardings(whole, mesh)
    for path, leaf in model.params().items():
        assert leaf.sharding == wanted[path], path
        np.testing.assert_array_equal(leaf, whole.params()[path])
    parts = [leaf.addressable_shards[0].data.size for leaf in model.params().values()]
    sizes = [leaf.size for leaf in whole.params().values()]
    assert sum(parts) < 0.6 * sum(sizes)  # norms alone are on both devices


def test_one_device_needs_no_sharding(saved):
    one = make_sampler_mesh(jax.devices()[:1])
    model, _ = load_served(str(saved), dtype="float32", mesh=one)
    here = jax.devices()[0]
    assert all(leaf.devices() == {here} for leaf in model.params().values())


def test_a_split_server_answers_and_takes_split_weights(saved, mesh, monkeypatch):
    model, _ = load_served(str(saved), dtype="float32", mesh=mesh)
    sampler = Sampler(model, SIZES, mesh=mesh)
    prompts = [[5, 6, 7], [8, 9]]
    expected = Sampler(two_heads()[0], SIZES).generate(prompts, PARAMS)
    found = sampler.generate(prompts, PARAMS)
    for one, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert one.token_ids == other.token_ids
    worker, updates, given = updates_of(sampler, model.config, mesh, monkeypatch)
    worker.start()
    try:
        asyncio.run(updates.take(str(epath.Path(saved))))
    finally:
        worker.stop()
    assert updates.version == 1
    shardings = weight_shardings(given[0], mesh)
    assert all(leaf.sharding == shardings[path] for path, leaf in given[0].params().items())


def test_sequences_may_be_as_long_as_the_models_own_scaling_allows(tmp_path, capsys, monkeypatch):
    model, tokenizer = small_model()  # 256 positions
    save_pretrained(model, tmp_path / "hf", tokenizer)
    file = tmp_path / "hf" / "config.json"
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_scaling": yarn}))
    monkeypatch.setattr("polaris_jax.serve.server.bind", lambda place: None)
    flags = ["serve", f"--model={tmp_path / 'hf'}", "--max_len=1025"]
    assert main(flags) == 2
    assert "--max_len=1025: the model has 1024 positions" in capsys.readouterr().err


def test_the_step_of_a_stage_with_another_rotary_scaling_is_refused(tmp_path):
    model, _ = small_model()
    saver = Checkpointer(tmp_path / "checkpoints", architecture=model.config.architecture())
    scaling = RopeScaling("yarn", 1.5, 32)
    for step, facts in ((0, {"rope_scaling": None}), (1, {"rope_scaling": asdict(scaling)})):
        saver.save(step, {"params": model}, {}, facts=facts)
    nobody: Any = None
    updates = Updates(
        nobody, model.config, source="x", dtype="float32", gauges=Gauges(), log=lambda line: None
    )
    assert updates._load(str(tmp_path / "checkpoints" / "0")).config == model.config
    with pytest.raises(ConfigError, match="another architecture or rope_scaling than the served"):
        updates._load(str(tmp_path / "checkpoints" / "1"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad, dtype):
    model, tokenizer = two_heads()
    params = model.params()
    save_pretrained(model, tmp_path / "good", tokenizer)
    assert load_served(str(tmp_path / "good"), dtype=dtype)[0].config.vocab_size == 1024
    params["embed_VD"] = params["embed_VD"].at[3, 1].set(bad)
    save_pretrained(model.from_params(model.config, params), tmp_path / "bad", tokenizer)
    with pytest.raises(ConfigError, match=r"--model=.*bad: .*embed_VD has numbers that are not"):
        load_served(str(tmp_path / "bad"), dtype=dtype)
    nobody: Any = None
    updates = Updates(
        nobody, model.config, source="x", dtype=dtype, gauges=Gauges(), log=lambda line: None
    )
    updates._on_cpu = False  # the way of an accelerator: numpy arrays
    with pytest.raises(ConfigError, match=r"bad: .*embed_VD has numbers that are not finite"):
        updates._load(str(tmp_path / "bad"))


@pytest.mark.parametrize("tensor", [1, 2])
def test_an_update_of_an_accelerator_is_read_to_the_hosts_memory(saved, tensor, monkeypatch):
    """The pool has taken the devices' memory, so no leaf goes there before an old one has left."""
    mesh = make_sampler_mesh(jax.devices()[:tensor], tensor=tensor)
    model, _ = load_served(str(saved), dtype="float32", mesh=mesh)
    sampler = Sampler(model, SIZES, mesh=mesh)
    expected = sampler.generate([[5, 6, 7]], PARAMS)
    sampler.reset_stats()
    worker, updates, given = updates_of(sampler, model.config, mesh, monkeypatch)
    updates._on_cpu = False
    worker.start()
    try:
        asyncio.run(updates.take(str(saved)))
        found = worker.call(lambda sampler: sampler.generate([[5, 6, 7]], PARAMS)).result(120)
    finally:
        worker.stop()
    leaves = jax.tree.leaves(given[0])
    assert {(type(leaf), leaf.dtype) for leaf in leaves} == {(np.ndarray, np.dtype("float32"))}
    assert found[0][0].token_ids == expected[0][0].token_ids
    assert sampler.stats()["compiles"] == 0


def test_a_model_on_the_host_has_the_dtype_that_is_served(saved):
    host = load_on_host(str(saved), dtype="bfloat16")
    model, _ = load_served(str(saved), dtype="bfloat16")
    assert host.config == model.config
    for path, leaf in host.params().items():
        assert isinstance(leaf, np.ndarray)
        assert leaf.dtype == model.params()[path].dtype
        np.testing.assert_array_equal(leaf, model.params()[path])


class StoreError(Exception):
    """Like gcsfs's HttpError: none of the usual types."""


def following(log, *, directory="run"):
    nobody: Any = None
    updates = Updates(
        nobody, nobody, source="x", dtype="float32", gauges=Gauges(), log=log, follow=directory
    )
    updates._every_s = 0.01
    return updates


@pytest.mark.parametrize("error", [MemoryError, OSError])
def test_a_step_that_cannot_be_read_now_is_tried_again(error, monkeypatch):
    lines, tried = [], []
    updates = following(lines.append)
    monkeypatch.setattr(module, "newest_step", lambda _: (epath.Path("run/5"), 5))

    async def followed():
        taken = asyncio.Event()

        async def take(path):
            tried.append(path)
            if len(tried) == 1:
                raise error
            taken.set()

        monkeypatch.setattr(updates, "take", take)
        follows = asyncio.ensure_future(updates.follow())
        await asyncio.wait_for(taken.wait(), 30)
        follows.cancel()

    asyncio.run(followed())
    assert tried == ["run/5"] * 2
    assert error.__name__ in lines[0]
    assert updates.alive


def test_a_run_that_goes_back_is_followed_there(monkeypatch):
    """Its later steps are gone: they were another run's, or before an error."""
    steps, tried = iter([-1, 500, 500, 400, 400]), []
    updates = following(lambda line: None)
    monkeypatch.setattr(module, "newest_step", lambda _: (epath.Path("run"), next(steps)))

    async def take(path):
        tried.append(updates._step)

    async def followed():
        for _ in range(5):
            await updates._look()

    monkeypatch.setattr(updates, "take", take)
    asyncio.run(followed())
    assert tried == [-1, 500]
    assert updates._step == 400


def test_a_stores_own_errors_are_those_of_a_place_that_cannot_be_read(tmp_path, monkeypatch):
    """So that `--follow` looks again, and POST /v1/weights says what is wrong."""

    def unreachable(*_, **__):
        raise StoreError("503 from the store")

    mount(monkeypatch, tmp_path / "store")
    monkeypatch.setattr(module, "Checkpointer", SimpleNamespace(of=unreachable))
    monkeypatch.setattr(module, "load_any", unreachable)
    updates = following(lambda line: None)
    for read in (newest_step, updates._load):
        with pytest.raises(OSError, match="503 from the store") as caught:
            read("gs://bucket/run")
        assert caught.value.filename == "gs://bucket/run"
        with pytest.raises(StoreError):
            read("/disk/run")


def test_an_error_of_ours_ends_the_looks_and_is_seen(monkeypatch):
    lines = []
    updates = following(lines.append)
    assert updates.alive

    def broken(_):
        raise KeyError("step")

    monkeypatch.setattr(module, "newest_step", broken)
    with pytest.raises(KeyError):
        asyncio.run(updates.follow())
    assert not updates.alive
    assert "--follow=run has ended" in lines[0]
