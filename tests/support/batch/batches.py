"""Random graded batches for the tests of batch/: the record and the oracle's list form of it."""

import numpy as np

from polaris_jax.records import Graded


def random_groups(rng, *, prompts=None, responses=None, ids=6, solve=None, max_tokens=6):
    """The list form for tests/support/batch/oracle.py; ids repeat within and across batches."""
    prompts = int(rng.integers(1, 9)) if prompts is None else prompts
    responses = int(rng.integers(2, 6)) if responses is None else responses
    rng.integers(3)  # the seeds of some tests were picked for the stream with this draw
    groups = []
    for _ in range(prompts):
        number = int(rng.integers(ids))
        chance = rng.choice([0.0, 0.3, 1.0]) if solve is None else solve
        rows = []
        for _ in range(responses):
            length = int(rng.integers(1, max_tokens + 1))
            tokens = tuple(int(t) for t in rng.integers(1, 100_000, length))
            rows.append(
                {
                    "tokens": tokens,
                    "logprobs": tuple(float(x) for x in -rng.random(length, np.float32)),
                    "text": f"text {tokens}",
                    "finish_reason": str(rng.choice(["stop", "length"])),
                    "reward": int(rng.random() < chance),
                    "rescued": False,
                }
            )
        prompt = tuple(range(1, number + 3))
        groups.append({"id": f"q{number}", "prompt": prompt, "gold": number, "rows": rows})
    return groups


def to_graded(groups, *, kind=tuple):
    """The record of a list form; `kind` is the sequence type of its nested fields."""

    def rows(name):
        return kind(kind(row[name] for row in group["rows"]) for group in groups)

    def nested(name):
        return kind(kind(kind(row[name]) for row in group["rows"]) for group in groups)

    def array(name, dtype):
        return np.array([[row[name] for row in group["rows"]] for group in groups], dtype)

    return Graded(
        problem_ids=kind(group["id"] for group in groups),
        prompts=kind(kind(group["prompt"]) for group in groups),
        golds=kind(group["gold"] for group in groups),
        token_ids=nested("tokens"),
        logprobs=nested("logprobs"),
        texts=rows("text"),
        finish_reasons=rows("finish_reason"),
        reward_PR=array("reward", np.float32),
        rescued_PR=array("rescued", bool),
    )


def to_groups(graded):
    """The list form of a record."""
    return [
        {
            "id": graded.problem_ids[p],
            "prompt": tuple(graded.prompts[p]),
            "gold": graded.golds[p],
            "rows": [
                {
                    "tokens": tuple(graded.token_ids[p][r]),
                    "logprobs": tuple(graded.logprobs[p][r]),
                    "text": graded.texts[p][r],
                    "finish_reason": graded.finish_reasons[p][r],
                    "reward": int(graded.reward_PR[p, r]),
                    "rescued": bool(graded.rescued_PR[p, r]),
                }
                for r in range(graded.reward_PR.shape[1])
            ],
        }
        for p in range(len(graded))
    ]
