"""The sections of problems and prompts, and of the warm start that makes a small model of them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from polaris_jax.config.settings import setting

# Limits and texts that other packages import from here.
MAX_SLIP_RATE = 0.6  # limit of warmstart.slip_rate: the rate if every result of a text may slip
SEED_LIMIT = 1 << 63  # limit of seeds that go into generators unhashed
SEED_RULE = "must lie in [0, 2^63); set it to 0 or another number in that range"
PROMPT_SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."


@dataclasses.dataclass(frozen=True)
class ArithmeticSection:
    """Procedural word problems, used if `data.problems` is empty."""

    train: int = setting(
        0,
        "Problems to train on; 0: none.",
        at_least=0,
        rule="must not be negative; 0 is none",
    )
    held_out: int = setting(
        0, "Problems held out for scores.", at_least=0, rule="must not be negative; 0 is none"
    )
    seed: int = setting(0, "Seed of the problems.", at_least=0, below=SEED_LIMIT, rule=SEED_RULE)
    min_steps: int = setting(1, "Fewest steps of a problem.", above=0, before=1)
    max_steps: int = setting(5, "Most steps of a problem.", above=0, before=5)
    hard_from: int = setting(
        0,
        "Steps from which a problem is hard, above min_steps; 0: lengths are drawn evenly.",
        at_least=0,
        before=0,
    )
    hard_share: float = setting(
        0.5,
        "Share of hard problems, if hard_from is not 0.",
        at_least=0,
        at_most=1,
        before=0.5,
    )
    families: tuple[str, ...] = setting(
        (), "Families: trade, ride, groups, compare, box, number; (): all.", before=[]
    )


@dataclasses.dataclass(frozen=True)
class DataSection:
    """Which problems, and how they become prompts."""

    problems: str = setting(
        "",
        "A jsonl, json, csv, parquet or arrow file, a directory of such, a Hugging Face data set, "
        "each with options behind commas (docs/data.md), or a function that yields rows, as "
        "file.py:name or package.module:name; empty: see data.arithmetic.",
        usual="dataset dataset_name train_files",
    )
    use: Literal["auto", "problems"] = setting(
        "auto",
        "Which problems train and probe read: auto takes the workdir's curated.parquet, else its "
        "problems.parquet, if they were made of data.problems; problems takes data.problems.",
        before="auto",
    )
    prompt_suffix: str = setting(PROMPT_SUFFIX, "Text added to each problem.")
    turns: Literal["all", "last"] = setting(
        "all",
        "Of a problem that is a chat: all keeps the turns before the last user turn, last leaves "
        "them out.",
        before="last",
    )
    system_prompt: str = setting(
        "",
        "Text of a system turn before the problem, unless its chat has one; empty: none but the "
        "template's own.",
        before="",
        usual="system",
    )
    chat_template: str = setting(
        "",
        "A file with a jinja template, chatml, or none (turns are paragraphs); empty: the "
        "tokenizer's own.",
        before="",
    )
    template_args: tuple[str, ...] = setting(
        (), "Variables of the chat template, as name=value: enable_thinking=false.", before=[]
    )
    response_prefill: str = setting(
        "", "Text that begins each response; part of the prompt.", before=""
    )
    shots: str = setting(
        "",
        'A file of worked examples, one {"problem": "...", "response": "..."} a line, that stand '
        "before each problem as turns of the chat; empty: none.",
        before="",
        usual="few_shot num_fewshot",
    )
    max_prompt_tokens: int = setting(
        1024,
        "Problems with longer prompts are left out, never cut.",
        above=0,
        usual="max_prompt_length",
    )
    weighting: Literal["uniform", "pass_rate"] = setting(
        "uniform",
        "uniform: every problem once an epoch. pass_rate: each prompt is drawn in proportion to "
        "the expected p(1 - p) of its problem, p the pass rate in its newest visits.",
        before="uniform",
    )
    arithmetic: ArithmeticSection = setting(ArithmeticSection())


@dataclasses.dataclass(frozen=True)
class WarmstartSection:
    """Supervised warm start that makes a small base model on the spot."""

    steps: int = setting(0, "Updates; 0: no warm start.", at_least=0)
    batch_size: int = setting(64, "Texts in an update.", above=0)
    learning_rate: float = setting(3e-3, "Learning rate of the warm start.", above=0)
    examples: int = setting(8192, "Texts to train on.", above=0)
    slip_rate: float = setting(
        0.3,
        "Share of intermediate results that carry a slip.",
        at_least=0,
        at_most=MAX_SLIP_RATE,
        rule=f"must lie in [0, {MAX_SLIP_RATE}], as a text of many slips has no higher rate",
    )
    habits: float = setting(
        0.0,
        "Share of the arithmetic facts that the texts mostly have wrong, each in a way of its own.",
        at_least=0,
        at_most=1,
        before=0.0,
    )
    habit_rate: float = setting(
        0.9,
        "Share of the texts that have such a fact wrong: how sure of its mistakes the model is.",
        at_least=0,
        at_most=1,
        before=0.9,
    )
    min_steps: int = setting(1, "Fewest steps of a text's problem.", above=0, before=1)
    max_steps: int = setting(5, "Most steps of a text's problem.", above=0, before=5)
    families: tuple[str, ...] = setting((), "Families of the texts; (): all.", before=[])
    seed: int = setting(
        0, "Seed of weights and texts.", at_least=0, below=SEED_LIMIT, rule=SEED_RULE
    )
    hidden_size: int = setting(128, "Width of the model.", above=0)
    intermediate_size: int = setting(384, "Width of the MLP.", above=0)
    num_layers: int = setting(4, "Layers.", above=0)
    num_heads: int = setting(4, "Query heads.", above=0)
    num_kv_heads: int = setting(2, "Key and value heads; must divide num_heads.", above=0)
    head_dim: int = setting(32, "Width of a head; must be even.", above=0)
    max_position_tokens: int = setting(512, "Longest sequence of the model.", above=0)
