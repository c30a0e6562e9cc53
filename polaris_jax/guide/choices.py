"""The settings that suit a model, a data set and a machine, each chosen by a stated rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from polaris_jax.config import ConfigError
from polaris_jax.guide.model_facts import ModelFacts
from polaris_jax.guide.problem_facts import UNREADABLE, ProblemFacts

Mode = Literal["train", "eval"]

# Longest responses that are tried, the recipe's first. A CPU begins where it can end.
BUDGETS = (39_936, 30_720, 24_576, 16_384, 12_288, 8_192, 4_096, 2_048, 1_024, 512, 256, 128, 64)
CPU_BUDGETS = tuple(budget for budget in BUDGETS if budget <= 512)
LEAST_BUDGET = 32  # tokens: shorter responses hold no worked answer
PROMPT_STEP = 32  # data.max_prompt_tokens is a multiple of it
# Problems that are kept for scores: a tenth, within limits, and none of very few.
MOST_HELD_OUT, HELD_OUT_SHARE, LEAST_HELD_OUT, FEW_PROBLEMS = 100, 0.1, 8, 32
FINISHED = 8  # sampled responses that must have ended before their form decides
EPOCHS = 3
LEAST_STEPS, MOST_STEPS, MOST_CPU_STEPS = 20, 300, 50
# Learning rate by parameters, up to each size; the recipe's is for the last.
RATES = ((5e7, 1e-4), (5e8, 1e-5), (float("inf"), 1e-6))


@dataclasses.dataclass(frozen=True)
class Memory:
    """A layout that fits.

    Attributes:
        context: mesh.context.
        tensor: rollout.tensor.
        slots: rollout.slots.
        why: the estimate, for a comment.
    """

    context: int
    tensor: int
    slots: int
    why: str


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What the model's own responses showed.

    Attributes:
        responses: number of responses.
        correct: number of correct ones.
        ended: number that ended by themselves.
        with_tags: number of these that have `</think>`.
        longest: tokens of the longest one that ended by itself; 0: none did.
        budget: tokens that they were allowed.
        lines: what they say of the policy, for a person.
    """

    responses: int
    correct: int
    ended: int
    with_tags: int
    longest: int
    budget: int
    lines: tuple[str, ...]

    def summary(self) -> str:
        """The counts in one line."""
        longest = f", the longest after {self.longest} tokens" if self.ended else ""
        return (
            f"{self.responses} of at most {self.budget} tokens: {self.correct} are correct; "
            f"{self.ended} ended by themselves{longest}; {self.with_tags} of these have a </think>"
        )


@dataclasses.dataclass(frozen=True)
class Choices:
    """What the written config sets, beside paths.

    Attributes:
        cpu: True for a CPU, False for accelerators.
        max_prompt_tokens: data.max_prompt_tokens.
        budgets: max_response_tokens of each stage.
        mode, mode_why: reward.mode, and why.
        memory: the layout.
        prompts_per_step, steps: prompts of a step, steps of a stage.
        learning_rate: optimizer.learning_rate.
        probes: True if the first temperature is `polaris probe`'s, which needs some correct
            responses.
    """

    cpu: bool
    max_prompt_tokens: int
    budgets: tuple[int, ...]
    mode: Mode
    mode_why: str
    memory: Memory
    prompts_per_step: int
    steps: int
    learning_rate: float
    probes: bool = True


def misfits(model: ModelFacts, data: ProblemFacts, *, own_reward: bool) -> list[str]:
    """Why no run on this model and data could learn, each with what would help; [] if one can.

    Args:
        model: the model.
        data: the data set.
        own_reward: True if a reward function of the user's grades.
    """
    found = []
    if data.without_question >= 0.5:
        found.append(
            f"the prompt does not contain the question: the chat template of {model.path} leaves "
            f"it out of {data.without_question:.0%} of the prompts; mend its chat_template.jinja, "
            "or set data.chat_template in a config of your own"
        )
    if not own_reward and data.kinds.get(UNREADABLE, 0.0) >= 0.5:
        found.append(
            f"the reward cannot read the gold answers: {data.kinds[UNREADABLE]:.0%} of "
            f"{data.source} are programs, unit tests, proofs or empty; give a reward function "
            "with --reward=my_reward.py:score (docs/howto/reward.md), or other answers"
        )
    room = model.context_tokens - prompt_limit(data, model.context_tokens)
    if room < LEAST_BUDGET:
        found.append(
            f"{model.context_tokens:,} positions leave {max(0, room)} tokens for a response beside "
            f"prompts of {data.length_at(0.5):,}; take a model with a longer context, or shorter "
            "problems"
        )
    return found


def prompt_limit(data: ProblemFacts, context_tokens: int) -> int:
    """data.max_prompt_tokens: the longest prompt, unless that would take half of the context."""
    longest = _rounded(data.lengths[-1])
    half = max(_rounded(data.length_at(0.5)), context_tokens // 2 // PROMPT_STEP * PROMPT_STEP)
    return min(longest, half)


def _rounded(tokens: int) -> int:
    return -(-tokens // PROMPT_STEP) * PROMPT_STEP


def choose(
    model: ModelFacts,
    data: ProblemFacts,
    *,
    train_problems: int,
    cpu: bool,
    memory_for: Callable[[int], Memory | None],
) -> Choices | None:
    """The settings, or None if not even the shortest responses fit the memory.

    Args:
        model: the model.
        data: the data set.
        train_problems: problems to train on, without those held out.
        cpu: True for a CPU.
        memory_for: the layout for sequences of this length in tokens, or None if none fits.
    """
    prompt = prompt_limit(data, model.context_tokens)
    room = model.context_tokens - prompt
    tried = [min(budget, room) for budget in (CPU_BUDGETS if cpu else BUDGETS)]
    budget, memory = 0, None
    for budget in dict.fromkeys(tried):
        if memory := memory_for(prompt + budget):
            break
    if memory is None:
        return None
    prompts = min(8 if cpu else 128, train_problems)
    most = MOST_CPU_STEPS if cpu else MOST_STEPS
    steps = max(LEAST_STEPS, min(most, -(-EPOCHS * train_problems // prompts)))
    shorter = budget * 3 // 4
    return Choices(
        cpu=cpu,
        max_prompt_tokens=prompt,
        budgets=(budget,) if cpu or shorter < LEAST_BUDGET else (shorter, budget),
        mode="train" if model.tags else "eval",
        mode_why="the model has </think>" if model.tags else "the model has no </think>",
        memory=memory,
        prompts_per_step=prompts,
        steps=steps,
        learning_rate=next(r for size, r in RATES if model.config.num_parameters <= size),
    )


def after_sampling(choices: Choices, sampled: Sampled) -> Choices:
    """The choices in the light of the model's own responses.

    A model that knows the tags and does not write them is graded without. On a CPU a budget that no
    response comes near is lowered, since it costs memory and padding. Without a correct response no
    temperature is better than another, so none is probed.
    """
    choices = dataclasses.replace(choices, probes=sampled.correct > 0)
    if choices.mode == "train" and sampled.ended >= FINISHED and not sampled.with_tags:
        choices = dataclasses.replace(
            choices,
            mode="eval",
            mode_why=f"none of {sampled.ended} responses that ended has a </think>",
        )
    ended_all = sampled.ended == sampled.responses and sampled.longest > 0
    if choices.cpu and ended_all:
        enough = max(64, _rounded(2 * sampled.longest))
        lowered = tuple(min(budget, enough) for budget in choices.budgets)
        choices = dataclasses.replace(choices, budgets=lowered)
    return choices


def held_out_count(problems: int, asked: int | None) -> int:
    """Problems to hold out of `problems`: those asked for, else a tenth, from 8 to 100.

    None is held out of fewer than 32.

    Raises:
        ConfigError: more than half were asked for.
    """
    if asked is None:
        tenth = int(HELD_OUT_SHARE * problems)
        return 0 if problems < FEW_PROBLEMS else min(MOST_HELD_OUT, max(LEAST_HELD_OUT, tenth))
    if asked > problems // 2:
        raise ConfigError(
            f"--hold_out={asked}: of {problems} problems at most half can be held out; lower it, "
            "or name a file with --evaluate"
        )
    return asked


def split(count: int, held_out: int) -> tuple[list[int], list[int]]:
    """Indices of the problems to train on, and of those held out, which are spread evenly."""
    if not held_out:
        return list(range(count)), []
    chosen = {index * count // held_out for index in range(held_out)}
    return [i for i in range(count) if i not in chosen], sorted(chosen)
