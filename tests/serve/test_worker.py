"""The thread that owns the sampler: its tokens, its limit, its end."""

import dataclasses
import queue

import pytest

from polaris_jax.rollout import Sampler, SamplingParams, weights
from polaris_jax.rollout.scores import Scores
from polaris_jax.serve.jobs import Accepted, Failed, Finished, Job, Scored, Tokens
from polaris_jax.serve.weights import swap
from polaris_jax.serve.worker import CRASHED, SCORED_TOKENS, STOPPING, QueueFull, Stopped, Worker
from tests.support.random_models import random_model
from tests.support.serving import SIZES, small_model

pytestmark = pytest.mark.xdist_group("serve")
LONG = SamplingParams(max_tokens=200, stop_token_ids=(), seed=1)


@pytest.fixture
def worker():
    worker = Worker(Sampler(small_model()[0], SIZES), post, max_waiting=2)
    worker.start()
    yield worker
    worker.stop()
    assert not worker.alive


def post(events):
    for job, event in events:
        job.inbox.put(event)


def job_of(prompts, params, **fields):
    return Job(prompts, params, inbox=queue.Queue(), **fields)


def events_of(job):
    events = []
    while not isinstance(event := job.inbox.get(timeout=120), Finished | Failed):
        events.append(event)
    return [*events, event]


def test_jobs_get_the_tokens_of_generate_whatever_runs_beside_them(worker):
    params = SamplingParams(n=2, max_tokens=(9, 14), seed=(3, 4), stop_token_ids=(7,))
    jobs = [job_of([[1, 2, 3], [4, 5]], params), job_of([[6]], LONG)]
    for job in jobs:
        worker.submit(job)
    expected = Sampler(small_model()[0], SIZES).generate([[1, 2, 3], [4, 5]], params)
    first, *events, last = events_of(jobs[0])
    assert (first, last) == (Accepted(), Finished())
    for p, group in enumerate(expected):
        for s, response in enumerate(group):
            own = [e for e in events if (e.prompt, e.sample) == (p, s)]
            assert sum((e.token_ids for e in own), ()) == response.token_ids
            assert sum(len(e.logprobs) for e in own) == len(response.token_ids)
            reasons = [e.finish_reason for e in own]
            assert reasons == [None] * (len(own) - 1) + [response.finish_reason]
    events_of(jobs[1])
    assert worker.unfinished == 0


def test_what_may_wait_is_limited_and_room_comes_back(worker):
    """4 slots and 2 waiting responses."""
    big = job_of([[1]], SamplingParams(n=6, max_tokens=200, stop_token_ids=()))
    with worker.kept_room(big.responses), pytest.raises(QueueFull, match="6 responses"):
        worker.submit(job_of([[1]], LONG))
    worker.submit(big)
    with pytest.raises(QueueFull, match="6 responses"), worker.kept_room(1):
        pass
    with pytest.raises(QueueFull, match="6 responses"):
        worker.submit(job_of([[1]], LONG))
    with pytest.raises(ValueError, match="7 responses: this server takes at most 6"):
        worker.submit(job_of([[1]], SamplingParams(n=7)))
    worker.cancel(big)
    worker.call(lambda sampler: None).result(60)
    late = job_of([[1]], LONG)
    worker.submit(late)
    assert isinstance(events_of(late)[-1], Finished)
    assert worker.call(lambda sampler: sampler.stats()).result(60)["pages_used"] == 0


def test_a_job_that_cannot_be_served_is_refused(worker):
    job = job_of([[10**6]], LONG)
    worker.submit(job)
    (event,) = events_of(job)
    assert event.refused and "outside of" in event.text
    job = job_of([[1] * 100], LONG)
    worker.submit(job)
    assert events_of(job)[0].refused
    assert worker.unfinished == 0


def test_a_text_that_does_not_decode_fails_its_own_job(worker):
    def broken(ids):
        raise RuntimeError("no text")

    params = SamplingParams(max_tokens=9, stop_strings=("x",), decode=broken)
    bad, good = job_of([[1]], params), job_of([[1]], LONG)
    worker.submit(bad)
    worker.submit(good)
    assert events_of(bad)[-1] == Failed("RuntimeError: no text")
    assert isinstance(events_of(good)[-1], Finished)


def test_scores_come_with_the_last_tokens_or_alone(worker):
    job = job_of([[1, 2, 3]], SamplingParams(max_tokens=6), top=2, scores=True)
    worker.submit(job)
    tokens = [e for e in events_of(job) if isinstance(e, Tokens)]
    assert [e.scores is None for e in tokens] == [True] * (len(tokens) - 1) + [False]
    sampled = sum(len(e.token_ids) for e in tokens)
    assert len(tokens[-1].scores.logprobs) == 3 + sampled - 1
    assert {len(ids) for ids in tokens[-1].scores.top_ids} == {2}
    job = job_of([[1, 2, 3], [4, 5]], None, top=1)
    worker.submit(job)
    scored = [e for e in events_of(job) if isinstance(e, Scored)]
    assert [(e.prompt, len(e.scores.logprobs)) for e in scored] == [(0, 2), (1, 1)]


@pytest.fixture
def scored(monkeypatch):
    """Makes a worker that computes no scores, and a list that gets the sequences of each call."""
    calls = []
    worker = Worker(Sampler(small_model()[0], SIZES), post, max_waiting=100)

    def score(sampler, sequences, temperatures, *, top):
        calls.append(sequences)
        worker.on_score()
        return [Scores((0.0,) * (len(one) - 1), (), ()) for one in sequences]

    monkeypatch.setattr(Sampler, "score", score)
    worker.on_score = lambda: None
    yield worker, calls
    worker.stop()


def test_scoring_gives_way_to_steps_and_to_other_jobs(scored):
    worker, calls = scored
    big = job_of([[1] * 200] * 10, None)
    samples, small = job_of([[1]], LONG), job_of([[2] * 3], None)
    jobs = [big, samples, small]
    for job in jobs:
        worker.submit(job)
    worker.start()
    events = [events_of(job) for job in jobs]
    assert [e.prompt for e in events[0] if isinstance(e, Scored)] == list(range(10))
    assert all(isinstance(one[-1], Finished) for one in events)
    assert [len(call) for call in calls] == [3, 1, 3, 3, 1]  # 3 of 200 tokens reach the limit
    assert calls[1] == [[2] * 3]
    assert worker.unfinished == 0


def test_scoring_can_be_aborted(scored):
    worker, calls = scored
    job = job_of([[1] * SCORED_TOKENS] * 10, None)
    worker.on_score = lambda: worker.cancel(job)
    worker.submit(job)
    worker.start()
    job.inbox.get(timeout=120)
    worker.call(lambda sampler: None).result(60)
    assert len(calls) == 1
    assert worker.unfinished == 0 and worker._jobs == {}


def test_responses_that_wait_for_their_scores_still_count(scored):
    """Else a queue of them could grow without a limit."""
    worker, _ = scored
    unfinished = []
    worker.on_score = lambda: unfinished.append(worker.unfinished)
    params = SamplingParams(n=4, max_tokens=100, stop_token_ids=())
    job = job_of([[1] * 100], params, scores=True)
    worker.submit(job)
    worker.start()
    scores = [e.scores for e in events_of(job) if isinstance(e, Tokens) and e.finish_reason]
    assert len(scores) == 4 and None not in scores
    assert unfinished == [4, 1]


def test_ids_that_cannot_be_scored_are_refused_by_their_prompt(worker):
    job = job_of([[1, 2], [10**6]], None)
    worker.submit(job)
    (event,) = events_of(job)
    assert event.refused and "prompt 1: token id 1000000" in event.text


def test_new_weights_between_two_steps_lose_no_token(worker):
    job = job_of([[1, 2]], LONG)
    worker.submit(job)
    events = [job.inbox.get(timeout=120) for _ in range(2)]
    other = small_model(1)[0]
    worker.call(lambda sampler: swap(sampler, other)).result(60)
    events += events_of(job)
    assert sum(len(e.token_ids) for e in events if isinstance(e, Tokens)) == 200
    params = SamplingParams(max_tokens=5, temperature=0.0)
    job = job_of([[3]], params)
    worker.submit(job)
    found = sum((e.token_ids for e in events_of(job) if isinstance(e, Tokens)), ())
    assert found == Sampler(other, SIZES).generate([[3]], params)[0][0].token_ids


def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay(worker):
    config = small_model()[0].config
    other = random_model(dataclasses.replace(config, rope_theta=2.0))
    with pytest.raises(ValueError, match="another architecture"):
        worker.call(lambda sampler: swap(sampler, other)).result(60)
    job = job_of([[1]], SamplingParams(max_tokens=2))
    worker.submit(job)
    assert isinstance(events_of(job)[-1], Finished)


def test_a_sampler_without_weights_waits_even_after_an_update_that_is_refused(worker, monkeypatch):
    job = job_of([[1]], LONG)
    worker.submit(job)
    job.inbox.get(timeout=120)

    def fails(*args, **kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "sync_weights", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            worker.call(lambda sampler: swap(sampler, small_model()[0])).result(60)
    other = random_model(dataclasses.replace(small_model()[0].config, rope_theta=2.0))
    with pytest.raises(ValueError, match="another architecture"):
        worker.call(lambda sampler: swap(sampler, other)).result(60)
    assert worker.call(lambda sampler: (sampler.has_weights, sampler.paused)).result(60) == (
        False,
        True,
    )
    assert worker.failures == 0
    worker.call(lambda sampler: swap(sampler, small_model()[0])).result(60)
    assert isinstance(events_of(job)[-1], Finished)


def test_a_step_that_fails_leaves_no_request_of_an_ended_job(worker, monkeypatch):
    def step(sampler):
        raise RuntimeError("no weights")  # before the driver, which keeps its requests then

    job = job_of([[1]], LONG)
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "step", step)
        worker.submit(job)
        assert isinstance(events_of(job)[-1], Failed)
        worker.call(lambda sampler: None).result(60)
    assert worker.call(lambda sampler: sampler.step()).result(60) is False


def test_a_job_is_put_before_the_thread_can_end():
    """Between the check and the put a stop could end the thread, and nobody would end the job."""
    worker = Worker(Sampler(small_model()[0], SIZES), post, max_waiting=2)
    calls, locked = worker._calls, []

    class Calls:
        def put(self, call):
            locked.append(worker._lock.locked())
            calls.put(call)

    worker._calls = Calls()
    worker.submit(job_of([[1]], LONG))
    assert locked == [True]


def test_a_stop_ends_every_job_that_was_accepted():
    worker = Worker(Sampler(small_model()[0], SIZES), post, max_waiting=2)
    job = job_of([[1]], LONG)
    worker._accepted[job] = 1  # its call was lost
    worker.start()
    worker.stop()
    assert events_of(job) == [Failed(STOPPING)]


def test_a_stop_fails_what_is_left():
    worker = Worker(Sampler(small_model()[0], SIZES), post, max_waiting=2)
    worker.start()
    job = job_of([[1]], LONG)
    worker.submit(job)
    job.inbox.get(timeout=120)
    worker.stop()
    assert events_of(job)[-1] == Failed("the server is stopping")
    with pytest.raises(Stopped):
        worker.submit(job)
    with pytest.raises(Stopped):  # nobody would ever make the call
        worker.call(lambda sampler: None)
    assert worker.stats["pages_used"] == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_ours_ends_the_thread_and_leaves_no_job_waiting(monkeypatch):
    worker = Worker(Sampler(small_model()[0], SIZES), post, max_waiting=2)

    def step(sampler):
        raise TypeError("a mistake")

    monkeypatch.setattr(Sampler, "step", step)
    worker.start()
    job = job_of([[1, 2]], LONG)
    worker.submit(job)
    assert events_of(job) == [Accepted(), Failed(CRASHED)]
    worker._thread.join(60)
    assert not worker.alive and worker.unfinished == 0
    with pytest.raises(Stopped, match="has ended by an error"):
        worker.submit(job_of([[1, 2]], LONG))
