"""One step of sampling for groups of responses, by all processes together."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Container, Sequence
from typing import Any

import jax

from polaris_jax.records import Response
from polaris_jax.reward.grade_ahead import GradeAhead
from polaris_jax.rollout import RolloutAborted, Sampler, SamplingParams
from polaris_jax.rollout.groups import Group
from polaris_jax.rollout.run import deal
from polaris_jax.system import processes


def sample_groups(
    sampler: Sampler,
    groups: Sequence[Group],
    params: SamplingParams,
    *,
    tokenizer: Any,
    wanted: int,
    due: Container[int] = (),
    expected_tokens: Sequence[float] | None = None,
    ahead: GradeAhead | None = None,
    on_progress: Callable[[int, int, int], None] | None = None,
    should_abort: Callable[[], bool] | None = None,
) -> tuple[list[Group], dict[int, tuple[str, ...]]]:
    """The groups, sampled on by all processes together, and the texts of those that are whole.

    The unfinished groups are dealt to the samplers by expected tokens; each stops once its part of
    `wanted` is whole and so is all of its own that is due: by what it sees alone, so that no
    collective crosses samplers while they decode. Responses are gathered once at the end. The
    processes of one sampler ask the same of it.

    Args:
        sampler: of this process, or of a few.
        groups: the same in every process; their responses go on as they would have.
        params: how to sample; the seeds are the groups' own.
        tokenizer: decodes the texts.
        wanted: groups to be whole at the end, at least; those that are whole already count.
        due: places of groups that must be whole, whatever the others do.
        expected_tokens: of a response of each group, the same in every process; the longest begin
            first. None: all alike.
        ahead: gets the groups that this process is to grade, by their place, as they become whole.
        on_progress: (responses done, responses in all, tokens).
        should_abort: polled between device calls.

    Raises:
        RolloutAborted: `should_abort` said so in some process.
    """
    (index, count), members = sampler.share, sampler.members
    groups, texts = list(groups), {}
    unfinished = [i for i, group in enumerate(groups) if not group.whole]
    costs = [1.0 if expected_tokens is None else expected_tokens[i] for i in unfinished]
    owners = owners_of(costs, count)
    places = [[i for i, k in zip(unfinished, owners, strict=True) if k == s] for s in range(count)]
    mine = places[index]
    quota = quotas([len(own) for own in places], wanted - (len(groups) - len(unfinished)))[index]
    waits_for = {i for i in mine if i in due}

    def note(i: int) -> None:
        texts[i] = _texts(groups[i].responses, tokenizer)
        if ahead is not None and graded_here(i):
            ahead.add(i, gradable(groups[i].prompt_text, texts[i], ahead.mode), groups[i].gold)

    for i, group in enumerate(groups):
        if group.whole:
            note(i)
    aborted, whole = False, set[int]()
    # A resumed run begins here with an empty cache, and must compute what this one does.
    sampler.drop_prefixes()
    if quota or waits_for:
        request = sampler.submit(
            [groups[i].prompt for i in mine],
            dataclasses.replace(params, seed=[groups[i].seed for i in mine]),
            expected_tokens=None if expected_tokens is None else [expected_tokens[i] for i in mine],
            begun=[groups[i].responses for i in mine],
            on_progress=on_progress,
        )
        try:
            with contextlib.closing(sampler.drive(request, should_abort)) as ended:
                for own, sample, response in ended:
                    i = mine[own]
                    groups[i] = groups[i].with_response(sample, response)
                    if groups[i].whole:
                        whole.add(i)
                        note(i)
                        if len(whole) >= quota and waits_for <= whole:
                            break
        except RolloutAborted:
            aborted = True
        # The rest too: what is unfinished, and what ended in the same device call.
        for i, responses in zip(mine, request.responses(), strict=True):
            groups[i] = dataclasses.replace(groups[i], responses=tuple(responses))
    if jax.process_count() > 1:
        speaks = jax.process_index() == members[0]  # one does for a sampler
        shares = processes.gather_objects(
            {"aborted": aborted, "groups": [_told(groups[i]) for i in mine] if speaks else []}
        )
        aborted = any(share["aborted"] for share in shares)
        for k, share in enumerate(shares[:: len(members)]):
            for i, told in zip(places[k], share["groups"], strict=True):
                groups[i] = dataclasses.replace(groups[i], responses=_heard(told))
    if aborted:
        raise RolloutAborted("the rollout was abandoned on a signal")
    for i, group in enumerate(groups):
        if group.whole and i not in texts:
            texts[i] = _texts(group.responses, tokenizer)
    return groups, texts


def owners_of(costs: Sequence[float], samplers: int) -> list[int]:
    """The sampler of each group: the longest expected first, each to the least loaded so far.

    A function of its arguments alone, so every process finds the same. Costs that are all alike
    are dealt in turn.

    Args:
        costs: tokens that a response of each group is expected to take.
        samplers: how many there are.
    """
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    # At least 1, or groups that are expected to take nothing would all go to one sampler.
    dealt = deal([1 + round(costs[i]) for i in order], samplers)
    owners = dict(zip(order, dealt, strict=True))
    return [owners[i] for i in range(len(costs))]


def quotas(dealt: Sequence[int], wanted: int) -> list[int]:
    """How many groups each sampler is to make whole: one, then in proportion to what it was dealt.

    Groups that were dealt in turn are wanted in turn.

    Args:
        dealt: groups of each sampler.
        wanted: of all of them; the sum is that, or all there are where these are fewer.

    Source: D'Hondt's highest averages. Differs: nobody who has groups is left out while others have
    one, so that a sampler of few long groups does not stand still.
    """
    found = [0] * len(dealt)

    def claim(k: int) -> tuple[bool, float, int, int]:
        return dealt[k] > 0 and not found[k], dealt[k] / (found[k] + 1), -found[k], -k

    for _ in range(min(wanted, sum(dealt))):
        found[max(range(len(dealt)), key=claim)] += 1
    return found


def graded_here(number: int) -> bool:
    """This process grades the group that is the so manieth of those that were sampled."""
    return number % jax.process_count() == jax.process_index()


def gradable(prompt_text: str, texts: Sequence[str], mode: str) -> list[str]:
    """What the grader reads of a group: in "train" mode the prompt with each response."""
    prefix = prompt_text if mode == "train" else ""
    return [prefix + text for text in texts]


def _texts(responses: Sequence[Response], tokenizer: Any) -> tuple[str, ...]:
    return tuple(tokenizer.decode(r.token_ids, skip_special_tokens=True) for r in responses)


def _told(group: Group) -> list[Any]:
    return [(r.token_ids, r.logprobs, r.finish_reason, r.versions) for r in group.responses]


def _heard(told: list[Any]) -> tuple[Response, ...]:
    return tuple(
        Response(tuple(tokens), tuple(logprobs), reason, versions=tuple(map(tuple, versions)))
        for tokens, logprobs, reason, versions in told
    )
