"""Groups on their way from a prompt to a training batch, and the state that carries them over.

A step begins with groups in flight, oldest first: what the step before left unfinished, then new
prompts. It ends when enough of them are whole; the oldest whole ones are trained, the rest is
carried over with its tokens, log-probs and versions. Under `rollout.partial_rollouts=wait` nothing
is ever left: a step begins what it trains and waits for all of it.

A version is the number of updates that a policy has had. A token's lag is the version of the policy
that is trained less that of the one that sampled it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polaris_jax.records import Gold, PromptBatch, Response, Versions

NOTHING = Response((), (), "unfinished")


@dataclasses.dataclass(frozen=True)
class Group:
    """A prompt with what there is of its n responses.

    Attributes:
        problem_id: of the problem.
        prompt: token ids.
        prompt_text: the same as text.
        gold: of the problem.
        draw: how often the problem had been drawn before in this run.
        epoch: in which it was drawn.
        seed: of all its samples; with sample and position it decides the noise of a token, so a
            response goes on as it would have.
        begun: version of the policy when it was drawn; none of its tokens is older.
        responses: n of them.
    """

    problem_id: str
    prompt: tuple[int, ...]
    prompt_text: str
    gold: Gold
    draw: int
    epoch: int
    seed: int
    begun: int
    responses: tuple[Response, ...]

    @property
    def whole(self) -> bool:
        """Every response has ended."""
        return all(response.ended for response in self.responses)

    def with_response(self, sample: int, response: Response) -> Group:
        """The group with another response in a place."""
        responses = (*self.responses[:sample], response, *self.responses[sample + 1 :])
        return dataclasses.replace(self, responses=responses)


def begin(prompts: PromptBatch, seeds: Sequence[int], *, n: int, version: int) -> list[Group]:
    """Groups without a token yet.

    Args:
        prompts: P prompts.
        seeds: one a prompt.
        n: responses a prompt.
        version: of the present policy.
    """
    return [
        Group(
            prompts.problem_ids[i],
            prompts.prompts[i],
            prompts.prompt_texts[i],
            prompts.golds[i],
            prompts.draws[i],
            prompts.epoch,
            seed,
            version,
            (NOTHING,) * n,
        )
        for i, seed in enumerate(seeds)
    ]


def prompts_of(groups: Sequence[Group]) -> PromptBatch:
    """The prompts of at least one group; the epoch is the first's."""
    return PromptBatch(
        problem_ids=tuple(group.problem_id for group in groups),
        prompts=tuple(group.prompt for group in groups),
        prompt_texts=tuple(group.prompt_text for group in groups),
        golds=tuple(group.gold for group in groups),
        draws=tuple(group.draw for group in groups),
        epoch=groups[0].epoch,
    )


def most_in_flight(prompts: int, share: float) -> int:
    """Groups to have in flight, so that `prompts` whole ones are this share of them."""
    return math.ceil(round(prompts / share, 6))  # 7 / 0.7 is a little over 10


def settle(groups: Sequence[Group], count: int) -> tuple[list[int], tuple[Group, ...]]:
    """(places of the `count` oldest whole groups, all others in their order).

    The others include whole ones when more than `count` are: they wait for the next step.
    """
    chosen = [i for i, group in enumerate(groups) if group.whole][:count]
    taken = set(chosen)
    return chosen, tuple(group for i, group in enumerate(groups) if i not in taken)


def leading_stale(versions: Versions, version: int) -> int:
    """How many tokens at a response's beginning policies before `version` have sampled."""
    return sum(count for sampled, count in versions if sampled < version)


def age_metrics(versions: Sequence[Sequence[Versions]], *, version: int) -> dict[str, Any]:
    """How old the tokens of a batch are.

    Args:
        versions: [P][R] of the batch, before anything is rescued or substituted.
        version: of the policy that is trained.

    Returns:
        rollout/stale_share: share of the batch's tokens that former policies sampled, in [0, 1];
        lag_mean and lag_max over its tokens, in updates.
    """
    pairs = [pair for group in versions for response in group for pair in response]
    tokens = sum(count for _, count in pairs)
    stale = sum(count for sampled, count in pairs if sampled < version)
    lag = sum((version - sampled) * count for sampled, count in pairs)
    return {
        "rollout/stale_share": stale / tokens if tokens else None,
        "rollout/lag_mean": lag / tokens if tokens else None,
        "rollout/lag_max": max((version - sampled for sampled, _ in pairs), default=None),
    }


def carried_metrics(carried: Sequence[Group]) -> dict[str, Any]:
    """What a step leaves in flight: groups, their unfinished responses, the tokens of all."""
    responses = [response for group in carried for response in group.responses]
    return {
        "rollout/carried_groups": len(carried),
        "rollout/carried_responses": sum(not response.ended for response in responses),
        "rollout/carried_tokens": sum(len(response.token_ids) for response in responses),
    }


def array_state(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The groups for a checkpoint: tokens and log-probs as one array a group, the rest as JSON."""
    return [
        {
            **{name: getattr(group, name) for name in _PLAIN},
            "prompt": np.array(group.prompt, np.int32),
            "token_ids": np.array(_joined(group, "token_ids"), np.int32),
            "logprobs": np.array(_joined(group, "logprobs"), np.float64),
            "lengths": [len(response.token_ids) for response in group.responses],
            "finish_reasons": [response.finish_reason for response in group.responses],
            "versions": [[list(pair) for pair in r.versions] for r in group.responses],
        }
        for group in groups
    ]


def groups_from(state: Sequence[Mapping[str, Any]]) -> tuple[Group, ...]:
    """What `array_state` was given."""
    groups = []
    for fields in state:
        ends = list(itertools.accumulate(fields["lengths"], initial=0))
        spans = [slice(start, end) for start, end in itertools.pairwise(ends)]
        responses = tuple(
            Response(
                tuple(fields["token_ids"][span].tolist()),
                tuple(fields["logprobs"][span].tolist()),
                reason,
                versions=tuple((int(version), int(count)) for version, count in versions),
            )
            for span, reason, versions in zip(
                spans, fields["finish_reasons"], fields["versions"], strict=True
            )
        )
        plain = {name: fields[name] for name in _PLAIN}
        groups.append(Group(prompt=tuple(fields["prompt"].tolist()), responses=responses, **plain))
    return tuple(groups)


_PLAIN = ("problem_id", "prompt_text", "gold", "draw", "epoch", "seed", "begun")


def _joined(group: Group, name: str) -> list[Any]:
    return [value for response in group.responses for value in getattr(response, name)]
