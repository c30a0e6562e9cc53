"""Random schedules of a sampler's life, as hypothesis draws them."""

import dataclasses
from collections.abc import Sequence

from hypothesis import strategies as st

LONGEST_PROMPT = 20
LONGEST_RESPONSE = 20
ACTS = ["abort", "leave", "leave", "pause", "resume", "update", "release"]


@dataclasses.dataclass(frozen=True)
class Submit:
    """Prompts that come together."""

    prompts: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    n: int
    max_tokens: int
    stops: bool
    expected: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True)
class Act:
    """Something that happens between two steps, or some steps.

    Attributes:
        what: "step", "abort", "leave" (abort, and ask anew for what is unfinished), "pause",
            "resume", "update" or "release".
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
def submits(draw: st.DrawFn, vocab: int) -> Submit:
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
    )


def schedules(vocab: int, length: int) -> st.SearchStrategy[list[Submit | Act]]:
    """What happens, in order; at least one request comes."""
    acts = st.builds(
        Act,
        st.sampled_from(
            ["step"] * 6 + ["abort", "leave", "leave", "pause", "resume", "update", "release"]
        ),
        st.integers(0, 4),
    )
    rest = st.lists(submits(vocab) | acts, max_size=length)
    return st.builds(lambda first, more: [first, *more], submits(vocab), rest)
