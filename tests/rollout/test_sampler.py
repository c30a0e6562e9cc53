"""The sampler's promises: definitions, independence of the schedule, no leak, one compile."""

import dataclasses

import jax
import numpy as np
import pytest

from polaris_jax.models import RopeScaling, token_logprobs
from polaris_jax.rollout import RolloutAborted, Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.live import CompileCounter
from tests.support.rollout.rollout_cases import (
    CONFIG,
    dense_logits,
    differing_tokens,
    random_prompts,
    small_model,
)
from tests.support.rollout.sampler_cases import (
    PARAMS,
    PROMPTS,
    ROOMY,
    SEEDS,
    STOPS,
    TEMPERATURES,
    only,
    reference,
    same_rollouts,
)
from tests.tolerances import SAMPLER_LOGPROB_ATOL, SCHEDULE_LOGPROB_ATOL

# --- what a response is ---


def test_logprobs_are_the_trainers():
    rows = [
        (prompt, response, temperature or 1.0)
        for prompt, group, temperature in zip(PROMPTS, reference(), TEMPERATURES, strict=True)
        for response in group
    ]
    token_BT = np.zeros((len(rows), 64), np.int32)
    segment_BT = np.zeros((len(rows), 64), np.int32)
    for row, (prompt, response, _) in enumerate(rows):
        tokens = [*prompt, *response.token_ids]
        token_BT[row, : len(tokens)] = tokens
        segment_BT[row, : len(tokens)] = 1
    logp_BT, _ = jax.jit(token_logprobs)(
        small_model(),
        token_BT,
        np.broadcast_to(np.arange(64), token_BT.shape),
        segment_BT,
        np.array([[temperature] for _, _, temperature in rows], np.float32),
    )
    for row, (prompt, response, _) in enumerate(rows):
        logp_T = np.asarray(logp_BT)[row, len(prompt) - 1 :][: len(response.token_ids)]
        np.testing.assert_allclose(response.logprobs, logp_T, atol=SAMPLER_LOGPROB_ATOL)


def test_greedy_equals_dense_recomputation():
    prompts = random_prompts(4, seed=5)
    groups = Sampler(small_model(), ROOMY).generate(
        prompts, SamplingParams(temperature=0.0, max_tokens=20, n=2)
    )
    for prompt, group in zip(prompts, groups, strict=True):
        assert group[0] == group[1]
        tokens = list(prompt)
        for token in group[0].token_ids:
            assert int(np.argmax(dense_logits(small_model(), tokens))) == token
            tokens.append(token)


def test_responses_end_where_they_should():
    for p, group in enumerate(reference()):
        assert len(group) == PARAMS.n
        for response in group:
            *before, last = response.token_ids
            assert not set(before) & set(STOPS)
            stopped = last in STOPS
            assert response.finish_reason == ("stop" if stopped else "length")
            assert stopped or len(response.token_ids) == PARAMS.max_tokens[p]
            assert len(response.token_ids) == len(response.logprobs) <= PARAMS.max_tokens[p]


def test_a_stop_on_the_last_allowed_token_is_a_stop():
    group = reference()[0]
    first = group[0].token_ids[0]
    params = dataclasses.replace(only(PARAMS, [0]), max_tokens=1, n=1, stop_token_ids=(first,))
    response = Sampler(small_model(), ROOMY).generate(PROMPTS[:1], params)[0][0]
    assert response.token_ids == (first,)
    assert response.finish_reason == "stop"


def test_no_stop_ids_means_none_and_their_number_compiles_nothing():
    sampler = Sampler(small_model(), ROOMY)
    sampler.generate(PROMPTS[:1], SamplingParams(max_tokens=4))
    compiles = sampler.stats()["compiles"]
    for stops in [(), (3,), tuple(range(16))]:
        group = sampler.generate(PROMPTS[:1], SamplingParams(max_tokens=9, stop_token_ids=stops))[0]
        assert stops or len(group[0].token_ids) == 9
    assert sampler.stats()["compiles"] == compiles


def test_yarn_reaches_the_sampler():
    scaling = RopeScaling("yarn", factor=4.0, original_max_position_embeddings=16)
    model = small_model().with_rope_scaling(scaling)
    prompt = random_prompts(1, seed=8, longest=40)[0] + [1] * 20
    response = Sampler(model, ROOMY).generate([prompt], SamplingParams(max_tokens=10, seed=3))[0][0]
    tokens = [*prompt, *response.token_ids]
    for model_, same in ((model, True), (small_model(), False)):
        logits = [dense_logits(model_, tokens[: len(prompt) + i]) for i in range(10)]
        logps = [
            x[t] - np.log(np.exp(x).sum()) for x, t in zip(logits, response.token_ids, strict=True)
        ]
        assert np.allclose(logps, response.logprobs, atol=SAMPLER_LOGPROB_ATOL) == same


# --- independence of the schedule ---


def test_one_slot_works():
    actual = Sampler(small_model(), dataclasses.replace(ROOMY, slots=1)).generate(PROMPTS, PARAMS)
    assert same_rollouts(actual, reference()) <= SCHEDULE_LOGPROB_ATOL


@pytest.mark.parametrize("steps", [1, 5])
def test_decode_steps_do_not_matter(steps):
    config = dataclasses.replace(ROOMY, decode_steps=steps)
    actual = Sampler(small_model(), config).generate(PROMPTS, PARAMS)
    # Where a call ends decides what is summed as staged and what as pages.
    assert same_rollouts(actual, reference()) <= SCHEDULE_LOGPROB_ATOL


def test_both_layouts_agree():
    config = dataclasses.replace(ROOMY, layout="pages")
    actual = Sampler(small_model(), config).generate(PROMPTS, PARAMS)
    assert same_rollouts(actual, reference()) <= SCHEDULE_LOGPROB_ATOL


@pytest.mark.parametrize("pages", [128, 7], ids=["roomy", "preempted"])
def test_xla_kernels_agree_with_native_ones(pages):
    """Where there is no C++ compiler both are XLA's."""
    config = dataclasses.replace(ROOMY, attention="xla", num_pages=pages, slots=9)
    sampler = Sampler(small_model(), config)
    assert sampler.kernels == "xla (rollout.attention='xla')"
    assert same_rollouts(sampler.generate(PROMPTS, PARAMS), reference()) <= SCHEDULE_LOGPROB_ATOL


@pytest.mark.slow
def test_many_rows_agree_with_few():
    config = dataclasses.replace(ROOMY, slots=128, num_pages=1024, min_rows=2)
    params = dataclasses.replace(PARAMS, n=13)
    many = Sampler(small_model(), config).generate(PROMPTS, params)
    few = Sampler(small_model(), ROOMY).generate(PROMPTS, params)
    assert same_rollouts(many, few) <= SCHEDULE_LOGPROB_ATOL


def test_equal_prompts_with_equal_seeds_give_equal_responses():
    params = SamplingParams(n=2, max_tokens=12, seed=[4, 5, 4])
    first, other, again = Sampler(small_model(), ROOMY).generate([PROMPTS[0]] * 3, params)
    assert first == again
    assert first != other
    assert first[0] != first[1]


# --- pages, prefills, compiles, weights ---


def test_a_prompt_is_prefilled_once_for_its_samples():
    sampler = Sampler(small_model(), dataclasses.replace(ROOMY, slots=3))
    sampler.generate(PROMPTS[:2], SamplingParams(n=8, max_tokens=10))
    stats = sampler.stats()
    assert stats["prefix_hits"] == 14
    assert stats["prompt_tokens"] == sum(map(len, PROMPTS[:2]))
    assert stats["response_tokens"] == 160
    assert 0 < stats["slot_occupancy"] <= 1
    # 16 samples of 10 tokens on 3 slots: the last round has a free one, which is computed too.
    assert stats["row_steps"] >= 160
    assert stats["row_waste"] == 1 - 160 / stats["row_steps"]
    # The pool's last calls have one row; between calls nothing is live.
    assert (stats["live_rows"], stats["live_rows_min"], stats["live_rows_max"]) == ([0], 1, 3)
    assert stats["prefix_hit_rate"] == stats["prefix_hit_tokens"] / stats["prefix_query_tokens"]
    assert stats["tokens_per_s"] > 0
    assert 0 < stats["pages_peak"] <= 127
    sampler.reset_stats()
    stats = sampler.stats()
    assert stats["response_tokens"] == stats["prefix_hit_rate"] == stats["live_rows_max"] == 0


def test_500_random_prompts_leave_no_page_behind():
    rng = np.random.default_rng(0)
    config = SamplerConfig(slots=16, page_size=4, num_pages=60, max_len=40, decode_steps=8)
    sampler, done = Sampler(small_model(), config), 0
    while done < 500:
        count = int(rng.integers(1, 30))
        n = int(rng.choice([1, 1, 2, 8]))
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.5], count),
            n=n,
            max_tokens=rng.integers(1, 21, count),
            seed=rng.integers(0, 1000, count),
            stop_token_ids=(3,),
        )
        sampler.generate(random_prompts(count, seed=done, longest=20), params)
        assert sampler.stats()["pages_used"] == 0
        done += count
    assert sampler.stats()["preemptions"] > 0


def test_one_compile_over_changing_temperatures_and_weights():
    sampler = Sampler(small_model(), ROOMY)
    sampler.generate(PROMPTS, PARAMS)
    other = small_model(1)
    sampler.update_weights(other)
    with CompileCounter() as compiles:
        for temperature in (0.0, 0.9, 1.4):
            changed = dataclasses.replace(PARAMS, temperature=temperature, top_k=0, n=5)
            sampler.generate(PROMPTS, changed)
            sampler.update_weights(small_model())
            sampler.update_weights(other)
    assert compiles.count == 0


def test_new_weights_are_used_and_nothing_of_the_old_survives():
    sampler = Sampler(small_model(), ROOMY)
    sampler.generate(PROMPTS, PARAMS)
    assert sampler.update_weights(small_model(1)) is None
    assert sampler.stats()["pages_used"] == 0
    fresh = Sampler(small_model(1), ROOMY).generate(PROMPTS, PARAMS)
    assert sampler.generate(PROMPTS, PARAMS) == fresh
    assert fresh != reference()


def test_weights_of_another_architecture_are_refused():
    other = small_model().with_rope_scaling(RopeScaling("linear", factor=2.0))
    with pytest.raises(ValueError, match="build a new Sampler"):
        Sampler(small_model(), ROOMY).update_weights(other)


def test_weights_do_not_change_while_requests_are_live():
    sampler = Sampler(small_model(), ROOMY)
    refusals = []

    def on_progress(done, total, tokens):
        for call in (
            lambda: sampler.update_weights(small_model(1)),
            lambda: sampler.generate(PROMPTS[:1]),
        ):
            with pytest.raises(RuntimeError) as caught:
                call()
            refusals.append(str(caught.value))

    actual = sampler.generate(PROMPTS, PARAMS, on_progress=on_progress)
    assert actual == reference()
    assert any("live" in r for r in refusals) and any("already" in r for r in refusals)


# --- callbacks ---


def test_callbacks_tell_everything_once():
    told: dict[tuple[int, int], list[int]] = {}
    progress = []
    groups = Sampler(small_model(), ROOMY).generate(
        PROMPTS,
        PARAMS,
        on_tokens=lambda p, s, new: told.setdefault((p, s), []).extend(new),
        on_progress=lambda *news: progress.append(news),
    )
    for p, group in enumerate(groups):
        for s, response in enumerate(group):
            assert tuple(told[p, s]) == response.token_ids
    assert progress == sorted(progress)
    assert progress[-1] == (30, 30, sum(len(r.token_ids) for g in groups for r in g))


def test_an_abort_releases_everything_and_the_next_call_works():
    sampler = Sampler(small_model(), ROOMY)
    polls = iter([False, False, True])
    with pytest.raises(RolloutAborted, match="of 30 responses"):
        sampler.generate(PROMPTS, PARAMS, should_abort=lambda: next(polls))
    assert sampler.stats()["pages_used"] == 0
    assert sampler.generate(PROMPTS, PARAMS) == reference()


# --- refusals, before anything runs ---


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ([[1], []], {}, "prompt 1: empty"),
        ([[1], [2, 61]], {}, r"prompt 1: token id 61 is outside of \[0, 61\)"),
        ([[-1]], {}, "prompt 0: token id -1"),
        ([[1.5]], {}, "prompt 0: must be a flat sequence of integer"),
        ([[1]], {"max_tokens": 0}, "prompt 0: max_tokens=0"),
        ([[1], [1] * 50], {"max_tokens": 15}, "prompt 1: 50 .*max_tokens=15 = 65, over max_len=64"),
        ([[1] * 30], {"max_tokens": 19}, "prompt 0: 30 .*max_tokens=19 = 49, over the pool's 48"),
        ([[1]], {"stop_token_ids": (61,)}, "stop_token_ids: id 61"),
        ([[1]], {"stop_token_ids": tuple(range(17))}, "17 ids, at most 16"),
        ([[1]], {"stop_token_ids": "12"}, "stop_token_ids='12': must be a sequence of token ids"),
        ([[1]], {"stop_token_ids": (1.5,)}, "stop_token_ids: id=1.5: must be a whole number"),
        ([[1]], {"stop_token_ids": 5}, r"stop_token_ids=5: .* give \(id,\) for one"),
        ([[1]], {"stop_strings": ("a",), "decode": 3}, "decode=3: need decode="),
        ([[1]], {"stop_strings": 5, "decode": str}, "stop_strings=5: must be a sequence"),
        ([[1], [1, [2, 3]]], {}, r"prompt 1: must be a flat .* got \[1, \[2, 3\]\]"),
        ([1, 2], {}, r"prompt 0: must be a flat .* give one prompt as \[prompt\]"),
        ("ab", {}, "prompts='ab': must be a sequence of sequences of token ids"),
        (iter([[1]]), {}, "prompts=.*iterator.* make a list of an iterator"),
        ([], {"max_tokens": 0}, "max_tokens=0: must be at least 1"),
        ([[1]], {"prompt_logprobs": "yes"}, "prompt_logprobs='yes': must be True or False"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_numbers(prompts, params, message):
    sampler = Sampler(small_model(), dataclasses.replace(ROOMY, num_pages=4))
    settings = {"max_tokens": 5} | params
    with pytest.raises(ValueError, match=message):
        sampler.generate(prompts, SamplingParams(**settings))
    assert sampler.stats()["compiles"] == 0


def test_settings_are_sampling_params():
    with pytest.raises(ValueError, match=r"params=\{'n': 1\}: must be SamplingParams, not dict"):
        Sampler(small_model(), ROOMY).generate([[1]], {"n": 1})  # pyright: ignore


def test_no_prompts_give_no_responses():
    assert Sampler(small_model(), ROOMY).generate([], SamplingParams()) == []


def test_the_pool_is_usable_to_its_last_page():
    config = dataclasses.replace(ROOMY, num_pages=4)
    groups = Sampler(small_model(), config).generate([[1] * 30], SamplingParams(max_tokens=18, n=3))
    assert [len(r.token_ids) for r in groups[0]] == [18, 18, 18]
    assert CONFIG.vocab_size == 61


def test_calls_dispatched_ahead_give_the_same_and_compile_nothing_more():
    # Another id than those of the first request ends rows on the device that must go on.
    mine = SamplingParams(max_tokens=30, seed=5, n=2, stop_token_ids=STOPS)
    others = SamplingParams(max_tokens=30, seed=6, n=2, stop_token_ids=(11, 12, 13, 14))
    answers = []
    for ahead in (False, True):
        sampler = Sampler(small_model(), dataclasses.replace(ROOMY, dispatch_ahead=ahead))
        sampler.generate(PROMPTS[:4], mine)
        sampler.reset_stats()
        requests = [sampler.submit(PROMPTS[:4], p) for p in (mine, others)]
        while sampler.step():
            pass
        answers.append([request.responses() for request in requests])
        assert sampler.stats()["compiles"] == 0
        assert sampler.stats()["pages_used"] == 0
    for plain, ahead in zip(*answers, strict=True):
        for group, other in zip(plain, ahead, strict=True):
            assert [r.token_ids for r in group] == [r.token_ids for r in other]
            for x, y in zip(group, other, strict=True):
                np.testing.assert_allclose(x.logprobs, y.logprobs, atol=SCHEDULE_LOGPROB_ATOL)


def test_calls_dispatched_ahead_go_on_in_a_smaller_bucket():
    config = dataclasses.replace(ROOMY, slots=8, decode_steps=4, min_rows=1)
    params = SamplingParams(max_tokens=(4, 6, 9, 13, 20, 26, 30, 30), seed=SEEDS[:8])
    answers, row_steps = [], []
    for ahead in (False, True):
        sampler = Sampler(small_model(), dataclasses.replace(config, dispatch_ahead=ahead))
        assert {2, 4, 8} <= set(sampler._engine.spec.row_buckets)
        request = sampler.submit(PROMPTS[:8], params)
        for _ in range(20):
            sampler.step()
        assert request.done
        answers.append([[r.token_ids for r in group] for group in request.responses()])
        row_steps.append(sampler.stats()["row_steps"])
    assert answers[0] == answers[1]
    assert row_steps[1] < 8 * 30  # all steps with all rows


# --- prefixes ---


def shared_prompts() -> list[list[int]]:
    """Two that share 32 tokens, one of them twice, and two that share nothing."""
    rng = np.random.default_rng(11)
    begin = rng.integers(0, CONFIG.vocab_size, 33).tolist()
    first, second = [*begin, 1, 2, 3], [*begin, 5]
    return [first, second, first, *random_prompts(2, seed=12)]


@pytest.mark.parametrize("budget", [8192, 5])
def test_the_prefix_cache_changes_no_token(budget):
    prompts = shared_prompts()
    params = SamplingParams(temperature=1.2, n=3, max_tokens=16, seed=[1, 2, 3, 4, 5])
    config = dataclasses.replace(ROOMY, page_size=4, num_pages=256, prefill_budget=budget)
    with_cache = Sampler(small_model(), config)
    without = Sampler(small_model(), dataclasses.replace(config, prefix_cache=False))
    expected = without.generate(prompts, params)
    for _ in range(2):
        parted, largest = differing_tokens(
            expected,
            with_cache.generate(prompts, params),
            model=small_model(),
            prompts=prompts,
            temperatures=[1.2] * 5,
            seeds=params.seed,
        )
        assert parted == 0
        assert largest <= SCHEDULE_LOGPROB_ATOL
    cached, plain = with_cache.stats(), without.stats()
    assert plain["pages_idle"] == 0 < cached["pages_idle"]
    assert plain["prefix_query_tokens"] * 2 == cached["prefix_query_tokens"]
    # In the second round all prompts are there but for their last pages.
    assert cached["prefix_hit_tokens"] > cached["prefix_query_tokens"] * 0.8
    with_cache.update_weights(small_model(1))
    assert with_cache.stats()["pages_idle"] == 0
    fresh = Sampler(small_model(1), config).generate(prompts, params)
    assert with_cache.generate(prompts, params) == fresh
    with_cache.release_pool()
    assert with_cache.stats()["pages_idle"] == 0
    assert with_cache.generate(prompts, params) == fresh
    with_cache.drop_prefixes()
    assert with_cache.stats()["pages_idle"] == 0
