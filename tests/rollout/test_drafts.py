"""Drafts come from the longest shared run of tokens, and a search compares a bounded number."""

import random

import pytest

from polaris_jax.rollout import drafts
from polaris_jax.rollout.drafts import (
    LONGEST_MATCH,
    MOST_PLACES,
    PAIR,
    WHOLE_MATCH,
    PromptTexts,
)


def made_of(texts: list[list[int]]) -> PromptTexts:
    made = PromptTexts()
    for text in texts:
        made.extend(made.new_text(), text)
    return made


def by_definition(texts: list[list[int]], tokens: list[int], most: int) -> tuple[list[int], int]:
    """The first of the longest matches, from the newest place backwards."""
    before = [drafts.BEFORE_TEXT] * PAIR
    row, best = [*before, *tokens], (-1, 0, 0)
    for index in reversed(range(len(texts))):
        text = [*before, *texts[index]]
        for at in reversed(range(PAIR, len(text))):
            shared = 0
            while shared < min(at, len(row)) and text[at - 1 - shared] == row[-1 - shared]:
                shared += 1
            shared = min(shared, LONGEST_MATCH)
            if shared >= PAIR and shared > best[1]:
                best = (index, shared, at)
    index, shared, at = best
    shared = WHOLE_MATCH if shared == at else shared
    return ([], 0) if index < 0 else ([*before, *texts[index]][at : at + most], shared)


def test_a_draft_follows_the_longest_match():
    pick = random.Random(0)
    matched = 0
    for _ in range(300):
        # So few tokens that a pair has at most `MOST_PLACES` places.
        texts = [[pick.randrange(3) for _ in range(pick.randrange(9))] for _ in range(3)]
        tokens = [pick.randrange(3) for _ in range(pick.randrange(8))]
        draft = made_of(texts).follow(tokens, 4)
        assert draft[:2] == by_definition(texts, tokens, 4)
        matched += draft.match > PAIR
    assert matched > 50


def test_a_text_that_grows_is_the_text_at_once():
    pick = random.Random(1)
    text = [pick.randrange(4) for _ in range(200)]
    grown = PromptTexts()
    grown.new_text()
    while grown.length(0) < len(text):
        known = grown.length(0)
        grown.extend(0, text[known : known + pick.randrange(1, 9)])
    for end in range(len(text)):
        assert grown.follow(text[:end], 8) == made_of([text]).follow(text[:end], 8)


def test_a_beginning_and_a_repetition_are_drafted():
    texts = made_of([[5, 6, 7, 8], [5, 6, 9]])
    assert texts.follow([], 2).tokens == [5, 6]
    assert texts.follow([5, 6], 8).tokens == [9]  # the newest of equal matches
    # Both agree from the prompt on; what agrees in the middle alone may follow from anything.
    assert texts.follow([], 2).match == texts.follow([5, 6], 8).match == WHOLE_MATCH
    assert texts.follow([9, 5, 6], 8)[:2] == ([9], 2)
    own = made_of([[1, 2, 3, 1, 2]])
    assert own.follow([1, 2, 3, 1, 2], 8).tokens == [3, 1, 2]
    assert own.follow([3, 9], 8)[:2] == ([], 0)


def test_a_long_match_is_cut():
    text = list(range(100, 100 + 3 * LONGEST_MATCH))
    assert made_of([text]).follow(text[: LONGEST_MATCH - 1], 3).match == WHOLE_MATCH
    draft = made_of([text]).follow(text[: 2 * LONGEST_MATCH], 3)
    assert draft[:2] == (text[2 * LONGEST_MATCH : 2 * LONGEST_MATCH + 3], LONGEST_MATCH)


def test_a_hint_finds_what_a_frequent_pair_hides():
    """The text repeats a pair more often than a search looks, and the right place is the first."""
    text = [7, 8, 9, 1, 2, 50, 51, *[3, 1, 2] * (2 * MOST_PLACES), 4]
    texts, row = made_of([text]), [7, 8, 9]
    first = texts.follow(row, 2)
    assert first.tokens == [1, 2]
    row += first.tokens
    assert texts.follow(row, 2).tokens != [50, 51]
    assert texts.follow(row, 2, hint=first.place + 2).tokens == [50, 51]
    assert texts.follow([6, 6], 2, hint=first.place + 2)[:2] == ([], 0)  # it must match
    assert texts.follow(text, 2, hint=first.place + len(text))[:2] == ([], 0)  # beyond the end


@pytest.mark.parametrize("length", [2_000, 8_000])
def test_a_search_looks_at_a_bounded_number_of_places(length):
    class Counted(list):
        reads = 0

        def __getitem__(self, at):
            Counted.reads += 1
            return super().__getitem__(at)

    texts = made_of([[1] * length])
    texts._texts[0] = Counted(texts._texts[0])
    row = [2, *[1] * (LONGEST_MATCH - 2)]  # no place has more than a part of it
    texts.follow(row, 8, hint=LONGEST_MATCH)
    assert Counted.reads <= (MOST_PLACES + 1) * LONGEST_MATCH + 1
