"""A slow, obvious model of the recipe's rescue, substitution and advantages, row for row.

A batch is a list of groups; a group is {"id", "prompt", "gold", "rows"}; a row is a dict of its
tokens, logprobs, text, finish_reason, reward and rescued. Written from the recipe, not
from the product; the one thing they share is how randomness is drawn:

    rescue       one rng.integers(R) a rescued group, in batch order
    substitute   one rng.permutation(donors ascending), then one rng.integers(donors, size=missing)
                 when donors run out; no draw when nothing is replaced
"""

import copy
import math


def store(slots, groups, *, step, stage, temperature):
    """The newest correct response of each problem; never one that was rescued."""
    for group in groups:
        for row in group["rows"]:
            if row["reward"] == 1 and not row["rescued"]:
                kept = {k: row[k] for k in ("tokens", "logprobs", "text", "finish_reason")}
                kept.update(step=step, stage=stage, temperature=temperature, reward=row["reward"])
                slots[group["id"]] = kept


def rescue(slots, groups, *, budget, rng):
    groups, count = copy.deepcopy(groups), 0
    for group in groups:
        failed = all(row["reward"] < 1 for row in group["rows"])
        kept = slots.get(group["id"])
        if failed and kept is not None and len(kept["tokens"]) <= budget:
            row = group["rows"][rng.integers(len(group["rows"]))]
            row.update({k: v for k, v in kept.items() if k in row})
            row.update(rescued=True)
            count += 1
    return groups, count


def informative(group):
    return len({row["reward"] for row in group["rows"]}) > 1


def substitute(groups, *, min_informative, on_scarce, rng):
    """(groups, source, informative, replaced, reused, action)."""
    donors = [p for p, group in enumerate(groups) if informative(group)]
    poor = [p for p, group in enumerate(groups) if not informative(group)]
    source = list(range(len(groups)))
    if not donors:
        return groups, source, 0, 0, 0, "none"
    if len(donors) / len(groups) < min_informative and on_scarce != "train":
        return groups, source, len(donors), 0, 0, on_scarce
    if not poor:
        return groups, source, len(donors), 0, 0, "train"
    queue = [int(p) for p in rng.permutation(donors)]
    if len(poor) > len(donors):
        missing = len(poor) - len(donors)
        queue += [donors[k] for k in rng.integers(len(donors), size=missing)]
    for p, donor in zip(poor, queue, strict=False):
        source[p] = donor
    reused = max(0, len(poor) - len(donors))
    groups = [copy.deepcopy(groups[p]) for p in source]
    return groups, source, len(donors), len(poor), reused, "train"


def advantages(group, *, scale, baseline, eps=1e-6):
    rewards = [row["reward"] for row in group["rows"]]
    n = len(rewards)
    mean = sum(rewards) / n
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (n - 1))
    result = []
    for r in rewards:
        base = mean if baseline == "mean" else (sum(rewards) - r) / (n - 1)
        result.append((r - base) / (std + eps) if scale == "std" else r - base)
    return result
