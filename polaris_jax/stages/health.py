r"""Can this policy learn from these problems, and if not, what is most likely wrong.

`judge` looks at graded responses as a person would. Groups with different rewards teach, whatever
their mean, so a batch with such groups is healthy. Otherwise one cause is named, by the first rule
that most of the wrong responses meet: a fault of the prompts or golds comes before one of the
responses, and a response that the budget cuts is not blamed for a box that it had no room for.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from polaris_jax.records import Gold, Graded
from polaris_jax.reward.extract import THINK_END, Mode, graded_text, response_answer
from polaris_jax.reward.golds import answer_kind, gold_kinds
from polaris_jax.system.foreign import printable

Cause = Literal[
    "question", "golds", "template", "budget", "no_end", "no_box", "no_think_end", "type",
    "too_hard", "too_easy", "no_spread",
]  # fmt: skip

MIN_INFORMATIVE = 0.005  # share of informative groups from which a batch teaches
MOST = 0.5  # share of responses that makes a fault the likely cause
ALL_BUT_ALL = 0.9  # share of solved groups that makes a set too easy
FEW = 0.1  # share of ended responses below which the others decide
EVER = 0.02  # share of ended responses from which the policy knows how to end
LOOKED_AT = 256  # wrong responses that are analysed, evenly spread over the batch
SAMPLES = 3  # responses that are shown
QUESTION_CHARS, END_CHARS = 100, 120
# Log-probs nearer to those of uniform noise than this share are no language. A trained policy has
# 0.1 to 2 nats a token, noise over 151,936 tokens 11.9.
NOISE = 0.6
NOISE_TOKENS = 100  # fewest tokens to tell noise by
LOOP = 0.35  # share of distinct 4-grams in a response's second half under which it repeats itself

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_TITLES: dict[Cause, str] = {
    "question": "the prompt does not contain the question",
    "golds": "the reward cannot read the gold answers",
    "template": "the chat template is not applied",
    "budget": "responses are cut by the token budget",
    "no_end": "the end token is never produced",
    "no_box": "responses have no answer in a \\boxed{}",
    "no_think_end": f"responses have no {THINK_END}",
    "type": "answers are of another type than the gold answers",
    "too_hard": "the problems are too hard for this policy",
    "too_easy": "the problems are too easy for this policy",
    "no_spread": "the responses of each group are all right or all wrong",
}
_REMEDIES: dict[Cause, str] = {
    "question": "look at the tokenizer's chat template: its user turn must hold the message",
    "golds": "give golds that are numbers, formulas or short words, or set reward.function",
    "template": "use the tokenizer that belongs to the model, with its chat template",
    "budget": "raise max_response_tokens, or take a policy with shorter responses",
    "no_end": "compare the model's end ids (generation_config.json) with its template, and check "
    "that these are trained weights",
    "no_box": "ask for a box in data.prompt_suffix, or train a warm start that writes one",
    "no_think_end": "set reward.mode=eval for a model without thinking tags",
    "type": "ask for the golds' form in data.prompt_suffix, or change the golds",
    "too_hard": "take easier problems (`polaris calibrate` finds them) or a stronger policy",
    "too_easy": "take harder problems, or `polaris calibrate` with preset=aggressive",
    "no_spread": "raise the temperature (`polaris probe`)",
}


@dataclasses.dataclass(frozen=True)
class View:
    """One response and what can be seen in it."""

    problem_id: str
    question: str
    prompt: str
    text: str
    gold: Gold
    tokens: Sequence[int]
    logprobs: Sequence[float]
    cut: bool
    correct: bool
    reward: float
    box: bool
    think_end: bool
    answer: str | None

    def reason(self) -> str:
        if self.correct:
            return "correct"
        if self.answer is not None:
            return "another answer"
        cut = "cut by the budget, " if self.cut else ""
        if not self.box:
            return f"{cut}no box"
        return f"{cut}no box to read" if self.think_end else f"{cut}no {THINK_END}"

    def loops(self) -> bool:
        """True if the second half repeats itself."""
        half = self.tokens[len(self.tokens) // 2 :]
        grams = [tuple(half[i : i + 4]) for i in range(len(half) - 3)]
        return len(grams) > 2 and len(set(grams)) < LOOP * len(grams)


@dataclasses.dataclass(frozen=True)
class Health:
    """What a batch says of the policy.

    Attributes:
        groups: number of groups.
        informative: number of groups whose rewards differ.
        responses: number of responses.
        correct_share: share of correct responses, in [0, 1].
        cause: the likely cause if there is nothing to learn; None if there is.
        shares: the numbers that the cause rests on, as text.
        samples: up to three responses, if there is nothing to learn.
    """

    groups: int
    informative: int
    responses: int
    correct_share: float
    cause: Cause | None = None
    shares: str = ""
    samples: tuple[View, ...] = ()

    def lines(self) -> list[str]:
        """The judgement for a person: one line if the policy can learn, else a warning of a few.

        Texts of models and data sets are escaped.
        """
        count = f"{self.informative} of {self.groups} groups inform, "
        count = "" if self.groups == self.responses else count  # no groups
        count += f"{self.correct_share:.1%} of {self.responses} responses are correct"
        if self.cause is None:
            return [f"policy: {count}: there is something to learn"]
        title, remedy = _TITLES[self.cause], _REMEDIES[self.cause]
        lines = [
            f"warning: nothing to learn: {count}. Likely cause: {title} ({self.shares}); {remedy}"
        ]
        for one in self.samples:
            answer = "none" if one.answer is None else _shown(one.answer)
            lines += [
                f"  {_shown(one.problem_id)}: {_shown(one.question)}",
                f"    ends: {_end(one.text)}",
                f"    answer: {answer}  gold: {_shown(str(one.gold))}  reward: {one.reward:g} "
                f"({one.reason()})",
            ]
        return lines


def judge(
    graded: Graded,
    *,
    questions: Sequence[str],
    prompt_texts: Sequence[str],
    mode: Mode,
    is_math: bool = True,
    chat_tokens: Sequence[str] = (),
) -> Health:
    """What a batch of graded responses says: is there anything to learn, and if not, why.

    Args:
        graded: responses as sampled, before rescue and substitution.
        questions: [P] `Problem.problem`.
        prompt_texts: [P] prompts with the chat template.
        mode: the mode in which the responses were graded.
        is_math: False if a reward function of the user's graded: boxes, golds and types of answers
            are its own affair then.
        chat_tokens: special tokens of the vocabulary that mark turns of a chat; see `turn_tokens`.
    """
    prompts, width = graded.reward_PR.shape
    informative = int(graded.informative_P.sum())
    health = Health(
        groups=prompts,
        informative=informative,
        responses=prompts * width,
        correct_share=float(graded.correct_PR.mean()),
    )
    # Single responses form no groups: different rewards between problems are enough.
    spread = len(np.unique(graded.reward_PR)) > 1 if width == 1 else informative > 0
    if spread and (width == 1 or informative >= MIN_INFORMATIVE * prompts):
        return health
    views = _views(graded, questions, prompt_texts, mode, is_math)
    solved = float(graded.correct_PR.all(axis=1).mean())
    if solved >= ALL_BUT_ALL:
        cause, shares = "too_easy", f"{solved:.0%} of the groups are solved in every response"
    else:
        wrong = [view for view in views if not view.correct]
        cause, shares = _cause(wrong, views, chat_tokens, mode, is_math)
        if cause == "too_hard" and solved >= FEW:
            cause, shares = "no_spread", f"{solved:.0%} of the groups are solved in every response"
    shown = [view for view in views if view.correct == (cause == "too_easy")] or views
    picked = np.unique(np.linspace(0, len(shown) - 1, SAMPLES).round().astype(int))
    samples = tuple(shown[i] for i in picked)
    return dataclasses.replace(health, cause=cause, shares=shares, samples=samples)


def turn_tokens(tokenizer: object) -> tuple[str, ...]:
    """Special tokens of a tokenizer's vocabulary that mark turns of a chat, such as <|im_start|>.

    Without a chat template they show that the model expects one.
    """
    added = getattr(tokenizer, "get_added_vocab", dict)()
    names = {*map(str, getattr(tokenizer, "all_special_tokens", ())), *added}
    marks = re.compile(
        r"im_start|start_header|start_of_turn|user|assistant|\[INST\]", re.IGNORECASE
    )
    return tuple(sorted(name for name in names if marks.search(name)))


def _views(
    graded: Graded,
    questions: Sequence[str],
    prompt_texts: Sequence[str],
    mode: Mode,
    is_math: bool,
) -> list[View]:
    """Up to LOOKED_AT responses, evenly spread over the batch, wrong ones first."""
    correct_B = graded.correct_PR.reshape(-1)
    chosen: list[int] = []
    for index_N in (np.flatnonzero(~correct_B), np.flatnonzero(correct_B)):
        room = min(LOOKED_AT - len(chosen), len(index_N))
        places = np.linspace(0, len(index_N) - 1, room).round().astype(int) if room > 0 else []
        chosen += [int(index_N[place]) for place in places]
    views = []
    for index in chosen:
        p, r = divmod(index, graded.reward_PR.shape[1])
        text, prompt = graded.texts[p][r], prompt_texts[p]
        read = graded_text(text, prompt, None, mode)
        views.append(
            View(
                problem_id=str(graded.problem_ids[p]),
                question=questions[p],
                prompt=prompt,
                text=text,
                gold=graded.golds[p],
                tokens=graded.token_ids[p][r],
                logprobs=graded.logprobs[p][r],
                cut=graded.finish_reasons[p][r] == "length",
                correct=bool(correct_B[index]),
                reward=float(graded.reward_PR[p, r]),
                box=not is_math or _BOX.search(text) is not None,
                think_end=not is_math or mode != "train" or THINK_END in read,
                answer=response_answer(read, mode) if is_math else None,
            )
        )
    return views


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def _cause(
    wrong: Sequence[View],
    views: Sequence[View],
    chat_tokens: Sequence[str],
    mode: Mode,
    is_math: bool,
) -> tuple[Cause, str]:
    """The likely cause of wrong responses, and the shares that it rests on.

    Args:
        wrong: responses that are not correct; at least one.
        views: all responses looked at.
        chat_tokens: see `judge`.
        mode: see `judge`.
        is_math: see `judge`.
    """
    count = len(wrong)
    without = _share([not _contains(view.prompt, view.question) for view in wrong])
    if without >= MOST:
        return "question", f"{without:.0%} of the prompts lack it"
    unreadable = _share([not gold_kinds(view.gold) for view in wrong]) if is_math else 0.0
    if unreadable >= MOST:
        return "golds", f"{unreadable:.0%} are programs, proofs or empty"
    cut, silent = _share([v.cut for v in wrong]), _share([v.answer is None for v in wrong])
    plain = _share([_starts_with(view.prompt, view.question) for view in wrong])
    if chat_tokens and plain >= MOST and silent >= MOST:
        marks = ", ".join(map(printable, chat_tokens[:2]))
        return "template", f"{plain:.0%} of the prompts are the bare question, without {marks}"
    judged = list(wrong)
    if cut >= MOST:
        shares = f"{cut:.0%} of {count} wrong responses reach it"
        ended = [view for view in wrong if not view.cut]
        if runaway := _runaway(wrong, views, mode):
            return "no_end", f"{shares.replace('it', 'the budget')}; {runaway}"
        answered = _share([view.answer is not None for view in ended])
        if len(ended) < FEW * count or answered >= MOST or not is_math:
            boxless = _share([not view.box for view in wrong])
            return "budget", shares + (f"; {boxless:.0%} have no box yet" if is_math else "")
        judged = ended  # others end in good time, and without an answer either
    if not is_math:
        rewards = sorted({view.reward for view in wrong})
        return "too_hard", f"every response of a group has the same reward, such as {rewards[0]:g}"
    return _answers(judged)


def _answers(judged: Sequence[View]) -> tuple[Cause, str]:
    """The cause that the extracted answers show."""
    count = len(judged)
    silent = [view for view in judged if view.answer is None]
    if len(silent) >= MOST * count:
        no_box = _share([not view.box for view in judged])
        no_think_end = _share([not view.think_end for view in judged])
        shares = f"of {count} wrong responses {no_box:.0%} have no box"
        if no_box < MOST:  # a box in the thoughts, an empty one, or one that never closes
            shares = f"of {count} wrong responses {len(silent) / count:.0%} have none to read"
        shares += f" and {no_think_end:.0%} no {THINK_END}" if no_think_end else ""
        shares += f"; {noise}" if (noise := _noise(judged)) else ""
        boxed = [view for view in silent if view.box and not view.think_end]
        return "no_think_end" if len(boxed) > len(silent) / 2 else "no_box", shares
    pairs = [(answer_kind(v.answer), gold_kinds(v.gold)) for v in judged if v.answer is not None]
    other = [(found, wanted) for found, wanted in pairs if wanted and found not in wanted]
    if len(other) >= MOST * count:
        (found, wanted), _ = Counter((f, tuple(sorted(w))) for f, w in other).most_common(1)[0]
        return "type", (
            f"{len(other) / count:.0%} of {count} wrong answers, most often {_named(found)} for "
            f"{' or '.join(map(_named, wanted))}"
        )
    return "too_hard", f"{len(pairs)} of {count} wrong responses have an answer, which is another"


def _runaway(wrong: Sequence[View], views: Sequence[View], mode: Mode) -> str:
    """How responses that are cut show that the policy does not know how to end; else ""."""
    noise = _noise(wrong)
    properly_ended = [not v.cut and (v.answer is not None or not noise) for v in views]
    if _share(properly_ended) >= EVER:
        return ""
    cut = [view for view in wrong if view.cut]
    if noise:
        return noise
    if (loops := _share([view.loops() for view in cut])) >= MOST:
        return f"{loops:.0%} repeat themselves to the end"
    answered = _share([_has_room_after_answer(view, mode) for view in cut])
    if answered >= MOST:
        return f"{answered:.0%} have given an answer and continue"
    return ""


def _has_room_after_answer(view: View, mode: Mode) -> bool:
    """True if a cut response had its answer well before its end."""
    if view.answer is None:
        return False
    boxes = [match.start() for match in _BOX.finditer(view.text)]
    behind = len(view.text) - boxes[0] - len(view.answer) - len("\\boxed{}") if boxes else 0
    return len(boxes) > 1 or behind > 0.1 * len(view.text)


def _noise(views: Sequence[View]) -> str:
    """Says that the tokens are nearly uniform noise, as those of random weights are; else ""."""
    logprobs = [value for view in views for value in view.logprobs]
    tokens = [token for view in views for token in view.tokens]
    if len(logprobs) < NOISE_TOKENS or len(tokens) != len(logprobs):
        return ""
    nats, uniform = -float(np.mean(logprobs)), math.log(1 + max(tokens))
    if nats < NOISE * uniform:
        return ""
    return f"the tokens are noise ({nats:.1f} of {uniform:.1f} nats each), as of random weights"


def _contains(prompt: str, question: str) -> bool:
    return _letters(question) in _letters(prompt)


def _starts_with(prompt: str, question: str) -> bool:
    return _letters(prompt).startswith(_letters(question))


def _letters(text: str) -> str:
    """Letters and digits alone: templates and tokenizers change spaces and signs."""
    return "".join(filter(str.isalnum, text)).casefold()


def _named(kind: str | None) -> str:
    names = {"number": "a number", "formula": "a formula", "choice": "a letter of a choice",
             "words": "words"}  # fmt: skip
    return names.get(kind or "", "an unreadable text")


def _shown(text: str) -> str:
    """The beginning of a foreign text in one line."""
    text = printable(text[: QUESTION_CHARS + 1])
    return text if len(text) <= QUESTION_CHARS else f"{text[:QUESTION_CHARS]}..."


def _end(text: str) -> str:
    """The end of a foreign text in one line."""
    return ("..." if len(text) > END_CHARS else "") + printable(text[-END_CHARS:])
