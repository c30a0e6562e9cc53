"""What is planned: architecture, lengths, settings."""

import dataclasses
import json

import pytest

from polaris_jax.config import ConfigError, MeshSection, ModelSection, RunConfig, StageSection
from polaris_jax.models.presets import preset
from polaris_jax.models.weights.hf_config import config_json
from polaris_jax.plan.job import (
    Setting,
    architecture,
    config_setting,
    distance,
    make_job,
    sampler_changes,
    search_settings,
)
from tests.support.stranger import random_gguf

CONFIG = dataclasses.replace(
    RunConfig(),
    model=ModelSection(path="Qwen/Qwen3-4B"),
    stages=(StageSection(max_response_tokens=100), StageSection(max_response_tokens=52_224)),
)


def test_the_longest_stage_is_planned():
    job = make_job(CONFIG, stage=None, mean_response_tokens=0)
    assert (job.stage, job.row_len, job.max_len) == (1, 53_248, 53_248)
    assert job.mean_response_tokens == 20_000
    assert job.responses == 1024


def test_another_stage_keeps_the_rows_and_has_shorter_sequences():
    job = make_job(CONFIG, stage=0, mean_response_tokens=0)
    assert (job.row_len, job.max_len, job.mean_response_tokens) == (53_248, 1124, 50)


@pytest.mark.parametrize(
    ("row_tokens", "sharing"), [(300, 1.0), (800, 1.0), (300 + 3 * 500, 3.0), (50_000, 8.0)]
)
def test_as_many_responses_share_a_prompt_as_fit_into_a_row(row_tokens, sharing):
    job = make_job(CONFIG, stage=1, mean_response_tokens=500)
    assert job.mean_prompt_tokens == 300
    assert job.prompt_sharing(row_tokens) == sharing


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"stage": 2, "mean_response_tokens": 0}, "--stage=2: stages count from 0"),
        ({"stage": 0, "mean_response_tokens": 101}, "max_response_tokens=100"),
    ],
)
def test_bad_stages(kwargs, words):
    with pytest.raises(ConfigError) as error:
        make_job(CONFIG, **kwargs)
    assert words in str(error.value)


def with_path(path):
    return dataclasses.replace(CONFIG, model=ModelSection(path=path))


def test_a_gguf_file_has_an_architecture(tmp_path):
    path = random_gguf(tmp_path / "model.gguf")
    assert architecture(with_path(str(path))).max_position_embeddings == 512


def test_a_damaged_config_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        architecture(with_path(str(tmp_path)))


def test_architecture_of_a_name_and_of_a_directory(tmp_path):
    model = preset("qwen3-0.6b")
    assert architecture(with_path("Qwen/Qwen3-0.6B")) == model
    (tmp_path / "config.json").write_text(json.dumps(config_json(model, dtype="float32")))
    assert architecture(with_path(str(tmp_path))) == model


@pytest.mark.parametrize("path", ["", "Qwen/Qwen9-1T"])
def test_an_unknown_architecture_names_the_known_ones(path):
    with pytest.raises(ConfigError, match=r"qwen3-0\.6b"):
        architecture(with_path(path))


def with_mesh(rows, **mesh):
    batch = dataclasses.replace(CONFIG.batch, rows=rows)
    return dataclasses.replace(CONFIG, mesh=MeshSection(**mesh), batch=batch)


def test_the_rest_of_the_devices_go_to_fsdp():
    setting = config_setting(with_mesh(8, context=2), devices=16, local_devices=4)
    assert setting.mesh == MeshSection(1, 8, 2, 1)


def with_sampler(**rollout):
    config = with_mesh(16)
    return dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, **rollout))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (with_mesh(8), "batch.rows=8: the rows"),
        (with_mesh(8, context=3), "mesh.fsdp=-1: with data=1, context=3"),
        (with_sampler(tensor=3), "rollout.tensor=3: must be at least 1 and divide the 4 devices"),
        (with_sampler(tensor=8), "rollout.tensor=8"),
        (with_sampler(tensor=2, data=1), "rollout.data=1: a plan lays a sampler over all its 4"),
    ],
)
def test_settings_that_cannot_be(config, words):
    with pytest.raises(ConfigError) as error:
        config_setting(config, devices=16, local_devices=4)
    assert words in str(error.value)


def test_a_search_covers_every_factorisation_and_divides_its_rows():
    settings = search_settings(preset("qwen3-4b"), devices=16, local_devices=4)
    meshes = {(s.mesh.fsdp, s.mesh.context, s.mesh.tensor) for s in settings}
    assert {(16, 1, 1), (1, 16, 1), (4, 4, 1), (4, 2, 2), (2, 1, 8)} <= meshes
    assert all(f * c * t == 16 for f, c, t in meshes)
    assert all(s.rows % s.row_shards == 0 for s in settings)
    assert {s.sampler_tensor for s in settings} == {1, 2, 4}


def test_a_refused_sampler_is_changed_by_doublings_and_its_pages_first():
    rollout = dataclasses.replace(CONFIG.rollout, page_size=16, slots=2)
    changes = list(sampler_changes(rollout))
    assert changes[:3] == [{"page_size": 32}, {"slots": 1}, {"page_size": 64}]
    assert changes[-1] == {"attention": "xla"}
    assert all(change.get("slots", 1) >= 1 for change in changes)


def test_distance_counts_doublings():
    base = Setting(MeshSection(1, 16, 1, 1), 16, 1)
    assert distance(base, base) == 0
    assert distance(base, Setting(MeshSection(1, 8, 2, 1), 8, 1)) == 1
    assert distance(base, Setting(MeshSection(1, 16, 1, 1), 64, 2)) == 2.5
