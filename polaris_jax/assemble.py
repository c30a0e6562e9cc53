"""The pieces that every command builds alike: model, tokenizer, problems, sampler, sample, grade.

`loop.py` and `runs/` compose packages; what both need stands here once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from etils import epath

from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.data.filters import drop_long_prompts
from polaris_jax.data.problems import read_problems
from polaris_jax.data.prompts import render_prompt
from polaris_jax.demo.arithmetic import arithmetic_problems
from polaris_jax.evaluate.benchmarks import is_benchmark, read_benchmark
from polaris_jax.models import Qwen
from polaris_jax.records import Graded, Problem, PromptBatch, Rollouts
from polaris_jax.reward import Grader
from polaris_jax.reward.grade_ahead import GradeAhead
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.groups import begin
from polaris_jax.rollout.sample_groups import gradable, graded_here, sample_groups
from polaris_jax.sharding import make_sampler_mesh, slot_shards, split_devices
from polaris_jax.system import processes
from polaris_jax.system.agreement import agree_on_problems
from polaris_jax.system.progress import Progress

TOKENIZER = "tokenizer"  # beside the checkpoints that it belongs to
TRAINED_ON, HELD_OUT = "problem set", "held-out problem set"  # as errors call them


def fold_seed(*parts: Any) -> int:
    """A 31-bit seed from a run seed, a step, an id, ...: the same parts give the same seed."""
    text = json.dumps([str(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def stop_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a response: the tokenizer's end of text and ChatML's end of turn."""
    ids = {tokenizer.eos_token_id}
    for token in ("<|im_end|>", "<|endoftext|>"):
        if token in tokenizer.get_vocab():
            ids.add(tokenizer.convert_tokens_to_ids(token))
    return tuple(sorted(i for i in ids if i is not None))


def read_named(source: str, progress: Progress) -> list[Problem]:
    """The problems of a source; rows left out are named and counted on the way."""
    return _read_named(source, progress, unique=True)[0]


def _read_named(
    source: str, progress: Progress, *, unique: bool, field: str = "data.problems"
) -> tuple[list[Problem], dict[str, int]]:
    problems, report = read_problems(source, unique=unique, field=field)
    for message in report.messages:
        progress.line(f"left out: {message}")
    if report.counts:
        counts = ", ".join(f"{count} {name}" for name, count in report.counts.items())
        progress.line(f"{source}: {report.kept} of {report.rows} rows kept ({counts})")
    return problems, report.counts


def source_problems(
    config: RunConfig, workdir: epath.Path, progress: Progress
) -> tuple[list[Problem], str]:
    """The problems to calibrate and where they came from: what `prepare` left, else the source."""
    prepared = workdir / "problems.parquet"
    if not prepared.exists():
        return training_problems(config, workdir, progress, prepared=False)
    problems = read_named(str(prepared), progress)
    agree_on_problems(TRAINED_ON, problems)
    return problems, str(prepared)


def training_problems(
    config: RunConfig, workdir: epath.Path, progress: Progress, *, prepared: bool = True
) -> tuple[list[Problem], str]:
    """The problems to train on, the same in all processes, and where they came from.

    `data.problems` first, else the workdir's curated.parquet, else its problems.parquet (both not
    without `prepared`), else the procedural ones.

    Raises:
        ConfigError: there is none of these, no valid problem in it, or processes read others.
    """
    problems, origin = _find_problems(config, workdir, progress, prepared=prepared)
    agree_on_problems(TRAINED_ON, problems)
    return problems, origin


def _find_problems(
    config: RunConfig, workdir: epath.Path, progress: Progress, *, prepared: bool
) -> tuple[list[Problem], str]:
    if config.data.problems:
        return read_named(config.data.problems, progress), config.data.problems
    for name in ("curated.parquet", "problems.parquet") if prepared else ():
        if (workdir / name).exists():
            return read_named(str(workdir / name), progress), str(workdir / name)
    if config.data.arithmetic.train:
        return _arithmetic(config)[0], f"{config.data.arithmetic.train} arithmetic problems"
    raise ConfigError(
        f"data.problems='': no problems; name a file, or run `polaris prepare` on {workdir} first"
    )


def evaluation_problems(
    config: RunConfig, progress: Progress
) -> tuple[list[Problem], dict[str, int]]:
    """The held-out problems: `evaluate.problems`, else the procedural ones; rows left out, counted.

    Raises:
        ConfigError: neither is configured, a file named as a known benchmark is not whole, or
            processes read different problems.
    """
    problems, left_out = _find_held_out(config, progress)
    agree_on_problems(HELD_OUT, problems)
    return problems, left_out


def _find_held_out(config: RunConfig, progress: Progress) -> tuple[list[Problem], dict[str, int]]:
    if is_benchmark(config.evaluate.problems):
        return read_benchmark(config.evaluate.problems), {}
    if config.evaluate.problems:
        return _read_named(
            config.evaluate.problems, progress, unique=False, field="evaluate.problems"
        )
    if config.data.arithmetic.held_out:
        return _arithmetic(config)[1], {}
    raise ConfigError(
        "evaluate.problems='': no held-out problems; name a file or a data set, or train with "
        "evaluate.every_steps=0"
    )


def _arithmetic(config: RunConfig) -> tuple[list[Problem], list[Problem]]:
    section = config.data.arithmetic
    return arithmetic_problems(section.train, section.held_out, seed=section.seed)


def fitting(
    problems: Sequence[Problem], config: RunConfig, *, tokenizer: Any, progress: Progress
) -> list[Problem]:
    """The problems whose prompt is within data.max_prompt_tokens; the others are named.

    Raises:
        ConfigError: none is.
    """
    kept, dropped = drop_long_prompts(
        problems,
        tokenizer,
        suffix=config.data.prompt_suffix,
        max_prompt_tokens=config.data.max_prompt_tokens,
    )
    if dropped:
        longest = max(dropped, key=lambda i: dropped[i])
        progress.line(
            f"left out {len(dropped)} problems with prompts over data.max_prompt_tokens="
            f"{config.data.max_prompt_tokens}, the longest {longest} ({dropped[longest]} tokens)"
        )
    if not kept:
        raise ConfigError(
            f"data.max_prompt_tokens={config.data.max_prompt_tokens}: no prompt is that short; "
            "raise it"
        )
    return kept


def prompt_batch(
    problems: Sequence[Problem], *, tokenizer: Any, prompt_suffix: str, draw: int = 0
) -> PromptBatch:
    """The given problems as one batch of prompts, outside of the loader."""
    rendered = [render_prompt(tokenizer, p.problem, suffix=prompt_suffix) for p in problems]
    return PromptBatch(
        problem_ids=tuple(p.id for p in problems),
        prompts=tuple(tuple(ids) for _, ids in rendered),
        prompt_texts=tuple(text for text, _ in rendered),
        golds=tuple(p.answer for p in problems),
        draws=(draw,) * len(problems),
        epoch=0,
    )


def sampler_shards(config: RunConfig, devices: Sequence[Any]) -> int:
    """Data shards of a sampler on these devices."""
    section = config.rollout
    return slot_shards(make_sampler_mesh(devices, data=section.data, tensor=section.tensor))


def make_sampler(
    model: Qwen,
    config: RunConfig,
    *,
    max_response_tokens: int,
    devices: Sequence[Any] | None = None,
) -> Sampler:
    """A sampler with room for prompts of `data.max_prompt_tokens` and this budget.

    Args:
        model: sharded in any way; in several processes all make theirs together.
        config: the run.
        max_response_tokens: the longest budget that will be asked for.
        devices: that it may use; None: all of its processes.
    """
    section = config.rollout
    devices = split_devices(0, section.processes)[1] if devices is None else devices
    return Sampler(
        model,
        SamplerConfig(
            slots=section.slots,
            page_size=section.page_size,
            num_pages=section.num_pages,
            max_len=config.data.max_prompt_tokens + max_response_tokens,
            decode_steps=section.decode_steps,
            prefill_chunk=section.prefill_chunk,
            prefill_budget=section.prefill_budget,
            prefix_cache=section.prefix_cache,
            attention=section.attention,
            dtype=config.model.dtype,
            reserve=section.reserve,
        ),
        mesh=make_sampler_mesh(devices, data=section.data, tensor=section.tensor),
    )


def make_grader(config: RunConfig) -> Grader:
    """The process-pool grader of `config.reward`."""
    section = config.reward
    return Grader(
        workers=section.workers,
        timeout_s=section.timeout_s,
        memory_limit_bytes=section.memory_limit_bytes,
    )


def sample(
    sampler: Sampler,
    prompts: PromptBatch,
    *,
    tokenizer: Any,
    n: int,
    temperature: float,
    max_response_tokens: int,
    seed_parts: Sequence[Any],
    top_k: int = 0,
    top_p: float = 1.0,
    expected_tokens: Sequence[float] | None = None,
    ahead: GradeAhead | None = None,
    on_progress: Callable[[int, int, int], None] | None = None,
    should_abort: Callable[[], bool] | None = None,
) -> Rollouts:
    """n responses for every prompt, sampled by all processes together.

    Args:
        sampler: of this process, or of a few.
        prompts: the whole batch, the same in every process.
        tokenizer: decodes the texts.
        n: responses a prompt.
        temperature: 0 is greedy.
        max_response_tokens: budget of a response, stop token included.
        seed_parts: folded with problem id and draw into each prompt's seed.
        top_k: 0 is off.
        top_p: 1 is off.
        expected_tokens: of a response to each prompt of the batch; the longest begin first.
        ahead: gets each group that this process is to grade when its last response has ended.
        on_progress: (responses done, responses in all, tokens).
        should_abort: polled between device calls.

    Raises:
        RolloutAborted: `should_abort` said so in some process.
    """
    groups, texts = sample_groups(
        sampler,
        begin(prompts, prompt_seeds(prompts, *seed_parts), n=n, version=0),
        SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            n=n,
            max_tokens=max_response_tokens,
            stop_token_ids=stop_token_ids(tokenizer),
        ),
        tokenizer=tokenizer,
        wanted=len(prompts),
        expected_tokens=expected_tokens,
        ahead=ahead,
        on_progress=on_progress,
        should_abort=should_abort,
    )
    return Rollouts(
        prompts,
        tuple(group.responses for group in groups),
        tuple(texts[i] for i in range(len(groups))),
        temperature,
        max_response_tokens,
    )


def prompt_seeds(prompts: PromptBatch, *parts: Any) -> list[int]:
    """A seed for each prompt, of its problem, its draw and the given parts."""
    pairs = zip(prompts.problem_ids, prompts.draws, strict=True)
    return [fold_seed(*parts, problem_id, draw) for problem_id, draw in pairs]


def grade(
    grader: Grader,
    rollouts: Rollouts,
    *,
    mode: Literal["train", "eval"],
    ahead: GradeAhead | None = None,
) -> Graded:
    """The rollouts with their rewards; each process grades its own share of the prompts.

    Args:
        grader: this process's workers.
        rollouts: the whole batch.
        mode: "train" reads prompt + response, "eval" the response alone.
        ahead: has graded some of this process's share, or is at it.
    """
    prompts, width = rollouts.prompts, len(rollouts.texts[0])
    numbers = rollouts.numbers or range(len(prompts))
    known = {} if ahead is None else ahead.rewards()
    by_group = {i: known[number] for i, number in enumerate(numbers) if number in known}
    mine = [i for i, number in enumerate(numbers) if graded_here(number)]
    rest = [i for i in mine if i not in by_group]
    texts = [
        text for i in rest for text in gradable(prompts.prompt_texts[i], rollouts.texts[i], mode)
    ]
    golds = [prompts.golds[i] for i in rest for _ in rollouts.texts[i]]
    graded_now = grader.score(texts, golds, mode=mode).reshape(-1, width)
    by_group |= {i: row.tolist() for i, row in zip(rest, graded_now, strict=True)}
    reward_PR = np.zeros((len(prompts), width), np.float32)
    shares = processes.gather_objects([by_group[i] for i in mine])
    for process, share in enumerate(shares):
        theirs = [i for i, k in enumerate(numbers) if k % len(shares) == process]
        reward_PR[theirs] = np.array(share, np.float32).reshape(-1, width)
    return Graded(
        problem_ids=prompts.problem_ids,
        prompts=prompts.prompts,
        golds=prompts.golds,
        token_ids=tuple(tuple(r.token_ids for r in g) for g in rollouts.responses),
        logprobs=tuple(tuple(r.logprobs for r in g) for g in rollouts.responses),
        texts=rollouts.texts,
        finish_reasons=tuple(tuple(r.finish_reason for r in g) for g in rollouts.responses),
        reward_PR=reward_PR,
        temperature_PR=np.full((len(prompts), width), rollouts.temperature, np.float32),
        versions=tuple(tuple(r.versions for r in g) for g in rollouts.responses),
    )
