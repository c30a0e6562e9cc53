"""Groups of responses: started, sampled by all processes together, split into batch and rest.

A step begins with groups in flight, oldest first: those that the step before left unfinished, then
new prompts. It ends when enough of them are complete. The oldest complete groups are trained; the
others are carried over with their tokens, log-probs and versions. Under
`rollout.partial_rollouts=wait` no group is carried over: a step begins as many groups as it trains
and waits for all of them.

A version is the number of updates that a policy has had. A token's lag is the version of the policy
that is trained minus the version that sampled the token.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from polaris_jax.records import Group, Response
from polaris_jax.rollout.balance import assign_shards, deal
from polaris_jax.rollout.request import RolloutAborted
from polaris_jax.rollout.sampler import Sampler
from polaris_jax.rollout.settings import SamplingParams
from polaris_jax.system import processes
from polaris_jax.system.seeds import fold_seed

NOTHING = Response((), (), "unfinished")
# Fields of a group that a checkpoint keeps as JSON.
_PLAIN = ("problem_id", "prompt_text", "gold", "draw", "epoch", "seed", "begun")


def begin(
    drawn: Sequence[Group], *, n: int, version: int, seed_parts: Sequence[Any]
) -> list[Group]:
    """The drawn groups, ready to be sampled.

    Args:
        drawn: groups without responses.
        n: responses of each group.
        version: version of the present policy.
        seed_parts: folded with problem id and draw number into each group's seed.
    """
    return [
        dataclasses.replace(
            group,
            seed=fold_seed(*seed_parts, group.problem_id, group.draw),
            begun=version,
            responses=(NOTHING,) * n,
        )
        for group in drawn
    ]


def most_in_flight(prompts: int, share: float) -> int:
    """The number of groups to start so that `prompts` of them are this share."""
    return math.ceil(round(prompts / share, 6))  # 7 / 0.7 is a little over 10


def settle(groups: Sequence[Group], count: int) -> tuple[dict[int, Group], tuple[Group, ...]]:
    """The `count` oldest complete groups by their index, and all other groups in their order.

    If more than `count` groups are complete, the youngest of them wait for the next step.
    """
    complete = {i: group for i, group in enumerate(groups) if group.complete}
    batch = dict(list(complete.items())[:count])
    return batch, tuple(group for i, group in enumerate(groups) if i not in batch)


def sample_groups(
    sampler: Sampler,
    groups: Sequence[Group],
    params: SamplingParams,
    *,
    tokenizer: Any,
    wanted: int,
    due: Container[int] = (),
    expected_tokens: Sequence[float] | None = None,
    history: Sequence[Sequence[np.ndarray]] | None = None,
    on_ended: Callable[[int, Group, Mapping[int, str]], None] | None = None,
    on_progress: Callable[[int, int, int], None] | None = None,
    should_abort: Callable[[], bool] | None = None,
) -> list[Group]:
    """The groups after sampling; at least `wanted` of them are complete and have their texts.

    What is unfinished is dealt to the samplers by expected tokens (`places_of`): the samples, if
    all groups must be complete at the end, and otherwise the groups. Each sampler stops once its
    part of `wanted` is complete and so are all of its groups that are due. It decides by its own
    groups alone, so that no collective crosses samplers while they decode. Responses are gathered
    once, at the end. The processes of one sampler make the same calls.

    Args:
        sampler: this process's sampler, which other processes may share.
        groups: equal in every process. Unfinished responses continue as if never interrupted.
        params: sampling parameters; each group's own seed is used.
        tokenizer: decodes the texts.
        wanted: number of groups to be complete at the end; groups that are complete already count.
        due: indices of groups that must be complete at the end.
        expected_tokens: expected response tokens of each group, the same in every process; the
            longest begin first. None: equal for all groups.
        history: earlier responses to each group's prompt, from which a sampler drafts.
        on_ended: called with (index, group, {sample: text}) as soon as all samples of a group that
            this sampler has are ended. No text is given to two processes.
        on_progress: called with (responses done, responses in all, tokens).
        should_abort: polled between device calls.

    Raises:
        RolloutAborted: `should_abort` returned True in some process.
    """
    (index, count), members = sampler.share, sampler.members
    groups = list(groups)
    complete_before = [i for i, group in enumerate(groups) if group.complete]
    by_sample = wanted >= len(groups)
    places = places_of(
        groups,
        count,
        expected_tokens=expected_tokens,
        max_tokens=int(np.max(params.max_tokens)),
        by_sample=by_sample,
    )
    mine = places[index]
    quota = quotas([len(own) for own in places], wanted - len(complete_before))[index]
    quota = len(mine) if by_sample else quota
    waits_for = {i for i in mine if i in due}
    texts: dict[int, dict[int, str]] = {i: {} for i in range(len(groups))}

    def note_ended(i: int, samples: Iterable[int], process: int) -> None:
        if on_ended is not None and process == jax.process_index():
            for sample in samples:
                response = groups[i].responses[sample]
                texts[i][sample] = tokenizer.decode(response.token_ids, skip_special_tokens=True)
            on_ended(i, groups[i], texts[i])

    for i in complete_before:
        note_ended(i, range(len(groups[i].responses)), i % jax.process_count())
    aborted, complete = False, set[int]()
    # A resumed run has an empty cache here, so an uninterrupted run must start from one, too.
    sampler.drop_prefixes()
    if quota or waits_for:
        request = sampler.submit(
            [groups[i].prompt for i in mine],
            dataclasses.replace(params, seed=[groups[i].seed for i in mine]),
            expected_tokens=None if expected_tokens is None else [expected_tokens[i] for i in mine],
            begun=[groups[i].responses for i in mine],
            samples=list(mine.values()),
            history=None if history is None else [history[i] for i in mine],
            on_progress=on_progress,
        )
        own_groups = list(mine)
        try:
            with contextlib.closing(sampler.drive(request, should_abort)) as ended:
                for own, sample, response in ended:
                    i = own_groups[own]
                    groups[i] = groups[i].with_response(sample, response)
                    if all(groups[i].responses[s].ended for s in mine[i]):
                        complete.add(i)
                        # A carried group has responses that ended in an earlier step.
                        here = mine[i] if by_sample else range(len(groups[i].responses))
                        note_ended(i, here, members[i % len(members)])
                        if len(complete) >= quota and waits_for <= complete:
                            break
        except RolloutAborted:
            aborted = True
        # Also take unfinished responses, and responses that ended in the same device call.
        for i, responses in zip(mine, request.responses(), strict=True):
            groups[i] = dataclasses.replace(groups[i], responses=tuple(responses))
    if jax.process_count() > 1:
        speaks = jax.process_index() == members[0]  # one process reports for each sampler
        sampled = [_packed(groups[i], own) for i, own in mine.items()] if speaks else []
        shares = processes.gather_objects({"aborted": aborted, "sampled": sampled})
        aborted = any(share["aborted"] for share in shares)
        for k, share in enumerate(shares[:: len(members)]):
            for (i, own), lists in zip(places[k].items(), share["sampled"], strict=True):
                for sample, response in zip(own, _responses(map(_unpacked, lists)), strict=True):
                    groups[i] = groups[i].with_response(sample, response)
    if aborted:
        raise RolloutAborted("the rollout was abandoned on a signal")
    return [
        with_texts(group, tokenizer, known=texts[i]) if group.complete else group
        for i, group in enumerate(groups)
    ]


def with_texts(group: Group, tokenizer: Any, *, known: Mapping[int, str] | None = None) -> Group:
    """A complete group with its responses decoded; unchanged if it has its texts.

    Args:
        group: the group.
        tokenizer: decodes the responses that are not in `known`.
        known: texts of some of the responses, by sample.
    """
    if group.texts:
        return group
    known = known or {}
    texts = tuple(
        known[sample]
        if sample in known
        else tokenizer.decode(response.token_ids, skip_special_tokens=True)
        for sample, response in enumerate(group.responses)
    )
    return dataclasses.replace(group, texts=texts)


def places_of(
    groups: Sequence[Group],
    samplers: int,
    *,
    expected_tokens: Sequence[float] | None,
    max_tokens: int,
    by_sample: bool,
) -> list[dict[int, list[int]]]:
    """The unfinished samples that each sampler samples: [sampler] {group: its samples}.

    A function of its arguments alone, so every process finds the same. The longest expected come
    first.

    Args:
        groups: the groups, complete or not.
        samplers: number of samplers.
        expected_tokens: expected response tokens of each group; None: equal for all groups.
        max_tokens: budget of a response, which stands for what is not expected.
        by_sample: True to deal samples, because those of a group have similar lengths
            (`balance.deal`). False to keep a group on one sampler, which then knows when the group
            is complete.
    """
    left = {
        i: [s for s, response in enumerate(group.responses) if not response.ended]
        for i, group in enumerate(groups)
        if not group.complete
    }
    expected = dict.fromkeys(left, float(max_tokens))
    if expected_tokens is not None:
        expected = {i: expected_tokens[i] for i in left}
    if by_sample:
        order = sorted(left, key=lambda i: -expected[i])
        dealt = deal(
            [
                (
                    len(groups[i].prompt),
                    # At least 1, or what is expected to take nothing would not be spread.
                    [max(1, expected[i] - len(groups[i].responses[s].token_ids)) for s in left[i]],
                )
                for i in order
            ],
            [0] * samplers,
            at_least=-(-samplers // max(1, len(order))),
        )
        owners = dict(zip(order, dealt, strict=True))
    else:
        costs = [1.0] * len(left) if expected_tokens is None else list(expected.values())
        whole = zip(left, owners_of(costs, samplers), strict=True)
        owners = {i: [owner] * len(left[i]) for i, owner in whole}
    places: list[dict[int, list[int]]] = [{} for _ in range(samplers)]
    for i, samples in left.items():
        for sample, owner in zip(samples, owners[i], strict=True):
            places[owner].setdefault(i, []).append(sample)
    return places


def owners_of(costs: Sequence[float], samplers: int) -> list[int]:
    """The sampler of each group: the longest expected first, each to the least loaded so far.

    A function of its arguments alone, so every process finds the same. Groups of equal cost are
    dealt in turn.

    Args:
        costs: expected response tokens of each group.
        samplers: number of samplers.
    """
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    # At least 1, or groups that are expected to take nothing would all go to one sampler.
    dealt = assign_shards([1 + round(costs[i]) for i in order], samplers)
    owners = dict(zip(order, dealt, strict=True))
    return [owners[i] for i in range(len(costs))]


def quotas(dealt: Sequence[int], wanted: int) -> list[int]:
    """The number of groups that each sampler must complete: one, then in proportion to its groups.

    Args:
        dealt: number of groups of each sampler.
        wanted: sum of the quotas, or the number of all groups if that is smaller.

    Source: D'Hondt's highest averages. Differs: a sampler that has groups gets a quota of at least
        one before another gets a second, so that a sampler of few long groups is not idle.
    """
    found = [0] * len(dealt)

    def claim(k: int) -> tuple[bool, float, int, int]:
        return dealt[k] > 0 and not found[k], dealt[k] / (found[k] + 1), -found[k], -k

    for _ in range(min(wanted, sum(dealt))):
        found[max(range(len(dealt)), key=claim)] += 1
    return found


def groups_to_host(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Groups for `Snapshot.host`: tokens and log-probs as one array a group, the rest as JSON."""
    return [
        {
            **{name: getattr(group, name) for name in _PLAIN},
            **({"extra": dict(group.extra)} if group.extra else {}),
            **({} if group.opening is None else {"opening": group.opening}),
            "prompt": np.array(group.prompt, np.int32),
            "token_ids": np.array([i for r in group.responses for i in r.token_ids], np.int32),
            "logprobs": np.array([x for r in group.responses for x in r.logprobs], np.float64),
            "lengths": [len(response.token_ids) for response in group.responses],
            "finish_reasons": [response.finish_reason for response in group.responses],
            "versions": [[list(pair) for pair in r.versions] for r in group.responses],
        }
        for group in groups
    ]


def groups_from_host(
    host: Sequence[Mapping[str, Any]], stop_token_ids: Sequence[int]
) -> tuple[Group, ...]:
    """The groups that `groups_to_host` converted, without their texts.

    A response is cut at its first stop token, because an earlier version of the program may have
    known fewer stop tokens.
    """
    groups = []
    for fields in host:
        cuts = np.cumsum(fields["lengths"])[:-1]
        token_ids = [part.tolist() for part in np.split(fields["token_ids"], cuts)]
        logprobs = [part.tolist() for part in np.split(fields["logprobs"], cuts)]
        columns = token_ids, logprobs, fields["finish_reasons"], fields["versions"]
        responses = tuple(
            _cut_at_stop(response, stop_token_ids)
            for response in _responses(zip(*columns, strict=True))
        )
        plain = {name: fields[name] for name in _PLAIN}
        plain |= {"extra": fields.get("extra", {}), "opening": fields.get("opening")}
        groups.append(Group(prompt=tuple(fields["prompt"].tolist()), responses=responses, **plain))
    return tuple(groups)


def _cut_at_stop(response: Response, stop_token_ids: Sequence[int]) -> Response:
    """The response up to its first stop token; unchanged if it has none before its last token."""
    stops = (i for i, token in enumerate(response.token_ids) if token in stop_token_ids)
    end = next(stops, None)
    if end is None or (response.ended and end == len(response.token_ids) - 1):
        return response
    versions, left = [], end + 1
    for version, count in response.versions:
        if left > 0:
            versions.append((version, min(count, left)))
        left -= count
    return Response(
        response.token_ids[: end + 1],
        response.logprobs[: end + 1],
        "stop",
        versions=tuple(versions),
    )


def _packed(group: Group, samples: Iterable[int]) -> list[Any]:
    """The responses as JSON; their numbers as base64, half of what digits take."""

    def text(numbers: Sequence[float], dtype: str) -> str:
        return base64.b64encode(np.asarray(numbers, dtype).tobytes()).decode()

    return [
        (text(r.token_ids, "<i4"), text(r.logprobs, "<f8"), r.finish_reason, r.versions)
        for r in (group.responses[sample] for sample in samples)
    ]


def _unpacked(packed: Sequence[Any]) -> tuple[Any, ...]:
    """The columns of a response that `_packed` converted."""
    tokens, logprobs, reason, versions = packed

    def numbers(text: str, dtype: str) -> list[Any]:
        return np.frombuffer(base64.b64decode(text), dtype).tolist()

    return numbers(tokens, "<i4"), numbers(logprobs, "<f8"), reason, versions


def _responses(columns: Iterable[tuple[Any, ...]]) -> tuple[Response, ...]:
    return tuple(
        Response(tuple(tokens), tuple(logprobs), reason, versions=tuple(map(tuple, versions)))
        for tokens, logprobs, reason, versions in columns
    )
