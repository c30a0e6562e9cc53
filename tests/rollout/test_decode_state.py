"""The pool takes what memory is left, up to what the slots can fill."""

import dataclasses

import jax
import pytest

from polaris_jax.config import ConfigError
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.decode_state import page_bytes, pages_with_room, pool_pages
from polaris_jax.sharding import make_sampler_mesh
from polaris_jax.system import machine
from tests.support.rollout.rollout_cases import CONFIG, small_model

SETTINGS = {"page_bytes": 100, "pages_of_a_row": 5, "slots": 4, "reserve": 0.1}


def device(limit: int, used: int) -> dict[str, int]:
    return {"bytes_limit": limit, "bytes_in_use": used}


def test_a_platform_without_statistics_gives_every_slot_its_full_length():
    assert pages_with_room([None, None], **SETTINGS) == 21
    config = SamplerConfig(slots=8, num_pages=0, max_len=64)
    assert pool_pages(CONFIG, config, None, "float32") == 8 * 4 + 1
    mesh = make_sampler_mesh(jax.devices(), data=4, tensor=2)
    assert pool_pages(CONFIG, config, mesh, "float32") == 4 * (2 * 4 + 1)
    assert pool_pages(CONFIG, dataclasses.replace(config, num_pages=7), None, "float32") == 7


def test_a_pool_that_is_resident_at_once_takes_half_of_the_hosts_memory(monkeypatch):
    """XLA's kernels write every page of a new pool; the native ones none."""
    config = SamplerConfig(slots=8, num_pages=0, max_len=64, attention="xla", reserve=0.0)
    page = page_bytes(CONFIG, config, None, "float32")
    monkeypatch.setattr(machine, "total_memory", lambda: 2 * 20 * page)
    assert pool_pages(CONFIG, config, None, "float32") == 20
    mesh = make_sampler_mesh(jax.devices(), data=4, tensor=1)
    monkeypatch.setattr(machine, "total_memory", lambda: 2 * 4 * 7 * page)
    assert pool_pages(CONFIG, config, mesh, "float32") == 4 * 7
    monkeypatch.setattr(machine, "total_memory", lambda: 2 * 4 * page)
    with pytest.raises(ConfigError, match=r"rollout.num_pages=0: .* 4 pages of"):
        pool_pages(CONFIG, config, None, "float32")
    monkeypatch.setattr(machine, "total_memory", lambda: None)
    assert pool_pages(CONFIG, config, None, "float32") == 8 * 4 + 1


def test_the_fullest_device_decides_and_the_reserve_stays_free():
    assert pages_with_room([device(10_000, 7_800), device(10_000, 1_000)], **SETTINGS) == 12
    assert pages_with_room([device(10_000, 1_000)], **SETTINGS) == 21  # no more than can be filled


def test_less_than_one_sequence_is_refused_with_the_numbers():
    with pytest.raises(ConfigError, match=r"400 bytes .* 4 pages of 100 bytes, .* needs 6"):
        pages_with_room([device(10_000, 8_600)], **SETTINGS)


def test_a_page_counts_keys_and_values_of_all_layers_on_one_device():
    config = SamplerConfig(page_size=16)
    whole = 2 * CONFIG.num_layers * 16 * CONFIG.num_kv_heads * CONFIG.head_dim * 2
    assert page_bytes(CONFIG, config, None, "bfloat16") == whole
    mesh = make_sampler_mesh(jax.devices(), data=2, tensor=2)
    assert page_bytes(CONFIG, config, mesh, "bfloat16") == whole // 2


def test_a_pool_is_released_and_made_anew():
    sampler = Sampler(small_model(), SamplerConfig(slots=4, num_pages=0, max_len=32))
    params = SamplingParams(max_tokens=8)
    first = sampler.generate([[1, 2, 3]], params)
    pool = sampler._live.state.pool
    sampler.release_pool()
    sampler.release_pool()
    assert all(x.is_deleted() for x in jax.tree.leaves(pool))
    assert sampler.stats()["pages_used"] == 0
    sampler.reset_stats()
    assert sampler.generate([[1, 2, 3]], params) == first
    assert sampler.stats()["compiles"] == 0

    sampler.release()
    with pytest.raises(RuntimeError, match="no weights"):
        sampler.generate([[1, 2, 3]], params)
    sampler.update_weights(small_model())
    assert sampler.generate([[1, 2, 3]], params) == first


def test_a_pool_in_use_is_not_released():
    sampler, refusals = Sampler(small_model(), SamplerConfig(slots=2, max_len=32)), []

    def on_progress(*_):
        for call in (sampler.release_pool, sampler.release):
            with pytest.raises(RuntimeError, match="the pool cannot go while requests are live"):
                call()
            refusals.append(call)

    sampler.generate([[1, 2]], SamplingParams(max_tokens=4), on_progress=on_progress)
    assert refusals
