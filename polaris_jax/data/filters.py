"""Filters a data set: leaves out duplicates and prompts that are too long.

Malformed rows are refused earlier, by the reader (`problems`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from polaris_jax.config.data import PROMPT_SUFFIX
from polaris_jax.config.settings import ConfigError
from polaris_jax.data.prompts import PromptFormat, lacks_question
from polaris_jax.records import Problem
from polaris_jax.system.text import printable

# Formulas, and TeX commands in prose. These keep their case.
_MATH = re.compile(r"(\$\$.*?\$\$|\$.*?\$|\\\(.*?\\\)|\\\[.*?\\\]|\\[A-Za-z]+)")
SHOWN_CHARS = 300  # of a prompt's beginning, and of its end
_SUFFIX_WORDS = " ".join(PROMPT_SUFFIX.split()).casefold()


def normalized_text(text: str) -> str:
    """The normalised text. Texts that differ in what it leaves out are the same problem.

    Unicode-composed, the case of prose folded, each run of whitespace one space, the instruction
    suffix left out. Compatibility characters stay apart (`x²` is not `x2`), and so do formulas and
    TeX commands of another case: Delta is not delta, nor a set $A$ its element $a$.
    """
    composed = " ".join(unicodedata.normalize("NFC", text).split())
    parts = _MATH.split(composed)  # prose and formulas in turn
    folded = "".join(part if i % 2 else part.casefold() for i, part in enumerate(parts))
    return folded.replace(_SUFFIX_WORDS, "").strip()


def normalized_prompt(problem: Problem) -> str:
    """The normalised text of a problem and of the turns before it: equal ones are duplicates."""
    before = [f"{role}\0{normalized_text(text)}\0" for role, text in problem.turns]
    return "".join(before) + normalized_text(problem.problem)


def content_id(problem_text: str) -> str:
    """A stable id for a problem without one: 16 hex digits of its normalised text's hash."""
    return _digest(normalized_text(problem_text))


def renamed_id(problem: Problem) -> str:
    """The id of a problem whose own id is that of another problem, too."""
    return f"{problem.id}-{_digest(normalized_prompt(problem))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """The problems that `deduplicate` left out or changed.

    Attributes:
        same_answer: (kept id, dropped id) of duplicates that agree on the answer.
        other_answer: (kept id, dropped id) of duplicates whose answers differ: the first is kept,
            and one of them is wrong.
        other_rows: positions of each pair of `other_answer` in the given problems, from 0.
        renamed: (old id, new id) of problems that shared an id with a different problem.
    """

    same_answer: tuple[tuple[str, str], ...]
    other_answer: tuple[tuple[str, str], ...]
    other_rows: tuple[tuple[int, int], ...]
    renamed: tuple[tuple[str, str], ...]


def deduplicate(problems: Iterable[Problem]) -> tuple[list[Problem], Duplicates]:
    """The problems without repeats of a normalised prompt, ids made unique; order is kept."""
    kept: dict[str, Problem] = {}
    row_of: dict[str, int] = {}
    ids: set[str] = set()
    same: list[tuple[str, str]] = []
    other: list[tuple[str, str]] = []
    other_rows: list[tuple[int, int]] = []
    renamed: list[tuple[str, str]] = []
    for row, problem in enumerate(problems):
        text = normalized_prompt(problem)
        if text in kept:
            first = kept[text]
            if _answer_text(first) == _answer_text(problem):
                same.append((first.id, problem.id))
            else:
                other.append((first.id, problem.id))
                other_rows.append((row_of[text], row))
            continue
        if problem.id in ids:
            new_id = renamed_id(problem)
            renamed.append((problem.id, new_id))
            problem = dataclasses.replace(problem, id=new_id)
        ids.add(problem.id)
        kept[text], row_of[text] = problem, row
    duplicates = Duplicates(tuple(same), tuple(other), tuple(other_rows), tuple(renamed))
    return list(kept.values()), duplicates


def _answer_text(problem: Problem) -> list[str]:
    answer = problem.answer
    return sorted(map(str, [answer] if isinstance(answer, str | int | float) else answer))


def drop_long_prompts(
    problems: Iterable[Problem],
    tokenizer: Any,
    *,
    prompt_format: PromptFormat,
    max_prompt_tokens: int,
    vocab_size: int,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[Problem], dict[str, int], str]:
    """The problems whose rendered prompt fits, and the token count of each that does not.

    A prompt is never truncated: half a problem has another answer.

    Args:
        problems: what to filter; order is kept.
        tokenizer: counts the tokens, chat template and suffix included.
        prompt_format: how a problem becomes a prompt.
        max_prompt_tokens: the most tokens a prompt may have, inclusive.
        vocab_size: V, the model's: the ids of a prompt that fits must be in [0, V).
        say: gets the first prompt, and one warning if prompts do not hold their question: chat
            templates may drop it.

    Returns:
        (kept, {id of a dropped problem: its tokens}, digest of the kept ones' token ids, which does
        not depend on their order).

    Raises:
        ConfigError: the tokenizer gives an id beyond the model's vocabulary.
    """
    checks = PromptChecks(tokenizer, prompt_format, say=say)
    problems = list(problems)
    kept: list[Problem] = []
    dropped: dict[str, int] = {}
    digests: list[bytes] = []
    for problem, ids in zip(problems, checks.token_ids(problems), strict=True):
        if len(ids) <= max_prompt_tokens:
            if ids and max(ids) >= vocab_size:
                raise ConfigError(
                    f"problem {problem.id!r}: its prompt has token id {max(ids)}, and the model's "
                    f"vocab_size={vocab_size} has none above {vocab_size - 1}; its tokenizer is "
                    "another model's, or tokens were added to it without rows in the embedding"
                )
            kept.append(problem)
            line = json.dumps([problem.id, *ids]).encode()
            digests.append(hashlib.blake2b(line, digest_size=8).digest())
        else:
            dropped[problem.id] = len(ids)
    checks.warn()
    digest = hashlib.blake2b(b"".join(sorted(digests)), digest_size=8).hexdigest()
    return kept, dropped, digest


class PromptChecks:
    """Renders prompts, shows the first, and finds those that do not hold their question.

    Args:
        tokenizer: renders and counts.
        prompt_format: how a problem becomes a prompt.
        say: gets the first prompt, and the warning.
        remember: see `render_prompts`.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt_format: PromptFormat,
        *,
        say: Callable[[str], None],
        remember: bool = True,
    ) -> None:
        self._tokenizer, self._format = tokenizer, prompt_format
        self._say, self._remember = say, remember
        self._shown = False
        self._first_without, self._without = "", 0

    def token_ids(self, problems: Sequence[Problem]) -> list[tuple[int, ...]]:
        """The token ids of each problem's prompt."""
        prompts = self._format.render(self._tokenizer, problems, remember=self._remember)
        for problem, (text, ids) in zip(problems, prompts, strict=True):
            if not self._shown:
                self._shown = True
                shown = _shortened(text)
                self._say(f"prompt of problem {problem.id!r}, {len(ids)} tokens: {shown}")
            if lacks_question(text, problem.problem):
                self._first_without = self._first_without or problem.id
                self._without += 1
        return [ids for _, ids in prompts]

    def warn(self) -> None:
        """Says how many prompts did not hold their question, if there were any."""
        if self._without:
            others = f" and {self._without - 1} others" if self._without > 1 else ""
            self._say(
                f"warning: the prompt of problem {self._first_without!r}{others} does not hold its "
                "question: the tokenizer's chat template drops or changes it; mend the template"
            )


def _shortened(text: str) -> str:
    """Beginning and end of a text, in one printable line."""
    if len(text) > 2 * SHOWN_CHARS:
        text = f"{text[:SHOWN_CHARS]} ... {text[-SHOWN_CHARS:]}"
    return repr(printable(text, lines=True))
