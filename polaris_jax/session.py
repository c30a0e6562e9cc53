"""The pieces that every command builds alike: model, tokenizer, problems, sampler, sample, grade.

`loop.py` and `runs/` compose packages; what both need stands here once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from polaris_jax import processes
from polaris_jax.config import ConfigError, RunConfig, YarnSection
from polaris_jax.data.arithmetic import arithmetic_problems, supervised_examples
from polaris_jax.data.filters import drop_long_prompts
from polaris_jax.data.problems import read_problems
from polaris_jax.data.prompts import render_example, render_prompt
from polaris_jax.data.tiny_tokenizer import build_tokenizer
from polaris_jax.models import ModelConfig, Qwen, RopeScaling, load_pretrained, save_pretrained
from polaris_jax.models.hf_weights import load_config
from polaris_jax.models.tokenizer import load_tokenizer
from polaris_jax.progress import Progress
from polaris_jax.records import Graded, Problem, PromptBatch, Response, Rollouts
from polaris_jax.reward import Grader
from polaris_jax.rollout import RolloutAborted, Sampler, SamplerConfig, SamplingParams
from polaris_jax.train.warmstart import warm_start

WARMSTART_DIR = "base_model"
TOKENIZER = "tokenizer"  # beside the checkpoints that it belongs to


def fold_seed(*parts: Any) -> int:
    """A 31-bit seed from a run seed, a step, an id, ...: the same parts give the same seed."""
    text = json.dumps([str(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def base_path(config: RunConfig, workdir: Path, progress: Progress) -> str:
    """Where the base weights lie; the warm start makes them when the config asks for one.

    Raises:
        ConfigError: neither `model.path` nor a warm start is configured.
    """
    if config.model.path:
        return config.model.path
    if config.warmstart.steps == 0:
        raise ConfigError(
            "model.path='': no weights; name a Hugging Face directory, a Hub id or a GGUF file, "
            "or set warmstart.steps to make a small model on the spot"
        )
    path = workdir / WARMSTART_DIR
    processes.first_does(lambda: _make_warmstart(config, path, progress), "warm start")
    return str(path)


def _make_warmstart(config: RunConfig, path: Path, progress: Progress) -> None:
    """Trains the small base model by supervision, unless it is already there and whole."""
    section, done = config.warmstart, path / "warmstart.json"
    identity = json.loads(json.dumps(dataclasses.asdict(section)))
    if done.exists() and json.loads(done.read_text())["warmstart"] == identity:
        return
    tokenizer = build_tokenizer()
    model_config = ModelConfig(
        vocab_size=len(tokenizer),
        hidden_size=section.hidden_size,
        intermediate_size=section.intermediate_size,
        num_layers=section.num_layers,
        num_heads=section.num_heads,
        num_kv_heads=section.num_kv_heads,
        head_dim=section.head_dim,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        max_position_embeddings=section.max_position_tokens,
        tie_embeddings=True,
        qkv_bias=False,
        qk_norm=True,
    )
    suffix = config.data.prompt_suffix
    examples = [
        render_example(tokenizer, problem.problem, completion, suffix=suffix)
        for problem, completion in supervised_examples(
            section.examples, seed=section.seed, slip_rate=section.slip_rate
        )
    ]
    model = Qwen.init(model_config, jax.random.key(section.seed))
    progress.line(
        f"warm start: {section.steps} supervised steps on {len(examples)} worked solutions, "
        f"{model_config.num_parameters:,} parameters"
    )
    with progress.phase("warm start", section.steps) as phase:
        model = warm_start(
            model,
            examples,
            section,
            on_step=lambda step, loss: phase.advance_to(step + 1, f"loss {loss:.3f}"),
        )
    save_pretrained(model, path, tokenizer=tokenizer)
    partial = path / "warmstart.json.partial"
    partial.write_text(json.dumps({"warmstart": identity}, sort_keys=True))
    os.replace(partial, done)


def load_base_tokenizer(config: RunConfig) -> Any:
    """The tokenizer of the base model, without its weights."""
    return load_tokenizer(config.model.path) if config.model.path else build_tokenizer()


def load_base(config: RunConfig, workdir: Path, progress: Progress) -> tuple[Qwen, Any]:
    """The fp32 base model and its tokenizer."""
    return load_with_tokenizer(base_path(config, workdir, progress), dtype="float32")


def load_with_tokenizer(path: str, *, dtype: str) -> tuple[Qwen, Any]:
    """`load_pretrained` where the tokenizer is needed: without one it raises."""
    model, tokenizer = load_pretrained(path, dtype=dtype)
    return model, load_tokenizer(path) if tokenizer is None else tokenizer


def base_model_config(config: RunConfig, workdir: Path, progress: Progress) -> ModelConfig:
    """The base model's architecture, read without its weights."""
    return load_config(base_path(config, workdir, progress))


def yarn_scaling(yarn: YarnSection, factor: float) -> RopeScaling | None:
    """The run's rotary scaling at `factor`; None at 1 (no change)."""
    if factor == 1.0:
        return None
    return RopeScaling(
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=yarn.original_max_position_embeddings,
        attention_factor=yarn.attention_factor,
        beta_fast=yarn.beta_fast,
        beta_slow=yarn.beta_slow,
    )


def check_positions(config: RunConfig, model: ModelConfig, progress: Progress) -> None:
    """Checks every stage's prompt + budget against the position limit, before weights are read.

    Raises:
        ConfigError: a stage exceeds the limit: `model.max_position_tokens`, or, when that is 0,
            the checkpoint's own positions times the stage's rope_factor.
    """
    for i, stage in enumerate(config.stages):
        needed = config.data.max_prompt_tokens + stage.max_response_tokens
        own = int(model.max_position_embeddings * stage.rope_factor)
        if needed <= own:
            continue
        if needed > (config.model.max_position_tokens or own):
            raise ConfigError(
                f"stages[{i}].max_response_tokens={stage.max_response_tokens}: with "
                f"data.max_prompt_tokens={config.data.max_prompt_tokens} a sequence may reach "
                f"{needed} positions, over the checkpoint's {own}; lower the budget, raise "
                f"stages[{i}].rope_factor, or set model.max_position_tokens={needed} to go beyond"
            )
        progress.line(
            f"warning: stages[{i}] may reach {needed} positions, past the checkpoint's {own} "
            "without YaRN; model.max_position_tokens allows it"
        )
        return


def stop_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a response: the tokenizer's end of text and ChatML's end of turn."""
    ids = {tokenizer.eos_token_id}
    for token in ("<|im_end|>", "<|endoftext|>"):
        if token in tokenizer.get_vocab():
            ids.add(tokenizer.convert_tokens_to_ids(token))
    return tuple(sorted(i for i in ids if i is not None))


def read_named(source: str, progress: Progress, *, unique: bool = True) -> list[Problem]:
    """The problems of a source; rows left out are named and counted on the way."""
    problems, report = read_problems(source, unique=unique)
    for message in report.messages:
        progress.line(f"left out: {message}")
    if report.counts:
        counts = ", ".join(f"{count} {name}" for name, count in report.counts.items())
        progress.line(f"{source}: {report.kept} of {report.rows} rows kept ({counts})")
    return problems


def source_problems(
    config: RunConfig, workdir: Path, progress: Progress
) -> tuple[list[Problem], str]:
    """The problems to calibrate and where they came from: what `prepare` left, else the source."""
    prepared = workdir / "problems.parquet"
    if prepared.exists():
        return read_named(str(prepared), progress), str(prepared)
    return training_problems(config, workdir / "nothing prepared", progress)


def training_problems(
    config: RunConfig, workdir: Path, progress: Progress
) -> tuple[list[Problem], str]:
    """The problems to train on and where they came from.

    `data.problems` first, else the workdir's curated.parquet, else its problems.parquet, else the
    procedural ones.

    Raises:
        ConfigError: there is none of these, or no valid problem in it.
    """
    if config.data.problems:
        return read_named(config.data.problems, progress), config.data.problems
    for name in ("curated.parquet", "problems.parquet"):
        if (workdir / name).exists():
            return read_named(str(workdir / name), progress), str(workdir / name)
    if config.data.arithmetic.train:
        return _arithmetic(config)[0], f"{config.data.arithmetic.train} arithmetic problems"
    raise ConfigError(
        f"data.problems='': no problems; name a file, or run `polaris prepare` on {workdir} first"
    )


def evaluation_problems(config: RunConfig, progress: Progress) -> list[Problem]:
    """The held-out problems: `evaluate.problems`, else the procedural ones.

    Raises:
        ConfigError: neither is configured.
    """
    if config.evaluate.problems:
        return read_named(config.evaluate.problems, progress, unique=False)
    if config.data.arithmetic.held_out:
        return _arithmetic(config)[1]
    raise ConfigError("evaluate.problems='': no held-out problems; name a file or a data set")


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


def make_sampler(model: Qwen, config: RunConfig, *, max_response_tokens: int) -> Sampler:
    """A sampler with room for prompts of `data.max_prompt_tokens` and this budget."""
    section = config.rollout
    max_len = config.data.max_prompt_tokens + max_response_tokens
    pages_of_a_row = -(-max_len // section.page_size)
    return Sampler(
        model,
        SamplerConfig(
            slots=section.slots,
            page_size=section.page_size,
            num_pages=section.num_pages or section.slots * pages_of_a_row + 1,
            max_len=max_len,
            decode_steps=section.decode_steps,
            prefill_chunk=section.prefill_chunk,
        ),
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
    on_progress: Callable[[int, int, int], None] | None = None,
    should_abort: Callable[[], bool] | None = None,
) -> Rollouts:
    """n responses for every prompt, sampled by all processes together.

    Process i samples prompts i, i + count, ...; responses are gathered once at the end, so that no
    collective runs while anyone decodes.

    Args:
        sampler: over this process's own devices.
        prompts: the whole batch, the same in every process.
        tokenizer: decodes the texts.
        n: responses a prompt.
        temperature: 0 is greedy.
        max_response_tokens: budget of a response, stop token included.
        seed_parts: folded with problem id and draw into each prompt's seed.
        top_k: 0 is off.
        top_p: 1 is off.
        on_progress: (responses done, responses in all, tokens).
        should_abort: polled between device calls.

    Raises:
        RolloutAborted: `should_abort` said so in some process.
    """
    count, index = jax.process_count(), jax.process_index()
    mine = range(index, len(prompts), count)
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        n=n,
        max_tokens=max_response_tokens,
        seed=[fold_seed(*seed_parts, prompts.problem_ids[i], prompts.draws[i]) for i in mine],
        stop_token_ids=stop_token_ids(tokenizer),
    )
    aborted, groups = False, []
    try:
        if len(mine):
            groups = sampler.generate(
                [prompts.prompts[i] for i in mine],
                params,
                on_progress=on_progress,
                should_abort=should_abort,
            )
    except RolloutAborted:
        aborted = True
    if count > 1:
        payload = [[(r.token_ids, r.logprobs, r.finish_reason) for r in g] for g in groups]
        shares = processes.gather_objects({"aborted": aborted, "groups": payload})
        aborted = any(share["aborted"] for share in shares)
    if aborted:
        raise RolloutAborted("the rollout was abandoned on a signal")
    if count > 1:
        by_prompt: list[Any] = [None] * len(prompts)
        for i, share in enumerate(shares):
            by_prompt[i::count] = [
                [Response(tuple(t), tuple(lp), reason) for t, lp, reason in group]
                for group in share["groups"]
            ]
        groups = by_prompt
    texts = tuple(
        tuple(tokenizer.decode(r.token_ids, skip_special_tokens=True) for r in g) for g in groups
    )
    return Rollouts(prompts, tuple(map(tuple, groups)), texts, temperature, max_response_tokens)


def grade(grader: Grader, rollouts: Rollouts, *, mode: Literal["train", "eval"]) -> Graded:
    """The rollouts with their rewards; each process grades its own share of the prompts.

    Args:
        grader: this process's workers.
        rollouts: the whole batch.
        mode: "train" reads prompt + response, "eval" the response alone.
    """
    count, index = jax.process_count(), jax.process_index()
    prompts = rollouts.prompts
    texts, golds = [], []
    for i in range(index, len(prompts), count):
        prefix = prompts.prompt_texts[i] if mode == "train" else ""
        texts += [prefix + text for text in rollouts.texts[i]]
        golds += [prompts.golds[i]] * len(rollouts.texts[i])
    width = len(rollouts.texts[0])
    rewards = [float(r) for r in grader.score(texts, golds, mode=mode)]
    reward_PR = np.zeros((len(prompts), width), np.float32)
    for i, share in enumerate(processes.gather_objects(rewards)):
        reward_PR[i::count] = np.array(share, np.float32).reshape(-1, width)
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
    )
