"""Constructed policies: one for each cause, and those that can learn."""

import dataclasses
import random

import numpy as np
import pytest

from polaris_jax.records import Graded
from polaris_jax.reward import RewardInput, math_reward
from polaris_jax.stages.health import judge, turn_tokens

PROMPTS, RESPONSES = 32, 8
BUDGET = 40
VOCABULARY = 300
TURN = "<|im_start|>"


@dataclasses.dataclass
class Policy:
    """What a constructed policy writes, and what it was asked.

    Attributes:
        write: (gold, random numbers) -> (text, True if the budget cut the response).
        gold: number of the problem -> gold answer.
        prompt: question -> prompt.
        nats: mean negative log-prob of a token.
        mode: `reward.mode`.
    """

    write: object
    gold: object = lambda number: str(number + 10)
    prompt: object = lambda question: f"{TURN}user\n{question} Box it.\n{TURN}assistant\n"
    nats: float = 0.4
    mode: str = "train"


def judged(policy, *, is_math=True, chat_tokens=(TURN,)):
    pick = random.Random(0)
    questions = [f"What is {p} + 10?" for p in range(PROMPTS)]
    prompts = [policy.prompt(question) for question in questions]
    golds = [policy.gold(p) for p in range(PROMPTS)]
    written = [[policy.write(gold, pick) for _ in range(RESPONSES)] for gold in golds]
    tokens = [
        [tokens_of(text, pick, BUDGET if cut else None) for text, cut in group] for group in written
    ]
    texts = [[text for text, _ in group] for group in written]
    rewards = [
        [math_reward(RewardInput(text, prompt, gold, mode=policy.mode)) for text in group]
        for prompt, gold, group in zip(prompts, golds, texts, strict=True)
    ]
    graded = Graded(
        problem_ids=[f"p{p}" for p in range(PROMPTS)],
        prompts=[(1, 2)] * PROMPTS,
        golds=golds,
        token_ids=tokens,
        logprobs=[[[-policy.nats] * len(row) for row in group] for group in tokens],
        texts=texts,
        finish_reasons=[["length" if cut else "stop" for _, cut in group] for group in written],
        reward_PR=np.array(rewards, np.float32),
    )
    return judge(
        graded,
        questions=questions,
        prompt_texts=prompts,
        mode=policy.mode,
        is_math=is_math,
        chat_tokens=chat_tokens,
    )


def tokens_of(text, pick, count):
    """A token a word, and random ones up to `count`."""
    ids = [sum(map(ord, word)) % VOCABULARY for word in text.split()] or [0]
    return ids + [pick.randrange(VOCABULARY) for _ in range(max(0, (count or 0) - len(ids)))]


def solution(answer, *, think="<think>I add both.</think> ", box=r"It is \boxed{%s}."):
    return think + (box % answer if "%" in box else box)


def wrong(gold, pick):
    return str(pick.randrange(1000, 2000))


def mostly(share, one, other):
    """A policy that writes `one` in a share of its responses."""
    return lambda gold, pick: (one if pick.random() < share else other)(gold, pick)


def cut(gold, pick):
    return "<think>First I look at the numbers, then I add them with care and", True


CAUSES = {
    "no_box": Policy(lambda g, _: (solution(g, box="The answer is %s."), False)),
    "no_think_end": Policy(lambda g, _: (solution(g, think="I add both. "), False)),
    "budget": Policy(mostly(0.95, cut, lambda g, p: (solution(wrong(g, p)), False))),
    "no_end": Policy(lambda g, p: ("5 " * 40, True)),
    "template": Policy(lambda g, p: ("And what is 4 + 4? What is 3 + 9?", True), prompt=str),
    "question": Policy(
        lambda g, p: (solution(wrong(g, p)), False),
        prompt=lambda question: f"{TURN}user\n{TURN}assistant\n",
    ),
    "type": Policy(lambda g, p: (solution(p.choice(["(A)", r"\text{(B)}", "C"])), False)),
    "golds": Policy(
        lambda g, p: (solution(wrong(g, p)), False),
        gold=lambda p: f"assert add({p}, 10) == {p + 10}",
    ),
    "too_hard": Policy(lambda g, p: (solution(wrong(g, p)), False)),
    "too_easy": Policy(lambda g, _: (solution(g), False)),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_of_a_policy_that_cannot_learn(cause):
    health = judged(CAUSES[cause])
    assert health.cause == cause
    lines = health.lines()
    assert lines[0].startswith("warning: nothing to learn: 0 of 32 groups inform")
    assert 1 <= len(health.samples) <= 3
    assert len(lines) == 1 + 3 * len(health.samples)


VARIANTS = {
    "a-base-model-asked-in-eval-mode": (
        "no_box",
        Policy(lambda g, _: (f"The answer is {g}.", False), mode="eval"),
    ),
    "neither-box-nor-tag": ("no_box", Policy(lambda g, _: (f"The answer is {g}.", False))),
    "a-box-in-the-thoughts-alone": (
        "no_box",
        Policy(lambda g, _: (rf"<think>It is \boxed{{{g}}}.</think> Done.", False)),
    ),
    "every-response-is-cut": ("budget", Policy(cut)),
    "a-prompt-that-mentions-the-tag": (
        "no_think_end",
        Policy(
            lambda g, _: (solution(g, think="I add both. "), False),
            prompt=lambda question: f"Use <think> </think>.\n{TURN}user\n{question}\n{TURN}\n",
        ),
    ),
    "half-are-cut-and-the-others-have-no-box": (
        "no_box",
        Policy(mostly(0.6, cut, lambda g, _: (solution(g, box="It is %s."), False))),
    ),
    "random-weights": (
        "no_end",
        Policy(
            lambda g, p: (" ".join(p.choices("abcdefghijklmn", k=30)), p.random() < 0.9), nats=5.4
        ),
    ),
    "answers-and-continues": (
        "no_end",
        Policy(
            lambda g, p: (rf"</think> \boxed{{{wrong(g, p)}}} " + "and then more " * 9, True)
        ),
    ),
    "words-for-numbers": (
        "type",
        Policy(lambda g, p: (solution(r"\text{cannot be determined}"), False)),
    ),
    "proofs": (
        "golds",
        Policy(
            lambda g, p: (solution(wrong(g, p)), False),
            gold=lambda p: "Suppose that both are odd. Then their sum is even, and since the "
            "square of an odd number is odd, the claim follows by induction.",
        ),
    ),
    "golds-that-are-empty": (
        "golds",
        Policy(lambda g, p: (solution(wrong(g, p)), False), gold=lambda p: " "),
    ),
    "collapsed": (
        "no_spread",
        Policy(lambda g, p: (solution(g if int(g) % 2 else int(g) + 1), False)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_mixtures_and_variants(name):
    cause, policy = VARIANTS[name]
    assert judged(policy).cause == cause


def test_a_healthy_policy_and_one_at_two_per_cent_get_no_warning():
    for share in (0.5, 0.02):
        right = mostly(share, lambda g, _: (solution(g), False), CAUSES["too_hard"].write)
        health = judged(Policy(right))
        assert health.cause is None
        assert health.informative > 0
        assert health.lines() == [
            f"policy: {health.informative} of 32 groups inform, {health.correct_share:.1%} of 256 "
            "responses are correct: there is something to learn"
        ]


def test_faults_that_leave_something_to_learn_are_no_warning():
    """95% are cut by the budget, and the others are right at times."""
    right = mostly(0.5, lambda g, _: (solution(g), False), CAUSES["too_hard"].write)
    assert judged(Policy(mostly(0.95, cut, right))).cause is None


def test_shares_and_samples_are_shown_with_their_reasons():
    lines = judged(CAUSES["budget"]).lines()
    assert "cut by the token budget" in lines[0]
    assert "have no box yet" in lines[0]
    assert "raise max_response_tokens" in lines[0]
    assert lines[1].startswith("  p0: What is 0 + 10?")
    assert lines[2].endswith("then I add them with care and")
    assert "answer: none  gold: 10  reward: 0 (cut by the budget, no box)" in lines[3]


def test_foreign_text_cannot_steer_the_terminal():
    hostile = Policy(lambda g, _: ("\x1b[2J\u202e\r\nstep 7: reward 1.000", False))
    text = "\n".join(judged(hostile).lines())
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not any(line.startswith("step 7") for line in text.splitlines())


def test_a_reward_function_of_the_users_own_is_not_judged_by_boxes():
    health = judged(CAUSES["no_box"], is_math=False)
    assert health.cause == "too_hard"
    assert judged(Policy(cut), is_math=False).cause == "budget"


def test_single_responses_are_judged_by_their_accuracy():
    graded = Graded(
        problem_ids=["a", "b"], prompts=[(1,)] * 2, golds=["1", "2"],
        token_ids=[[(1, 2)]] * 2, logprobs=[[(-1.0, -1.0)]] * 2, texts=[[r"\boxed{1}"]] * 2,
        finish_reasons=[["stop"]] * 2, reward_PR=np.array([[1.0], [0.0]]),
    )  # fmt: skip
    settings = {"questions": ["?"] * 2, "prompt_texts": ["?"] * 2, "mode": "eval"}
    assert judge(graded, **settings).cause is None
    none = dataclasses.replace(graded, reward_PR=np.zeros((2, 1)))
    assert judge(none, **settings).cause == "too_hard"


def test_turn_tokens_are_found_in_the_vocabulary():
    class Tokenizer:
        all_special_tokens = ("<|endoftext|>", "<|im_start|>")

        def get_added_vocab(self):
            return {"<|User|>": 3, "<think>": 4}

    assert turn_tokens(Tokenizer()) == ("<|User|>", "<|im_start|>")
    assert turn_tokens(object()) == ()
