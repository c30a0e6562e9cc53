"""New requests go to the data shard with the least left to do, not the least ever given."""

import pytest

from polaris_jax.records import Response
from polaris_jax.rollout.settings import SamplerConfig
from tests.support.rollout.fake_engine import FakeSampler, expected_tokens, settings

ROOMY = SamplerConfig(
    slots=16, page_size=4, num_pages=2000, max_len=512, decode_steps=4, prefix_cache=False
)


def live(sampler: FakeSampler) -> list[int]:
    return [len(scheduler.live) for scheduler in sampler.driver.schedulers]


def loads(sampler: FakeSampler) -> list[int]:
    return [scheduler.load for scheduler in sampler.driver.schedulers]


def test_new_requests_go_where_samples_have_ended():
    sampler = FakeSampler(ROOMY, shards=2)
    sampler.engine.recompute_reads = 1e9  # nothing moves
    # The prompts are long beside their samples, so each is one part. The first was expected to
    # take longer, and ends at once.
    prompts = [(1,) * 210, (3,) * 210]
    sampler.submit(prompts, [settings(4), settings(200)], 4, expected=[100, 90])
    for _ in range(4):
        sampler.step()
    assert live(sampler) == [0, 4]
    assert loads(sampler) == [0, 4 * (90 - 16)]
    for wanted in ([1, 4], [2, 4]):
        sampler.submit([(9, sum(wanted))], [settings(40)], expected=[40])
        sampler.step()
        assert live(sampler) == wanted
    sampler.run()
    assert loads(sampler) == [0, 0]


def test_tokens_that_were_begun_elsewhere_are_no_load():
    sampler, prompts = FakeSampler(ROOMY, shards=2), [(1,), (2,), (3,), (4,)]
    rows = [settings(100)] * 4
    begun = []
    for prompt, count in zip(prompts, (95, 0, 95, 0), strict=True):
        tokens = expected_tokens(prompt, 0, 0, max_tokens=count, stops=())
        versions = ((0, count),)
        begun.append([Response(tuple(tokens), (0.0,) * count, "unfinished", versions=versions)])
    sampler.submit(prompts, rows, expected=[100.0] * 4, begun=begun)
    # 6, 101, 6 and 101 tokens to come; by 101 each the shards would get two each.
    assert [scheduler.waiting for scheduler in sampler.driver.schedulers] == [3, 1]
    assert loads(sampler) == [113, 101]
    sampler.run()


@pytest.mark.parametrize("budget", [0, 3], ids=["whole", "in-parts"])
def test_a_prompt_counts_once_until_it_is_prefilled(budget):
    config = SamplerConfig(
        slots=2, page_size=4, num_pages=100, max_len=64, decode_steps=1, prefill_budget=budget
    )
    sampler = FakeSampler(config)
    sampler.submit([tuple(range(10))], [settings(8)], 3, expected=[8])
    assert loads(sampler) == [10 + 3 * 8]
    sampler.step()
    # Of both that run one token has come, of the third none; its prompt's pages are kept.
    assert loads(sampler) == [2 * 7 + 8 if budget == 0 else 10 + 3 * 8]
    sampler.run()
    assert loads(sampler) == [0]
