"""A response of several policies: each token against its own log-prob, the weight capped."""

import dataclasses

import numpy as np
import pytest

from polaris_jax.batch import Substitution, group_advantages
from polaris_jax.config import RunConfig
from polaris_jax.config.sections import BatchSection, ObjectiveSection
from polaris_jax.records import Graded, TrainBatch
from polaris_jax.step import pack_minibatches
from polaris_jax.train.objective import token_loss
from tests.support.parts import make_parts, make_state
from tests.tolerances import OBJECTIVE_RTOL

OBJECTIVE = ObjectiveSection(old_logprobs="sampler", tis_cap=2.0)
CONFIG = RunConfig(objective=OBJECTIVE, batch=BatchSection(row_len=32, rows=1))
PRESENT = 5
# (versions, reward) of two groups of three responses.
ROWS = [
    [(((3, 4), (5, 2)), 1.0), (((5, 3),), 0.0), (((4, 2), (5, 5)), 0.0)],
    [(((5, 6),), 1.0), (((3, 1), (4, 2), (5, 1)), 1.0), (((4, 3),), 0.0)],
]


class OneRow:
    """In the place of an `Updater`: a microbatch is one row on one device."""

    rows = shards = 1
    row_len = 32

    def __init__(self, shares: bool) -> None:
        self._shares = shares

    def shares_prompts(self, _: object) -> bool:
        return self._shares


def packed(graded: Graded, swapped: Substitution, *, shares: bool = False) -> list[TrainBatch]:
    """The batch packed by a step whose policy has version PRESENT."""
    parts = make_parts(CONFIG, updater=OneRow(shares), model_config=None)
    return pack_minibatches(parts, make_state(step=PRESENT), graded, swapped)


def graded_of_former_policies(rng: np.random.Generator) -> Graded:
    counts = [[sum(count for _, count in versions) for versions, _ in group] for group in ROWS]
    return Graded(
        problem_ids=("a", "b"),
        prompts=((1, 2), (3,)),
        golds=("1", "2"),
        token_ids=[[rng.integers(10, 90, n).tolist() for n in group] for group in counts],
        logprobs=[[(-rng.random(n, np.float32)).tolist() for n in group] for group in counts],
        texts=[["", "", ""]] * 2,
        finish_reasons=[["stop"] * 3] * 2,
        reward_PR=np.array([[reward for _, reward in group] for group in ROWS]),
        versions=[[versions for versions, _ in group] for group in ROWS],
    )


@pytest.mark.parametrize("shares", [False, True], ids=["own prompts", "shared prompts"])
def test_each_token_counts_against_its_own_log_prob_under_the_cap(shares):
    rng = np.random.default_rng(0)
    graded = graded_of_former_policies(rng)
    swapped = Substitution(np.arange(2), 2, 0, 0, "train")
    (batch,) = packed(graded, swapped, shares=shares)
    assert (batch.shared_prompt_tokens > 0) == shares
    # The present policy has moved by up to a nat, and by a factor of 20 where it did so most.
    logp_BT = batch.old_logp_BT + rng.normal(0, 1, batch.old_logp_BT.shape).astype(np.float32)
    loss = token_loss(
        logp_BT,
        OBJECTIVE,
        entropy_BT=np.zeros_like(logp_BT),
        old_logp_BT=batch.old_logp_BT,
        advantage_BT=batch.advantage_BT,
    )
    advantage_PR = group_advantages(graded.reward_PR)
    capped = found = 0
    for p, group in enumerate(ROWS):
        for r, (versions, _) in enumerate(group):
            row, at = place_of(batch, graded, p, r)
            policies = [version for version, count in versions for _ in range(count)]
            for i, (old, version) in enumerate(zip(graded.logprobs[p][r], policies, strict=True)):
                ratio = np.exp(float(logp_BT[row, at + i]) - old)
                weight, a = min(ratio, 2.0), float(advantage_PR[p, r])
                wanted = max(-weight * a, -np.clip(weight, 0.8, 1.28) * a)
                np.testing.assert_allclose(
                    float(loss.loss_BT[row, at + i]), wanted, rtol=OBJECTIVE_RTOL
                )
                assert bool(loss.truncated_BT[row, at + i]) == (ratio > 2.0)
                # The log-prob gap is measured where sampler and trainer are one policy.
                assert batch.fresh_BT[row, at + i] == (version == PRESENT)
                capped, found = capped + (ratio > 2.0), found + 1
    assert found == batch.tokens == int((batch.weight_BT > 0).sum())
    assert 0 < capped < found
    assert batch.fresh_BT.sum() == sum(
        count for group in ROWS for versions, _ in group for v, count in versions if v == PRESENT
    )


def place_of(batch, graded: Graded, p: int, r: int) -> tuple[int, int]:
    """(row, entry that predicts the first token) of a response, by its tokens."""
    tokens = [graded.prompts[p][-1], *graded.token_ids[p][r]]
    for row, row_T in enumerate(batch.token_BT):
        for start in range(len(row_T) - len(tokens) + 1):
            if row_T[start : start + len(tokens)].tolist() == tokens:
                return row, start
    raise AssertionError((p, r))


def test_without_versions_all_tokens_are_the_present_policys():
    graded = dataclasses.replace(graded_of_former_policies(np.random.default_rng(1)), versions=None)
    swapped = Substitution(np.arange(2), 2, 0, 0, "train")
    (batch,) = packed(graded, swapped)
    assert batch.fresh_BT.sum() == batch.tokens
