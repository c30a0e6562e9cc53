"""The drill of random load sees what it is there to see."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.drills.load import Asked, Load
from tests.support.rollout.rollout_cases import CONFIG, dense_logits, small_model
from tests.tolerances import SCHEDULE_LOGPROB_ATOL

ASKED = Asked(
    prompts=((1, 8, 15),), temperature=(0.0,), top_k=(0,), top_p=(1.0,), min_p=(0.0,),
    max_tokens=(4,), seed=(0,), n=1, stops=False,
)  # fmt: skip


@pytest.fixture
def load():
    """What compares responses, without samplers."""
    made = object.__new__(Load)
    made.vocab, made.model = CONFIG.vocab_size, small_model
    made.parted = made.ill_conditioned = made.tokens = 0
    return made


@pytest.fixture(scope="module")
def greedy():
    """A response of four tokens by the dense model."""
    tokens, logprobs = [], []
    for _ in range(4):
        logit_V = dense_logits(small_model(0), [*ASKED.prompts[0], *tokens]).astype(np.float64)
        tokens.append(int(logit_V.argmax()))
        logprobs.append(float(logit_V[tokens[-1]] - np.logaddexp.reduce(logit_V)))
    return SimpleNamespace(token_ids=tokens, logprobs=logprobs, finish_reason="length")


def changed(response, at, *, by=0.0, token=None, **fields):
    """The response with a log-prob or a token exchanged."""
    logprobs, tokens = list(response.logprobs), list(response.token_ids)
    logprobs[at] += by
    tokens[at] = tokens[at] if token is None else token
    made = {"token_ids": tokens, "logprobs": logprobs, "finish_reason": response.finish_reason}
    return SimpleNamespace(**made | fields)


def test_rounding_is_no_fault_and_more_is(load, greedy):
    def fault(ours):
        return load.differs(ASKED, 0, 0, 0, ours, greedy)

    assert fault(greedy) == ""
    assert fault(changed(greedy, 1, by=0.5 * SCHEDULE_LOGPROB_ATOL)) == ""
    assert fault(changed(greedy, 1, by=1e-3)).startswith("log-probs differ by 1.00e-03 (last bits:")
    assert fault(changed(greedy, 3, finish_reason="stop")).startswith("another end")
    other = (greedy.token_ids[2] + 1) % CONFIG.vocab_size
    assert fault(changed(greedy, 2, token=other)).startswith("tokens differ from 2 on")
    assert load.ill_conditioned == load.parted == 0


def test_the_last_bits_of_the_weights_move_a_log_prob_by_a_rounding(load, greedy):
    tokens = [*ASKED.prompts[0], *greedy.token_ids]
    assert 1e-8 < load.moved_by_last_bits(0, tokens, 1.0) < SCHEDULE_LOGPROB_ATOL
    assert load.moved_by_last_bits(0, tokens, 0.5) > 0  # another temperature


def test_one_ill_conditioned_log_prob_is_counted_and_two_are_too_many(load, greedy, monkeypatch):
    monkeypatch.setattr(load, "moved_by_last_bits", lambda *_: SCHEDULE_LOGPROB_ATOL)
    moved = changed(greedy, 1, by=2 * SCHEDULE_LOGPROB_ATOL)
    assert load.differs(ASKED, 0, 0, 0, moved, greedy) == ""
    assert load.ill_conditioned == 1
    assert load.differs(ASKED, 0, 0, 0, moved, greedy).startswith("too many ill-conditioned")
    beyond = changed(greedy, 1, by=4 * SCHEDULE_LOGPROB_ATOL)
    assert load.differs(ASKED, 0, 0, 0, beyond, greedy).startswith("log-probs differ")
