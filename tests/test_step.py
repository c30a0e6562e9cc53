"""No response is lost, trained twice or trained too late, over stages, stops and resumes."""

import contextlib
import dataclasses
import io
import signal
from collections import Counter

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from polaris_jax.assemble import Parts
from polaris_jax.checkpoint.snapshots import canonical_json, read_host
from polaris_jax.config import RolloutSection, RunConfig, StageSection
from polaris_jax.metrics.rollout_stats import age_metrics, carried_metrics
from polaris_jax.records import Group
from polaris_jax.rollout import RolloutAborted, SamplerConfig, SamplingParams
from polaris_jax.rollout.draft_store import DraftStore
from polaris_jax.rollout.groups import begin, owners_of, quotas, sample_groups
from polaris_jax.rollout.groups import groups_from_host as groups_from
from polaris_jax.rollout.groups import groups_to_host as array_state
from polaris_jax.state import RunState
from polaris_jax.step import collect_rollouts, draw, sample
from polaris_jax.system.signals import StopRequest
from tests.support.driven import DrivenSampler
from tests.support.parts import NothingRight, make_parts, make_state, stage_at
from tests.support.rollout.fake_engine import FakeEngine, expected_tokens

SEED, STOPS, BUDGET, PROBLEMS = 0, (3, 5, 11), 24, 7  # half of all responses reach the budget


class Tokenizer:
    eos_token_id = STOPS[0]

    def get_vocab(self):
        return ("<|im_end|>", "<|endoftext|>")

    def convert_tokens_to_ids(self, token):
        return STOPS[1 + self.get_vocab().index(token)]

    def decode(self, token_ids, skip_special_tokens):
        return " ".join(map(str, token_ids))


class HalfRight(NothingRight):
    """Half of all answers are right: those whose text has an odd length."""

    def reward(self, response):
        return float(len(response.graded_text) % 2)


class Loader:
    """Problems in turn; a draw is how often one has come."""

    def __init__(self, drawn: int = 0):
        self.drawn = drawn

    def take(self, count: int, *, weights: None = None) -> list[Group]:
        numbers = range(self.drawn, self.drawn + count)
        self.drawn += count
        return [
            Group(
                f"p{i % PROBLEMS}",
                (1 + i % PROBLEMS, 2),
                "?",
                "1",
                draw=i // PROBLEMS,
                epoch=self.drawn // PROBLEMS,
            )
            for i in numbers
        ]


NEVER, NOW = StopRequest(), StopRequest()
NOW.signal = signal.SIGTERM


def new_parts(section: RolloutSection, *steps: int, total_tokens: int = 0) -> Parts:
    section = dataclasses.replace(section, total_tokens=total_tokens)
    stages = tuple(StageSection(steps=count) for count in steps)
    config = RunConfig(rollout=section, stages=stages)
    return make_parts(config, tokenizer=Tokenizer(), grader=NothingRight())


def new_state(sampler: DrivenSampler, loader: Loader | None = None) -> RunState:
    stage = stage_at(max_response_tokens=BUDGET)
    return make_state(stage=stage, sampler=sampler, loader=loader or Loader())


def resumed(state: RunState, sampler: DrivenSampler) -> RunState:
    """What another process makes of the state: groups in flight come from a checkpoint's bytes."""
    text, arrays = canonical_json({"carried": array_state(state.carried)}, "test")
    data = b"".join(array.tobytes() for array in arrays)
    carried = groups_from(read_host(text, lambda: io.BytesIO(data))["carried"], STOPS)
    loader = Loader(drawn_by(state))
    return dataclasses.replace(state, carried=carried, sampler=sampler, loader=loader)


def drawn_by(state: RunState) -> int:
    assert isinstance(state.loader, Loader)
    return state.loader.drawn


def keys_of(groups) -> list[tuple[str, int]]:
    return [(group.problem_id, group.draw) for group in groups]


def new_sampler(slots: int, shards: int) -> DrivenSampler:
    config = SamplerConfig(
        slots=slots * shards,
        page_size=4,
        num_pages=shards * (1 + slots * 8),
        max_len=32,
        decode_steps=3,
    )
    engine = FakeEngine(config, shards)
    return DrivenSampler(engine, engine.new_pool())


@dataclasses.dataclass
class Trained:
    """What a step trained."""

    keys: list[tuple[str, int]]
    lag: int


def one_step(parts: Parts, state: RunState, *, attempt: int = 0) -> tuple[Trained, RunState]:
    """A step's batch, every response checked against the engine's definition."""
    n, version = parts.config.rollout.responses_per_prompt, state.policy_version
    state, groups = draw(parts, state, attempt=attempt)
    state, batch, _ = sample(parts, state, groups, stop=NEVER)
    seeds, lag = {(g.problem_id, g.draw): g.seed for g in groups}, 0
    for group in batch.values():
        assert len(group.responses) == n
        for s, response in enumerate(group.responses):
            seed = seeds[group.problem_id, group.draw]
            wanted = expected_tokens(group.prompt, seed, s, max_tokens=BUDGET, stops=STOPS)
            assert list(response.token_ids) == wanted
            assert list(response.logprobs) == [-float(t) for t in wanted]
            assert sum(count for _, count in response.versions) == len(wanted)
            assert [v for v, _ in response.versions] == sorted({v for v, _ in response.versions})
            lag = max(lag, version - response.versions[0][0])
    members = list(batch.values())
    state.lengths.record(
        [group.problem_id for group in members],
        [[r.token_ids for r in group.responses] for group in members],
    )
    versions = [[r.versions for r in group.responses] for group in members]
    assert age_metrics(versions, version=version)["rollout/lag_max"] == lag
    assert carried_metrics(state.carried)["rollout/carried_groups"] == len(state.carried)
    return Trained(keys_of(members), lag), state


def after(state: RunState, *, updated: bool = True) -> RunState:
    """The state once the step's update is made, or left out."""
    stage = dataclasses.replace(state.stage, steps_done=state.stage.steps_done + 1)
    state = dataclasses.replace(state, step=state.step + 1, stage=stage)
    return state.counted(steps_without_update=int(not updated))


sections = st.builds(
    RolloutSection,
    prompts_per_step=st.integers(1, 6),
    responses_per_prompt=st.integers(1, 3),
    partial_rollouts=st.just("carry"),
    partial_share=st.sampled_from([0.5, 0.6, 0.75, 0.9, 1.0]),
    partial_max_lag=st.integers(1, 3),
)


def cases(count: int):
    return hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


DRAWN = (
    sections,
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.tuples(st.integers(1, 5), st.integers(1, 2)),
    st.data(),
)


@cases(15)
@hypothesis.given(*DRAWN)
def test_every_group_begun_is_trained_once_and_in_time(section, steps, sizes, data):
    check_accounts(section, steps, sizes, data)


@pytest.mark.slow
@cases(500)
@hypothesis.given(*DRAWN)
def test_every_group_begun_is_trained_once_and_in_time_500_times(section, steps, sizes, data):
    check_accounts(section, steps, sizes, data)


def check_accounts(section, steps, sizes, data) -> None:
    parts, state = new_parts(section, *steps), new_state(new_sampler(*sizes))
    trained: Counter = Counter()
    visits = 0
    for index, count in enumerate(steps):
        state = dataclasses.replace(state, stage=stage_at(index, max_response_tokens=BUDGET))
        for _ in range(count):
            happens = data.draw(
                st.sampled_from(["nothing", "resume", "abort", "no update", "resample"])
            )
            if happens == "resume":
                state = resumed(state, new_sampler(*sizes))
            if happens == "abort":  # the state of the step's start is still good
                drawn = drawn_by(state)
                with contextlib.suppress(RolloutAborted):
                    abandoned, groups = draw(parts, state, attempt=0)
                    sample(parts, abandoned, groups, stop=NOW)
                assert drawn_by(state) == drawn
            for attempt in range(2 if happens == "resample" else 1):
                step, state = one_step(parts, state, attempt=attempt)
                assert len(step.keys) == section.prompts_per_step
                assert step.lag <= section.partial_max_lag
                trained.update(step.keys)
                visits += 1
                # A group that was begun is trained or carried; never both, never twice.
                begun = keys_of(Loader().take(drawn_by(state)))
                assert sorted([*trained.elements(), *keys_of(state.carried)]) == sorted(begun)
            state = after(state, updated=happens != "no update")
        assert not state.carried, "nothing crosses the end of a stage"
        assert drawn_by(state) == section.prompts_per_step * visits
    assert set(trained.values()) == {1}


def tables_of(state: RunState) -> dict:
    """What a step records, carries and draws."""
    return {
        "accuracy": state.accuracy.state_dict(),
        "lengths": state.lengths.state_dict(),
        "sink": state.sink.state_dict(),
        "drawn": drawn_by(state),
        "carried": state.carried,
        "counts": dict(state.counts),
    }


def test_a_step_drafts_from_what_earlier_steps_have_sampled():
    section = RolloutSection(prompts_per_step=4, responses_per_prompt=3)
    parts, sampler = new_parts(section, 6), new_sampler(4, 1)
    state = dataclasses.replace(new_state(sampler), drafts=DraftStore(10_000))
    collected, asked = collect_rollouts(parts, state, stop=NEVER)[0], []
    assert state.drafts.tokens == 0  # whoever holds the former state can repeat the step
    stored = {f"p{i}": collected.drafts.texts(f"p{i}") for i in range(PROBLEMS)}
    assert sum(map(len, stored.values())) == 4 * 3
    submit = sampler.submit

    def noted(prompts, params, *, history, **rest):
        asked.append((prompts, history))
        return submit(prompts, params, history=history, **rest)

    sampler.submit = noted
    collect_rollouts(parts, after(collected), stop=NEVER)
    ((prompts, history),) = asked
    assert any(history)
    for prompt, texts in zip(prompts, history, strict=True):
        assert texts == stored[f"p{prompt[0] - 1}"]  # as `Loader` writes prompts


def test_a_step_that_is_abandoned_or_repeated_leaves_the_state_before_it():
    parts = new_parts(SECTION, 6)
    parts = dataclasses.replace(parts, solver=dataclasses.replace(parts.solver, grader=HalfRight()))
    state, _, _ = collect_rollouts(parts, new_state(new_sampler(4, 1)), stop=NEVER)
    state = after(state)
    before, found = tables_of(state), []
    with pytest.raises(RolloutAborted):
        collect_rollouts(parts, state, stop=NOW)
    assert tables_of(state) == before
    for _ in range(2):
        collected, _, metrics = collect_rollouts(parts, state, stop=NEVER)
        assert tables_of(state) == before
        found.append((metrics, tables_of(collected)))
    assert found[0] == found[1]
    assert all(found[0][1][name] != table for name, table in before.items())


def batches(section: RolloutSection, *, resumes: bool = False, spent_at: int = 99):
    """(keys of each step's batch, lags) of a stage of six steps."""
    parts, state = new_parts(section, 6, total_tokens=1), new_state(new_sampler(4, 1))
    steps = []
    for done in range(6):
        if done == spent_at:
            state = state.counted(sampled_tokens=1)
        if resumes:
            state = resumed(state, new_sampler(4, 1))
        step, state = one_step(parts, state)
        steps.append(step)
        state = after(state)
        if done >= spent_at and not state.carried:
            break
    return [step.keys for step in steps], [step.lag for step in steps]


SECTION = RolloutSection(
    prompts_per_step=4, responses_per_prompt=3, partial_rollouts="carry", partial_share=0.6
)


def test_a_resumed_run_trains_the_same_batches():
    assert batches(SECTION, resumes=True) == batches(SECTION)


def test_carried_groups_lag_and_waiting_ones_do_not():
    keys, lags = batches(SECTION)
    assert max(lags) >= 1
    waits = dataclasses.replace(SECTION, partial_rollouts="wait")
    in_turn, none = batches(waits)
    assert none == [0] * 6
    assert [key for step in in_turn for key in step] != [key for step in keys for key in step]
    assert sorted(k for step in in_turn for k in step) == sorted(k for step in keys for k in step)
    # A share of one begins what it trains.
    everything, none = batches(dataclasses.replace(SECTION, partial_share=1.0))
    assert (everything, none) == (in_turn, [0] * 6)


def test_when_the_tokens_are_spent_what_is_in_flight_is_finished_first():
    keys, _ = batches(SECTION, spent_at=3)
    assert len(keys) == 4
    begun = keys_of(Loader().take(16))
    assert sorted(key for step in keys for key in step) == sorted(begun)


@pytest.mark.parametrize("wanted", [0, 1])
def test_what_is_due_is_waited_for_whatever_the_others_do(wanted):
    groups = begin(Loader().take(6), n=1, version=0, seed_parts=(SEED,))
    lengths = [
        len(expected_tokens(group.prompt, group.seed, 0, max_tokens=BUDGET, stops=STOPS))
        for group in groups
    ]
    longest = int(np.argmax(lengths))
    assert lengths[longest] > min(lengths) + 3  # more than a decode call

    def complete(due: set[int]) -> set[int]:
        found = sample_groups(
            new_sampler(6, 1),
            groups,
            SamplingParams(n=1, max_tokens=BUDGET, stop_token_ids=STOPS),
            tokenizer=Tokenizer(),
            wanted=wanted,
            due=due,
        )
        ended = {i for i, group in enumerate(found) if group.complete}
        assert {i for i, group in enumerate(found) if group.texts} == ended
        return ended

    assert longest not in complete(set())
    assert longest in complete({longest})


# --- several samplers ---


@cases(200)
@hypothesis.given(st.integers(0, 20), st.integers(1, 6), st.integers(0, 25))
def test_alike_groups_are_dealt_and_wanted_in_turn(count, samplers, wanted):
    owners = owners_of([7.0] * count, samplers)
    assert owners == [i % samplers for i in range(count)]
    dealt = [owners.count(k) for k in range(samplers)]
    assert quotas(dealt, wanted) == [
        len(range(k, min(wanted, count), samplers)) for k in range(samplers)
    ]


def test_unlike_groups_are_dealt_by_expected_tokens():
    costs = [100.0, 1.0, 100.0, 1.0, 1.0, 1.0]  # in turn, one sampler would get both long ones
    owners = owners_of(costs, 2)
    assert sorted(owners[i] for i in (0, 2)) == [0, 1]
    rng = np.random.default_rng(0)
    costs = rng.lognormal(5, 1, 64).tolist()
    loads = np.bincount(owners_of(costs, 4), weights=costs)
    assert loads.max() - loads.min() < 0.02 * loads.mean()
    assert owners_of([0.0] * 4, 2) == [0, 1, 0, 1]


def test_quotas_follow_what_was_dealt():
    assert quotas([1, 7], 4) == [1, 3]
    assert quotas([2, 6], 4) == [1, 3]
    assert quotas([2, 6], 9) == [2, 6]
    assert quotas([0, 5], 3) == [0, 3]
    assert quotas([3, 3], 0) == quotas([3, 3], -1) == [0, 0]


def test_two_samplers_make_what_is_wanted_whole_between_them():
    groups = begin(Loader().take(8), n=2, version=0, seed_parts=(SEED,))
    expected = [24.0, 24.0, 24.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    owners, parts = owners_of(expected, 2), []
    for k in range(2):
        sampler = new_sampler(4, 1)
        sampler.share = (k, 2)
        found = sample_groups(
            sampler,
            groups,
            SamplingParams(n=2, max_tokens=BUDGET, stop_token_ids=STOPS),
            tokenizer=Tokenizer(),
            wanted=5,
            expected_tokens=expected,
        )
        parts.append({i for i, group in enumerate(found) if group.complete})
        assert all(owners[i] == k for i in parts[k])
        assert not any(
            response.token_ids
            for i, group in enumerate(found)
            if owners[i] != k
            for response in group.responses
        )
    assert len(parts[0]) + len(parts[1]) >= 5
