r"""Rules about one row: what cannot be learned from, whatever else the set holds.

Each looks at the question and the gold alone. They are narrow on purpose: a problem that is left
out wrongly is lost, one that stays wrongly is found by `calibrate`, since no response solves it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from polaris_jax.records import Problem
from polaris_jax.reward.golds import gold_kinds
from polaris_jax.reward.math.equivalence import gold_texts
from polaris_jax.reward.math.normalize import MAX_ANSWER_CHARS

PROOF, CHOICE, IMAGE, ANSWER = "proof", "choice", "image", "answer"
ROW_RULES = (PROOF, CHOICE, IMAGE, ANSWER)
# Reasons that a row rule gives, and its rule.
RULE_OF = {
    "proof": PROOF,
    "choice_without_options": CHOICE,
    "needs_image": IMAGE,
    "answer_too_long": ANSWER,
    "answer_unreadable": ANSWER,
}

_ASKS_PROOF = re.compile(
    r"(?i)(?:^|[.!?:;,)\n$]\s{0,9}|\bthen\s|\band\s)(?:\(?[a-z0-9]{1,2}[).]\s{0,3})?"
    r"(?:prove|show|demonstrate|verify|justify)\s(?:that|by|the|if|for|whether|or disprove|there)\b"
)
_ASKS_VALUE = re.compile(
    r"(?i)\?|\b(?:find|compute|calculate|evaluate|determine|what|how many|how much|solve|simplify"
    r"|express|factor|write|state|give|name|list)\b"
)
_PROOF_GOLD = re.compile(
    r"(?i)\W{0,9}(?:text)?\W{0,3}(?:proof|prove[nd]?|q\.?\s?e\.?\s?d\.?"
    r"|see (?:the )?(?:proof|solution)|omitted|as above"
    r"|blacksquare|square|box|n/?a|none|not applicable)\W{0,9}"
)
_CHOICE_GOLD = re.compile(r"\W{0,4}(?:\\(?:text|textbf|mathrm|mathbf|boxed)\W{0,3})?([A-E])\W{0,4}")
_OPTIONS = {
    letter: re.compile(
        rf"(?:^|[\s$(\[{{}}~\\;,.:?])(?:{letter}|(?<=\(){letter.lower()})\s{{0,2}}(?:[).:}}\]]|\\[)\]])"
    )
    for letter in "ABCDE"
}
_IMAGE_MARK = re.compile(r"!\[[^\]\n]{0,300}\]\(|<img\b|\\includegraphics|<image>|\[image\]")
_IMAGE_WORDS = re.compile(
    r"(?i)\b(?:shown|depicted|illustrated|pictured)\s(?:in|by|on)\s(?:the|this)\s(?:\w{1,9}\s){0,2}"
    r"(?:figures?|diagrams?|pictures?|images?|graphs?|drawings?|charts?|tables?|grids?|maps?)\b"
    r"|\b(?:figure|diagram|picture|image|graph|drawing|chart|table|grid|map)s?\s(?:below|above|shows)\b"
    r"|\b(?:figure|diagram|picture|image|graph|drawing|chart|grid|map)\b[^.?!]{0,120}"
    r"\b(?:shown|pictured|depicted|illustrated)\s(?:\w{1,9}\s){0,2}(?:below|above)\b"
    r"|\b(?:following|accompanying|attached|adjoining)\s"
    r"(?:figure|diagram|picture|image|graph|drawing|chart)\b"
    r"|\b(?:figure|diagram|picture|image|graph|drawing|chart)\s(?:on|at|to)\sthe\s(?:right|left)\b"
)
# A quick look before the slow one.
_SPEAKS_OF_IMAGE = re.compile(r"(?:igure|iagram|icture|mage|raph|rawing|hart|able|rid|map)s?\b")
_SPEAKS_OF_PROOF = re.compile(r"rove|how|emonstrate|erify|ustify")
_PLAIN_NUMBER = re.compile(r"\s{0,9}-?\d{1,15}(?:\.\d{1,15})?\s{0,9}")
# A figure or a table in the text itself.
_DRAWN = re.compile(
    r"\[/?asy\]|\\begin\{(?:asy|tikzpicture|array|tabular|picture|pspicture|pmatrix|matrix)"
    r"|\\pspicture|\||<table|<svg"
)
_IMAGE_COLUMNS = ("image", "images", "decoded_image", "image_path", "figure")

_WORD = re.compile(r"[^\W_]")
MOST_WORD_CHARS = 60  # of an answer that the grader cannot read and a response may repeat


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the rules say about a row.

    Attributes:
        reason: one of `RULE_OF` if the row is left out, else "".
        detail: what that was seen by.
        readable: True if the reward in use can read the gold.
    """

    reason: str = ""
    detail: str = ""
    readable: bool = True


RowRule = Callable[[Problem, Mapping[str, Any]], Verdict]


def row_rules(rules: Set[str], *, math_reward: bool) -> RowRule:
    """A function that returns the verdict on a problem and the row that it was read from.

    Args:
        rules: which of `ROW_RULES` apply.
        math_reward: True if answers are compared by the math grader; the rule `answer` asks what it
            can read. A reward of the user's own decides alone what an answer is.
    """

    def rule(problem: Problem, fields: Mapping[str, Any]) -> Verdict:
        readable = not math_reward or _readable(problem.answer)
        if IMAGE in rules and (found := _needs_image(problem, fields)):
            return Verdict("needs_image", found, readable)
        if PROOF in rules and (found := _asks_proof(problem, readable=readable)):
            return Verdict("proof", found, readable)
        if CHOICE in rules and (found := _lacks_options(problem)):
            return Verdict("choice_without_options", found, readable)
        if ANSWER in rules and not readable:
            return Verdict(*_no_answer(gold_texts(problem.answer)), readable)
        return Verdict(readable=readable)

    return rule


def _readable(answer: Any) -> bool:
    plain = isinstance(answer, int | float) or (
        isinstance(answer, str) and _PLAIN_NUMBER.fullmatch(answer)
    )
    return bool(plain) or bool(gold_kinds(answer))


def _asks_proof(problem: Problem, *, readable: bool) -> str:
    golds = gold_texts(problem.answer)
    if golds and all(_PROOF_GOLD.fullmatch(gold) for gold in golds):
        found = _ASKS_PROOF.search(problem.problem)
        return "the answer says so" if found or not readable else ""
    if not _SPEAKS_OF_PROOF.search(problem.problem):
        return ""
    found = _ASKS_PROOF.search(problem.problem)
    if found is None or _ASKS_VALUE.search(problem.problem):
        return ""
    return f"asks {' '.join(found[0].split())!r} and for no value"


def _lacks_options(problem: Problem) -> str:
    """What shows that the gold is the letter of an option which the question does not list."""
    letters = {found[1] for gold in gold_texts(problem.answer) if (found := _letter(gold))}
    if not letters or len(letters) < len(gold_texts(problem.answer)):
        return ""
    text = problem.problem
    listed = [letter for letter, option in _OPTIONS.items() if option.search(text)]
    if len(listed) >= 2:
        return ""
    if all(re.search(rf"(?<![a-z\\]){letter}(?![a-z])", text) for letter in letters):
        return ""  # the question speaks of a thing with this letter
    return f"the answer is option {min(letters)}, and no options are listed"


def _no_answer(golds: Sequence[str]) -> tuple[str, str]:
    """Golds that the grader cannot read may still be met letter by letter, if they are short."""
    longest = max(map(len, golds), default=0)
    if longest > MAX_ANSWER_CHARS:
        return "answer_too_long", f"{longest:,} characters"
    if all(len(gold) > MOST_WORD_CHARS or not _WORD.search(gold) or "\n" in gold for gold in golds):
        return (
            "answer_unreadable",
            "the math grader cannot read it, and no response would repeat it",
        )
    return "", ""


def _letter(gold: str) -> re.Match[str] | None:
    return _CHOICE_GOLD.fullmatch(gold.strip())


def _needs_image(problem: Problem, fields: Mapping[str, Any]) -> str:
    for name in _IMAGE_COLUMNS:
        value = fields.get(name)
        if value is not None and value != [] and value != "":
            return f"the row has a column {name!r}"
    if found := _IMAGE_MARK.search(problem.problem):
        return f"holds {found[0]!r}"
    if not _SPEAKS_OF_IMAGE.search(problem.problem):
        return ""
    found = _IMAGE_WORDS.search(problem.problem)
    if found is not None and not _DRAWN.search(problem.problem):
        return f"says {' '.join(found[0].split())!r}"
    return ""
