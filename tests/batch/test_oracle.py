"""The product against the oracle on random batches; one sink lives through all of them."""

import numpy as np

from polaris_jax.batch import RescueBuffer, group_advantages, substitute_uninformative
from tests.support.batch import oracle
from tests.support.batch.batches import random_groups, to_graded, to_groups
from tests.tolerances import ADVANTAGE_ATOL

TEMPERATURES = (0.7, 1.0, 1.4)
BATCHES = 2_000
BATCHES_A_SINK = 25  # then both start anew, so that empty slots stay common


def test_product_equals_the_oracle_row_for_row():
    rng = np.random.default_rng(0)
    seen = {"rescued": 0, "replaced": 0, "reused": 0}
    actions = set()
    sink, slots = RescueBuffer(), {}
    for number in range(BATCHES):
        if number % BATCHES_A_SINK == 0:
            sink, slots = RescueBuffer(), {}
        groups = random_groups(rng)
        temperature = float(rng.choice(TEMPERATURES))
        budget = int(rng.integers(2, 8))
        options = {
            "min_informative": float(rng.choice([0.0, 1 / 3, 1.0])),
            "on_scarce": str(rng.choice(["train", "resample", "skip"])),
        }
        seed = int(rng.integers(1 << 31))
        mine, theirs = np.random.default_rng(seed), np.random.default_rng(seed)

        graded, rescued = sink.rescue(to_graded(groups), max_response_tokens=budget, rng=mine)
        groups, expected = oracle.rescue(slots, groups, budget=budget, rng=theirs)
        assert (to_groups(graded), rescued) == (groups, expected)

        when = {"step": number, "stage": number // 1_000, "temperature": temperature}
        sink.update(graded, **when)
        oracle.store(slots, groups, **when)
        assert len(sink) == len(slots)
        for problem_id, kept in slots.items():
            entry = dict(vars(sink.get(problem_id)))
            entry["tokens"] = entry.pop("token_ids")
            assert entry == kept

        graded, done = substitute_uninformative(graded, **options, rng=mine)
        groups, source, informative, replaced, reused, action = oracle.substitute(
            groups, **options, rng=theirs
        )
        assert to_groups(graded) == groups
        assert done.source_P.tolist() == source
        assert (done.informative, done.replaced, done.reused, done.action) == (
            informative,
            replaced,
            reused,
            action,
        )
        for scale in ("std", "off"):
            for baseline in ("mean", "leave_one_out"):
                kind = {"scale": scale, "baseline": baseline}
                np.testing.assert_allclose(
                    group_advantages(graded.reward_PR, **kind),
                    [oracle.advantages(group, **kind) for group in groups],
                    rtol=0,
                    atol=ADVANTAGE_ATOL,
                )
        assert mine.bit_generator.state == theirs.bit_generator.state
        seen["rescued"] += rescued
        seen["replaced"] += replaced
        seen["reused"] += reused
        actions.add(action)
    # The batches reach every branch often enough for agreement to mean something.
    assert min(seen.values()) > BATCHES // 4, seen
    assert actions == {"train", "resample", "skip", "none"}
