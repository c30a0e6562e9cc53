"""Procedural arithmetic word problems of graded difficulty, and supervised texts that solve them.

A problem is a chain: a start value and one or more steps (`+`, `-` or `*` with an operand from 2 to
9), every value between 1 and 20. The sentences come from one of six families. Difficulty is the
number of steps, from 1 to 5 unless a `Mix` says otherwise. A share of all chains, chosen by a hash
of (family, operands), belongs to the held-out side for good: training problems and supervised texts
never come from it.

Supervised texts come in two hands, as found text does:

    careful   Add 5: 7 + 5 = 12 / Take 4: 12 - 4 = 8    a line a step, seldom a slip (off by 1 or 2)
    hurried   7 + 5 = 11, 11 - 4 = 8                    shorter, often one off; the rest follows

A model warm-started on them writes both. Its errors are a habit and not noise at the end of a
distribution, so that sampling colder does not remove them; reinforcement learning can, because the
careful hand is there to be found. It costs more tokens, which is why the response budget matters.

That is one choice, and plain GRPO learns it in ten steps. Wrong facts are many (`habit`): the texts
mostly have 7 + 5 at 14 and 9 - 3 at 5, in either hand, and right in one case of ten. A problem with
no such fact is always solved, one with three hardly ever, and each fact is learned for itself.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

from polaris_jax.config.data import MAX_SLIP_RATE
from polaris_jax.demo.chains import (
    DEFAULT_MIX,
    FAMILIES,
    HELD_OUT_OF,
    Chain,
    Mix,
    draw_chain,
    run_steps,
)
from polaris_jax.records import Problem

HURRIED_SLIPS = (1,)  # always one too many: slips of one text never cancel out
CAREFUL_SLIPS = (-2, -1, 1, 2)
HURRIED_SLIP_RATE = MAX_SLIP_RATE  # share of a hurried text's results that are one off
HABITS = (-3, -2, -1, 1, 2, 3)  # how far off a fact is: no single correction mends them all
CAREFUL_SLIP_SHARE = 1 / 6  # a careful text's slip rate, as a share of the overall rate

_PEOPLE = (("Ann", "She"), ("Eve", "She"), ("Mia", "She"), ("Bob", "He"), ("Tom", "He"))
_THINGS = (" apples", " books", " coins", " pens", " shells", " stamps")
_RIDES = ("bus", "tram", "train", "ferry")
_BOXES = ("jar", "box", "basket", "drawer")
_STEP_WORDS = {"+": "Add ", "-": "Take ", "*": "Times "}
_SLOT = re.compile(r"\{(\w+)\}")


def arithmetic_problems(
    train: int, held_out: int, *, seed: int = 0, mix: Mix = DEFAULT_MIX
) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems that share no text and no (family, operands).

    Both have the same mix: steps drawn as it says, families evenly among those that have such a
    length. Ids are the chains' keys, sources `arithmetic/FAMILY/STEPS`.

    Args:
        train: number of training problems; by default there are some ten million.
        held_out: number of held-out problems; by default there are some three million.
        seed: seed of the draw, not negative; the side on which a chain lies does not depend on it.
        mix: which problems.

    Raises:
        ValueError: more distinct problems are requested than there are chains (raised before any
            problem is drawn), or a count or the seed is below 0.
    """
    _check_seed("data.arithmetic.seed", seed)
    chains = mix.chains()
    held_out_chains = chains // HELD_OUT_OF
    counts = {"train": train, "held_out": held_out}
    for (side, count), told in zip(
        counts.items(), (chains - held_out_chains, held_out_chains), strict=True
    ):
        if count < 0:
            raise ValueError(f"data.arithmetic.{side}={count}: must not be negative; 0 is none")
        if count > told:
            raise _too_many(side, count, told)
    sides = [
        _distinct_problems(count, np.random.default_rng([seed, number]), side=side, mix=mix)
        for number, (side, count) in enumerate(counts.items())
    ]
    return sides[0], sides[1]


def supervised_examples(
    count: int,
    *,
    seed: int,
    slip_rate: float,
    habits: float = 0.0,
    habit_rate: float = 0.9,
    mix: Mix = DEFAULT_MIX,
) -> list[tuple[Problem, str]]:
    """Problems with a written-out solution each, some of which slip: what a warm start learns from.

    Every family takes its turn, and no chain is of the held-out side. The hand is drawn a text:
    hurried texts slip at `HURRIED_SLIP_RATE`, careful ones at a sixth of `slip_rate`, and hurried
    texts are as frequent as it takes for `slip_rate` of all intermediate results to be slipped.
    After a slip the chain continues from the wrong value and ends in a wrong answer.

    Args:
        count: number of examples; problems may repeat, in other words or another hand.
        seed: seed of the draw, not negative.
        slip_rate: share of intermediate results that carry a slip, in [0, 0.6]; 0 gives careful,
            right texts only.
        habits: share of the facts that have a `habit`.
        habit_rate: share of the cases in which a habit is written, in either hand.
        mix: which problems.

    Returns:
        (problem, completion) pairs; the completion has no end-of-turn token.

    Raises:
        ValueError: `slip_rate` outside its range, or the seed below 0.
    """
    _check_seed("warmstart.seed", seed)
    if not 0 <= slip_rate <= HURRIED_SLIP_RATE:
        raise ValueError(
            f"slip_rate={slip_rate}: must lie in [0, {HURRIED_SLIP_RATE}], the rate of a hurried "
            "text; set warmstart.slip_rate within it"
        )
    careful_rate = slip_rate * CAREFUL_SLIP_SHARE
    hurried_share = (slip_rate - careful_rate) / (HURRIED_SLIP_RATE - careful_rate)
    habit_of = functools.partial(habit, seed=seed, share=habits)
    rng, families = np.random.default_rng([seed, 2]), mix.fitting(mix.max_steps)
    examples = []
    for index in range(count):
        family, chain = families[index % len(families)], None
        while chain is None or chain.held_out:
            steps = mix.draw_steps(rng, family.min_steps)
            chain = draw_chain(rng, family, steps)
        hurried = rng.random() < hurried_share
        rate = HURRIED_SLIP_RATE if hurried else careful_rate
        slips = HURRIED_SLIPS if hurried else CAREFUL_SLIPS
        values = _slipped_values(chain, rng, rate, slips, habit_of, habit_rate)
        examples.append((_tell(chain, rng), solution(chain, values, hurried=hurried)))
    return examples


def solution(chain: Chain, values: Sequence[int] | None = None, *, hurried: bool = False) -> str:
    """The written-out text of a chain: `<think>`, its steps, `</think>` and the boxed answer.

    Args:
        chain: what is solved.
        values: the result written at each step; None writes the right ones.
        hurried: write in one line instead of a line a step.
    """
    results = list(run_steps(chain.start, chain.steps) if values is None else values)
    lines = []
    for before, (op, n), after in zip([chain.start, *results], chain.steps, results, strict=False):
        head = "" if hurried else f"{_STEP_WORDS[op]}{n}: "
        lines.append(f"{head}{before} {op} {n} = {after}")
    thought = (", " if hurried else "\n").join(lines)
    return f"<think>{thought}</think>\n\\boxed{{{results[-1]}}}"


def pieces() -> tuple[str, ...]:
    """Every text fragment of problems and solutions, digits aside: the tiny tokenizer's words."""
    found: list[str] = []
    for family in FAMILIES:
        told = [*family.opening.values(), *itertools.chain(*family.changes.values())]
        for template in (*told, family.question):
            found += [part for part in re.split(r"\{\w+\}", template) if part]
    for name, pronoun in _PEOPLE:
        found += [name, f" {name}", f" {pronoun}", f" {pronoun.lower()}"]
    found += [*_THINGS, *_RIDES, *_BOXES]
    found += [*_STEP_WORDS.values(), *(f"\n{word}" for word in _STEP_WORDS.values())]
    found += [f" {op} " for op in (*_STEP_WORDS, "=")]
    found += [": ", ", ", "\n\\boxed{", "\\boxed{", "}"]
    return tuple(dict.fromkeys(found))


def _check_seed(field: str, seed: int) -> None:
    if seed < 0:
        raise ValueError(f"{field}={seed}: must not be negative; set it to 0 or more")


def _too_many(side: str, count: int, told: int) -> ValueError:
    return ValueError(
        f"data.arithmetic.{side}={count}: only about {told} distinct problems can be told; ask for "
        "fewer, or for longer ones (data.arithmetic.max_steps)"
    )


def _distinct_problems(
    count: int,
    rng: np.random.Generator,
    *,
    side: str,
    mix: Mix = DEFAULT_MIX,
    patience: int = 0,
) -> list[Problem]:
    problems: dict[str, Problem] = {}
    for _ in range(patience or 1000 + 200 * count):
        if len(problems) == count:
            return list(problems.values())
        steps = mix.draw_steps(rng)
        if not (fitting := mix.fitting(steps)):
            continue
        chain = draw_chain(rng, fitting[rng.integers(len(fitting))], steps)
        if chain.held_out == (side == "held_out") and chain.key not in problems:
            problems[chain.key] = _tell(chain, rng)
    raise _too_many(side, count, len(problems))


def _tell(chain: Chain, rng: np.random.Generator) -> Problem:
    family = next(f for f in FAMILIES if f.name == chain.family)
    first, second = rng.choice(len(_PEOPLE), 2, replace=False)
    name, pronoun = _PEOPLE[first]
    words = {
        "who": name,
        "other": f" {_PEOPLE[second][0]}",
        "Pro": f" {pronoun}",
        "pro": f" {pronoun.lower()}",
        "thing": _THINGS[rng.integers(len(_THINGS))],
        "ride": _RIDES[rng.integers(len(_RIDES))],
        "box": _BOXES[rng.integers(len(_BOXES))],
        "a": str(chain.start),
        "b": str(chain.steps[0][1]),
    }
    opening_ops = next(ops for ops in family.opening if not ops or ops[0] == chain.steps[0][0])
    sentences = [family.opening[opening_ops]]
    for op, n in chain.steps[len(opening_ops) :]:
        ways = family.changes[op]
        sentences.append(ways[rng.integers(len(ways))].replace("{n}", str(n)))
    text = _SLOT.sub(lambda slot: words[slot[1]], "".join([*sentences, family.question]))
    return Problem(
        id=chain.key,
        problem=text,
        answer=str(chain.answer),
        source=f"arithmetic/{family.name}/{len(chain.steps)}",
    )


def habit(value: int, op: str, n: int, *, seed: int, share: float) -> int:
    """How far off most texts of a warm start have the result of `value op n`; 0: it is right.

    A larger share adds habits and changes none.

    Args:
        value: the value before the step.
        op: the step's operation.
        n: its operand.
        seed: the warm start's seed; each has other habits.
        share: share of all facts that have a habit, in [0, 1].
    """
    digest = hashlib.sha256(f"{seed}:{value}{op}{n}".encode()).digest()
    reached = int.from_bytes(digest[:4]) < share * 2**32
    return HABITS[digest[4] % len(HABITS)] if reached else 0


def _slipped_values(
    chain: Chain,
    rng: np.random.Generator,
    rate: float,
    slips: tuple[int, ...],
    habit_of: Callable[[int, str, int], int],
    habit_rate: float,
) -> list[int]:
    """The results that a text writes when each slips with probability `rate`.

    A slip is taken only if the rest of the chain, done right, stays positive and ends in a wrong
    answer; so two slips never cancel out, and a text with a slip is a wrong text.
    """
    values: list[int] = []
    value = chain.start
    for index, step in enumerate(chain.steps):
        usual = habit_of(value, *step)
        value = run_steps(value, [step])[0]
        own = slips if rng.random() < rate else ()
        if usual and rng.random() < habit_rate:
            own = (usual,)
        if own:
            rest = chain.steps[index + 1 :]
            ends = {value + slip: [value + slip, *run_steps(value + slip, rest)] for slip in own}
            allowed = [v for v, run in ends.items() if min(run) >= 0 and run[-1] != chain.answer]
            if allowed:
                value = allowed[rng.integers(len(allowed))]
        values.append(value)
    return values
