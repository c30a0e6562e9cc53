"""Scores of sequences: the trainer's log-probs, and the likeliest tokens by the same numbers."""

import numpy as np
import pytest

from polaris_jax.models import token_logprobs
from polaris_jax.rollout.scores import score
from tests.support.rollout.rollout_cases import random_prompts, small_model
from tests.tolerances import SERVED_LOGPROB

SEQUENCES = [[3], [5, 6, 7], *random_prompts(3, seed=2), list(range(40))]
TEMPERATURES = [1.0, 0.0, 0.7, 1.3, 1.0, 2.0]


def trainers(sequence, temperature):
    token_BT = np.asarray([sequence])
    position_BT = np.arange(len(sequence))[None]
    return token_logprobs(small_model(), token_BT, position_BT, None, temperature or 1.0)[0][0, :-1]


def test_they_are_the_trainers_at_each_temperature():
    found = score(small_model(), SEQUENCES, TEMPERATURES, top=3)
    for one, sequence, temperature in zip(found, SEQUENCES, TEMPERATURES, strict=True):
        expected = trainers(sequence, temperature)
        np.testing.assert_allclose(one.logprobs, expected, atol=SERVED_LOGPROB, rtol=0)
        assert len(one.top_ids) == len(one.top_logprobs) == len(sequence) - 1


def test_the_likeliest_come_first_with_the_numbers_of_the_tokens_themselves():
    (one,) = score(small_model(), [list(range(40))], [1.0], top=20)
    for token, own, ids, values in zip(
        range(1, 40), one.logprobs, one.top_ids, one.top_logprobs, strict=True
    ):
        assert list(values) == sorted(values, reverse=True) and len(set(ids)) == 20
        if token in ids:
            assert values[ids.index(token)] == own
        else:
            assert own <= values[-1]
    (fewer,) = score(small_model(), [list(range(40))], [1.0], top=1)
    assert [ids[:1] for ids in one.top_ids] == list(fewer.top_ids)


def test_more_than_clients_may_ask_for_is_refused():
    with pytest.raises(ValueError, match="top=21: must be in"):
        score(small_model(), [[1, 2]], [1.0], top=21)
