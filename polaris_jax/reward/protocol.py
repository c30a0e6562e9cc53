"""What a reward function is: what it sees, what it returns, how a config names it.

A reward function takes a `RewardInput` and returns a float in [0, 1], or a dict with "reward" and
further named numbers. It runs inside the grading workers alone: no other process imports it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polaris_jax.reward.extract import Mode, graded_text, response_answer
from polaris_jax.reward.math.equivalence import answers_match
from polaris_jax.system.user_code import file_digest, one_line

if TYPE_CHECKING:
    from polaris_jax.records import Gold

MATH = "polaris_jax.reward:math_reward"  # what `reward.function` = "" stands for
REWARD = "reward"
# The grader's counts in timing.jsonl. A tracker has one space of names for both files, so that no
# entry of a reward function may have one of these names.
GRADER_STATS = ("graded", "timeouts", "crashes", "memory", "errors", "invalid")
RESERVED = frozenset({*GRADER_STATS, "graded_by_process"})
DIGITS = 6  # of a reward: weighted sums that should be 1 would miss it by a rounding

Functions = tuple[tuple[str, float], ...]  # (import path, weight)


@dataclasses.dataclass(frozen=True)
class RewardInput:
    """One response, as a reward function sees it.

    Attributes:
        text: the response alone, special tokens left out.
        prompt_text: the prompt with the chat template applied.
        answer: the problem's gold answer: a string, a number or a list of alternatives.
        problem_id: the problem's id.
        extra: the other columns of the problem's row, JSON values.
        finish_reason: "stop", or "length" if the budget ended the response.
        num_tokens: tokens of the response, the stop token included; 0 if unknown.
        mode: `reward.mode` ("train" or "eval"); "eval" for a held-out score and `polaris evaluate`.
        opening: the part of `prompt_text` behind the question, which begins the response's turn:
            the template's generation prompt and `data.response_prefill`. None: not known.
    """

    text: str
    prompt_text: str = ""
    answer: Gold | None = None
    problem_id: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finish_reason: str = "stop"
    num_tokens: int = 0
    mode: Mode = "train"
    opening: str | None = None

    @property
    def graded_text(self) -> str:
        """The text that the math grader reads: see `extract.graded_text`."""
        return graded_text(self.text, self.prompt_text, self.opening, self.mode)


RewardFunction = Callable[[RewardInput], "float | Mapping[str, float | None]"]


# ---- the built-in function


def math_reward(response: RewardInput) -> float:
    """1.0 if the response's answer equals the gold answer, else 0.0: the math grader."""
    return score_response(response.graded_text, response.answer, response.mode)


def score_response(text: str, gold: object, mode: Mode = "train") -> float:
    r"""1.0 if the response's answer equals any gold alternative, else 0.0.

    Args:
        text: the response; in train mode with the prompt before it, or with the part of it that
            begins the response's turn if the rest mentions `</think>`.
        gold: a string, a number, None (never matched) or a sequence of alternatives.
        mode: "train" needs `</think>` and grades the last box between the first and the second
            one (or the end); "eval" grades the last box anywhere. An empty box is never an answer.

    Raises:
        ValueError: another mode. TypeError: a text that is none, or gold of another type.

    Source: POLARIS (blog, reward section). Differs: no textual false positives, every size bounded.
    """
    if not isinstance(text, str):
        raise TypeError(f"text={text!r}: a response is a text; pass '' where there is none")
    answer = response_answer(text, mode)
    return float(answer is not None and answers_match(answer, gold))


# ---- names


def parse_functions(spec: str) -> Functions:
    """The (import path, weight) pairs of `reward.function`.

    Args:
        spec: "file.py:name" or "package.module:name"; several with weights, separated by commas:
            "a.py:f*0.8,b.py:g*0.2". "" is the math grader.

    Raises:
        ValueError: a path has no name of a function, a weight is no number above 0, or the weights
            do not sum to 1.
    """

    def refused(rule: str) -> ValueError:
        return ValueError(
            f"reward.function={spec!r}: {rule}; write file.py:name or package.module:name, several "
            "as a.py:f*0.8,b.py:g*0.2"
        )

    functions = []
    for entry in (spec.strip() or MATH).split(","):
        path, _, weight_text = (part.strip() for part in entry.partition("*"))
        place, _, name = path.rpartition(":")
        if not place or not name.isidentifier():
            raise refused(f"{entry.strip()!r} names no function")
        try:
            weight = float(weight_text or 1.0)
        except ValueError:
            raise refused(f"{weight_text!r} is no weight") from None
        if not 0 < weight <= 1:
            raise refused(f"the weight {weight_text} must be above 0, and at most 1")
        functions.append((path, weight))
    total = math.fsum(weight for _, weight in functions)
    if abs(total - 1.0) > 1e-9:
        raise refused(f"the weights sum to {total:g} and must sum to 1")
    return tuple(functions)


def file_digests(functions: Functions) -> dict[str, str]:
    """The `file_digest` of each function's file, by import path; "" for a module."""
    return {path: file_digest(path) for path, _ in functions}


def function_texts(spec: str) -> dict[str, str]:
    """What run.json and progress files record of the texts of `reward.function`: its files."""
    digests = file_digests(parse_functions(spec))
    return {f"text of {path}": digest for path, digest in digests.items() if digest}


# ---- inside a worker


class FailedFunction(Exception):
    """A reward function has raised an exception ("error") or returned no reward ("invalid")."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


def call(function: RewardFunction, response: RewardInput) -> tuple[float, dict[str, float | None]]:
    """The reward that a function gives a response, and the other entries of its dict.

    Raises:
        FailedFunction: the function raised an exception, or returned something else.
        MemoryError: the function met the worker's memory limit.
    """
    try:
        returned = function(response)
    except MemoryError:
        raise
    except BaseException as error:
        raise FailedFunction("error", one_line(error)) from error
    parts: dict[str, float | None] = {}
    value = returned
    if isinstance(returned, Mapping):
        if REWARD not in returned:
            raise FailedFunction(
                "invalid", f"returned a dict without {REWARD!r}: {_shown(returned)}"
            )
        value = returned[REWARD]
        for name, entry in returned.items():
            number = None if entry is None else _number(entry)
            if not isinstance(name, str) or (number is None and entry is not None):
                raise FailedFunction(
                    "invalid", f"returned {name!r}: {_shown(entry)}; an entry is a number or None"
                )
            if name in RESERVED:
                raise FailedFunction(
                    "invalid",
                    f"returned an entry {name!r}, which is a count of the grader's own "
                    f"(reward/{name}); give it another name",
                )
            if name != REWARD:
                parts[name] = number
    reward = _number(value)
    if reward is None or not 0.0 <= reward <= 1.0:
        raise FailedFunction("invalid", f"returned {_shown(value)}; a reward lies in [0, 1]")
    return reward, parts


def combined(rewards: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted sum of several functions' rewards, rounded to 1e-6."""
    return round(math.fsum(w * r for w, r in zip(weights, rewards, strict=True)), DIGITS)


def _number(value: Any) -> float | None:
    """A finite number (numpy's scalars too) as a float; None for anything else."""
    if not isinstance(value, int | float):
        try:
            value = value.item()
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - no such method, or an array of several numbers
            return None
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a user's repr
        text = f"a {type(value).__name__}"
    return " ".join(text.split())[:100]
