"""The reward of one response: 1 where its answer equals gold, else 0."""

from __future__ import annotations

from polaris_jax.reward.extract import Mode, response_answer
from polaris_jax.reward.math.equivalence import answers_match


def score_response(text: str, gold: object, mode: Mode = "train") -> float:
    r"""1.0 if the response's answer equals any gold alternative, else 0.0.

    Args:
        text: prompt + response in train mode, the response alone in eval mode.
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
