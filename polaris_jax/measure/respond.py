"""The responses of an evaluation: sampled, graded and kept, or found from an earlier call."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from polaris_jax.assemble import open_solver
from polaris_jax.config import ConfigError, EvaluateSection, RunConfig
from polaris_jax.data.problems import problems_digest
from polaris_jax.evaluate.scoring import CLOSING, FAILED, Later, budgets_of, ungraded_prefixes
from polaris_jax.measure.beginnings import grade_beginnings
from polaris_jax.measure.inputs import response_settings, reward_identity
from polaris_jax.measure.policy import open_policy
from polaris_jax.measure.responses import ids_of, response_row, say_failed
from polaris_jax.measure.workload import Workload
from polaris_jax.models import Decoder, RopeScaling
from polaris_jax.models.positions import yarn_scaling
from polaris_jax.records import Problem
from polaris_jax.rollout.samplers import Samplers
from polaris_jax.run.progress_file import ProgressFile
from polaris_jax.system.progress import Progress

BATCH_PROMPTS = 128
# Fields that change no response, or that `response_identity` takes as separate arguments.
NOT_OF_RESPONSES = tuple(
    f"evaluate.{name}"
    for name in (
        *("every_steps", "length_edges", "budgets", "yarn", "max_response_tokens", "beside"),
        *("attention_factors", "own_rope", "force_answer_tokens", "force_answer_text"),
    )
)
# Causes that say nothing against a score: greedy responses agree, and an easy set may be solved.
NO_FAULTS = ("no_spread", "too_easy")
Loaded = tuple[Decoder, Any]  # model and tokenizer


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to sample a model's responses.

    Attributes:
        yarn: under rope.yarn, with its factor.
        attention_factor: in place of `rope.yarn.attention_factor`; None: that one.
        drops_own: without YaRN: without the checkpoint's own rotary scaling, too.
    """

    yarn: bool = False
    attention_factor: float | None = None
    drops_own: bool = False

    @property
    def suffix(self) -> str:
        """What follows `responses` in the name of its file."""
        factor = "" if self.attention_factor is None else f"_{self.attention_factor:g}"
        return f"_yarn{factor}" if self.yarn else ""

    @property
    def label(self) -> str:
        """What follows a model's name for people."""
        factor = "" if self.attention_factor is None else f", attention {self.attention_factor:g}"
        return f", YaRN{factor}" if self.yarn else ""

    def config(self, config: RunConfig) -> RunConfig:
        """The config with this variant's attention factor."""
        if self.attention_factor is None:
            return config
        yarn = dataclasses.replace(config.rope.yarn, attention_factor=self.attention_factor)
        return dataclasses.replace(config, rope=dataclasses.replace(config.rope, yarn=yarn))

    def rope_scaling(self, config: RunConfig) -> RopeScaling | None:
        """The rotary scaling to sample under; None: the model's own, unless `drops_own`."""
        yarn = self.config(config).rope.yarn
        return yarn_scaling(yarn, yarn.factor if self.yarn else 1.0)

    def of(self, weights: Loaded) -> Loaded:
        """The weights, without their own rotary scaling if this variant drops it."""
        if not self.drops_own or weights[0].config.rope_scaling is None:
            return weights
        return weights[0].with_rope_scaling(None), weights[1]


def variants_of(section: EvaluateSection) -> list[Variant]:
    """The ways to sample that the config asks for; the first one is the score itself."""
    plain = Variant(drops_own=section.own_rope == "drop")
    scaled = [Variant(yarn=True)]
    scaled += [Variant(yarn=True, attention_factor=factor) for factor in section.attention_factors]
    return {"off": [plain], "on": scaled, "both": [plain, *scaled]}[section.yarn]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What responses are sampled for.

    Attributes:
        config: the run's config.
        progress: gets lines and bars for a person.
        problems: the problems that can be asked.
        max_response_tokens: budget of a response, in tokens.
        samplers: makes the samplers of all variants and checkpoints.
    """

    config: RunConfig
    progress: Progress
    problems: Sequence[Problem]
    max_response_tokens: int
    samplers: Samplers

    def policy(self, weights: Loaded, variant: Variant) -> Any:
        """`open_policy` with weights under a variant's scaling, with room for forced answers."""
        more = forced_room(self.config.evaluate, weights[1])
        return open_policy(
            self.config,
            self.progress,
            variant.of(weights),
            max_response_tokens=self.max_response_tokens + more,
            rope_scaling=variant.rope_scaling(self.config),
            samplers=self.samplers,
        )


def closing_text(text: str, answer: str) -> str:
    """What is put between a response that the budget cut and its forced answer."""
    return f"\n\n{answer}" if CLOSING in text else f"\n{CLOSING}\n\n{answer}"


def forced_room(section: EvaluateSection, tokenizer: Any) -> int:
    """Tokens that a forced answer may take behind the budget."""
    if not section.force_answer_tokens:
        return 0
    closing = tokenizer.encode(
        closing_text("", section.force_answer_text), add_special_tokens=False
    )
    return len(closing) + section.force_answer_tokens


def respond(
    asked: Asked, weights: Loaded, variant: Variant, *, done: ProgressFile, workload: Workload
) -> list[dict[str, Any]]:
    """Rows of responses.jsonl, sampled now or found from an earlier call."""
    section, problems, progress = asked.config.evaluate, asked.problems, asked.progress
    rows = list(done.rows)
    finished = {row["problem_id"] for row in rows}
    waiting = [p for p in problems if p.id not in finished]
    if finished:
        progress.line(f"resumed after {len(finished)} problems")
    if not waiting:
        return rows
    with (
        asked.policy(weights, variant) as policy,
        progress.phase("evaluate", len(problems) * section.n, before=len(rows)) as phase,
    ):
        workload.starts()
        for first in range(0, len(waiting), BATCH_PROMPTS):
            batch = waiting[first : first + BATCH_PROMPTS]
            graded = policy.solve(
                batch,
                n=section.n,
                temperature=section.temperature,
                max_response_tokens=asked.max_response_tokens,
                seed_parts=(section.seed, "evaluate"),
                mode="eval",
                top_k=section.top_k,
                top_p=section.top_p,
                on_progress=phase.sampling(len(rows), len(batch) * section.n),
            )
            if first == 0:
                health = policy.judged(graded, batch, reward=asked.config.reward, mode="eval")
                for text in health.lines() if health.cause not in NO_FAULTS else ():
                    progress.line(text)
            budgets = budgets_of(section, asked.max_response_tokens)
            prefixes = policy.prefix_rewards(graded, batch, budgets)
            new = [
                response_row(problem, graded, p, r, prefixes.get((p, r), {}), with_ids=True)
                for p, problem in enumerate(batch)
                for r in range(section.n)
            ]
            done.append(new)
            rows += new
            phase.advance_to(len(rows))
            workload.did(responses=len(new), tokens=graded.response_tokens)
    return rows


def is_response(row: Mapping[str, Any]) -> bool:
    """True for a row that `respond` can have written, in this version or in an earlier one."""
    numbers = all(isinstance(row[name], int | float) for name in ("reward", "tokens", "sample"))
    ids = row.get("token_ids", "")
    return (
        numbers
        and isinstance(row["text"], str)
        and isinstance(row["finish_reason"], str)
        and isinstance(ids, str)
        and re.fullmatch(r"[0-9 ]*", ids) is not None
    )


def grade_later(asked: Asked, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> Later:
    """Rewards of what later budgets leave of the stored responses, by their token ids.

    Args:
        asked: what the responses were sampled for.
        tokenizer: the tokenizer of the weights that sampled them.
        rows: the rows; `require_ids` has passed them.

    Returns:
        {(problem id, sample, budget): reward} of each response that a budget cuts, and whose row
        has no reward there; 0 where grading failed, which is said.
    """
    budgets = budgets_of(asked.config.evaluate, asked.max_response_tokens)
    cut = ungraded_prefixes(rows, budgets)
    if not cut:
        return {}
    by_id = {problem.id: problem for problem in asked.problems}
    items = [(by_id[row["problem_id"]], ids_of(row) or (), budget) for row, budget in cut]
    new = sorted({budget for _, budget in cut})
    asked.progress.line(f"budgets {new}: grading what they leave of {len(cut)} stored responses")
    with open_solver(asked.config, tokenizer, asked.samplers, model=None) as solver:
        rewards = grade_beginnings(solver, items)
    say_failed({FAILED: rewards.count(None)}, len(rewards), asked.progress.line)
    return {
        (row["problem_id"], row["sample"], budget): reward or 0.0
        for (row, budget), reward in zip(cut, rewards, strict=True)
    }


def require_ids(rows: Sequence[Mapping[str, Any]], budgets: Sequence[int], *, path: Any) -> None:
    """Raises ConfigError if a budget needs token ids that rows of earlier versions lack."""
    lacking = [
        (row, budget)
        for row, budget in ungraded_prefixes(rows, budgets)
        if row.get("token_ids") is None
    ]
    if lacking:
        row = lacking[0][0]
        new = sorted({budget for _, budget in lacking})
        raise ConfigError(
            f"evaluate.budgets={tuple(budgets)}: {path} is of a version that kept no token ids, so "
            f"what {', '.join(map(str, new))} tokens leave of a response is not known (problem "
            f"{row['problem_id']}, response {row['sample']}); ask for the budgets of that time, or "
            "set another evaluate.seed or --tag to sample anew"
        )


def response_identity(
    config: RunConfig,
    model: Decoder,
    problems: Sequence[Problem],
    *,
    max_response_tokens: int,
    yarn: bool,
    drops_own: bool = False,
) -> dict[str, Any]:
    """What responses and rewards depend on: rows of a file with another identity are not reused.

    Every weight counts: an export in bfloat16 may have the very norms of its base.
    """
    sections = ("data", "evaluate", "rope")
    fields = response_settings(config, sections, without=NOT_OF_RESPONSES)
    checksums = {path: int(value) for path, value in _checksums(model.params()).items()}
    return fields | {
        "model.dtype": config.model.arithmetic,
        "architecture": model.config.architecture(),
        "weights": checksums,
        "problems": problems_digest(problems),
        "budget": max_response_tokens,
        "yarn": yarn,
        **({"own rope": "dropped"} if drops_own else {}),
        **reward_identity(config.reward, problems),
    }


@jax.jit
def _checksums(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A number of each parameter's bits; whole numbers wrap around, whatever the order."""

    def checksum(param: jax.Array) -> jax.Array:
        kind = {2: jnp.uint16, 4: jnp.uint32}[param.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(param, kind).astype(jnp.uint32)
        bits = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA6B)
        return jnp.sum(bits ^ (bits >> 13), dtype=jnp.uint32)

    return jax.tree.map(checksum, params)
