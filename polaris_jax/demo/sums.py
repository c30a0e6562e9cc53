"""Sums that a small real model can almost do: problem sources for `data.problems`.

    --config.data.problems=polaris_jax.demo.sums:three_numbers
    --config.evaluate.problems=polaris_jax.demo.sums:three_numbers_held_out

A quarter of the sums, chosen by a hash, is held out for good; scores use the first 64 of them. The
order is that of the hashes, which no seed changes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

HELD_OUT_OF = 4
MOST = {False: 1024, True: 64}  # sums of the training side, and of the held-out side

Row = dict[str, str]


def three_numbers() -> Iterator[Row]:
    """a + b + c of one digit each: problems to train on."""
    return _sums(_one_digit(), held_out=False)


def three_numbers_held_out() -> Iterator[Row]:
    """a + b + c of one digit each: problems for scores."""
    return _sums(_one_digit(), held_out=True)


def two_digits() -> Iterator[Row]:
    """a + b of two digits each: problems to train on."""
    return _sums(itertools.product(range(11, 100), repeat=2), held_out=False)


def two_digits_held_out() -> Iterator[Row]:
    """a + b of two digits each: problems for scores."""
    return _sums(itertools.product(range(11, 100), repeat=2), held_out=True)


def _one_digit() -> Iterator[tuple[int, ...]]:
    return itertools.product(range(1, 10), repeat=3)


def _sums(numbers: Iterator[tuple[int, ...]], *, held_out: bool) -> Iterator[Row]:
    """The sums of one side, in the order of their hashes."""
    found = []
    for terms in numbers:
        text = " + ".join(map(str, terms))
        digest = hashlib.sha256(text.encode()).digest()
        if (digest[0] % HELD_OUT_OF == 0) == held_out:
            found.append((digest, text, str(sum(terms))))
    for _, text, answer in sorted(found)[: MOST[held_out]]:
        yield {"id": text.replace(" ", ""), "problem": f"What is {text}?", "answer": answer}
