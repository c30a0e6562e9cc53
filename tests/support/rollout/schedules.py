"""Random schedules of a sampler's life, as hypothesis draws them."""

import dataclasses
from collections.abc import Sequence

import hypothesis
from hypothesis import strategies as st

from polaris_jax.rollout.request import Request

LONGEST_PROMPT = 20
LONGEST_RESPONSE = 20
LONGEST = LONGEST_PROMPT + LONGEST_RESPONSE
ACTS = ["abort", "leave", "leave", "pause", "resume", "update", "release"]
# What leaves right after a step meets the call that this has sent on its way.
CUTS = ["step, abort", "step, leave"]


@dataclasses.dataclass(frozen=True)
class Submit:
    """Prompts that come together."""

    prompts: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    n: int
    max_tokens: int
    stops: bool
    expected: tuple[float, ...] | None
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class Act:
    """Something that happens between two steps, or some steps.

    Attributes:
        what: "step", "abort", "leave" (abort, and ask anew for what is unfinished), "pause",
            "resume", "update" or "release"; "step, abort" and "step, leave": one step, paused
            or not, then the other, of an unfinished request.
        number: how many steps; which request.
    """

    what: str
    number: int = 0


def prompts(vocab: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Prompts that often begin alike: some of a common text, then tokens of their own."""

    def prompt(text: int, common: int, own: Sequence[int]) -> tuple[int, ...]:
        begin = [(7 * i + text) % vocab for i in range(common)]
        return tuple([*begin, *own][:LONGEST_PROMPT]) or (text,)

    return st.builds(
        prompt,
        st.integers(0, 1),
        st.sampled_from([0, 0, 3, 8, 16, LONGEST_PROMPT]),
        st.lists(st.integers(0, vocab - 1), max_size=6),
    )


@st.composite
def submits(draw: st.DrawFn, vocab: int, temperatures: Sequence[float]) -> Submit:
    """A request of one to four prompts with one to five samples each."""
    found = draw(st.lists(prompts(vocab), min_size=1, max_size=4))
    count = len(found)
    seeds = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    expected = st.lists(st.floats(0, 30), min_size=count, max_size=count).map(tuple)
    return Submit(
        tuple(found),
        tuple(seeds),
        draw(st.sampled_from([1, 1, 2, 3, 5])),
        draw(st.integers(1, LONGEST_RESPONSE)),
        draw(st.booleans()),
        draw(st.none() | expected),
        draw(st.sampled_from(temperatures)),
    )


def schedules(
    vocab: int, length: int, temperatures: Sequence[float] = (1.0,)
) -> st.SearchStrategy[list[Submit | Act]]:
    """What happens, in order; at least one request comes."""
    acts = st.builds(
        Act,
        st.sampled_from(["step"] * 6 + ACTS + CUTS * 6),
        st.integers(0, 4),
    )
    asked = submits(vocab, temperatures)
    rest = st.lists(asked | acts | acts, min_size=2, max_size=length)
    return st.builds(lambda first, more: [first, *more], asked, rest)


def cases(count: int) -> hypothesis.settings:
    """How many schedules to draw: the same ones in every run of the fast suite."""
    return hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=count < 1000,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def pick(requests: Sequence[Request], number: int) -> int | None:
    """The place of an unfinished request, the newest for number 0; None where all have ended."""
    unfinished = [i for i, request in enumerate(requests) if not request.done]
    return unfinished[-1 - number % len(unfinished)] if unfinished else None
