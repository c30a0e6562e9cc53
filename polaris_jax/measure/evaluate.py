"""avg@k, pass@k, maj@k, accuracy by length and by token budget, with and without YaRN."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from polaris_jax.assemble import evaluation_problems, load_base, load_base_tokenizer
from polaris_jax.checkpoint.convert import load_any
from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.data.problem_sets import fitting
from polaris_jax.data.problems import problems_digest
from polaris_jax.evaluate.benchmarks import BENCHMARKS, known_benchmarks
from polaris_jax.evaluate.blog import beside_blog, beside_lines
from polaris_jax.evaluate.scoring import (
    budgets_of,
    grades_of,
    grading_failed,
    score_line,
    score_rows,
    sets_of,
)
from polaris_jax.measure.compare_evaluations import compare_evaluations
from polaris_jax.measure.forced import force_answers, forced_identity, forced_scores, is_forced_row
from polaris_jax.measure.inputs import open_progress, reward_inputs
from polaris_jax.measure.policy import open_samplers, with_decided_dtype
from polaris_jax.measure.respond import (
    BATCH_PROMPTS,
    Asked,
    Loaded,
    Variant,
    forced_room,
    grade_later,
    is_response,
    require_ids,
    respond,
    response_identity,
    variants_of,
)
from polaris_jax.measure.responses import say_failed
from polaris_jax.measure.scored import BASE, Scored, scored_by
from polaris_jax.measure.weights import Weights, base_inputs, find_checkpoint
from polaris_jax.measure.workload import UNKNOWN, Batches, Forecast, Workload, before_text
from polaris_jax.models.positions import check_evaluated_positions
from polaris_jax.models.weights.identity import tokenizer_digests
from polaris_jax.records import Problem
from polaris_jax.report.figures import evaluation_figure
from polaris_jax.reward.configured import check_reward
from polaris_jax.run.owner import Ownership, command_owns, tag_prefix
from polaris_jax.run.progress_file import ProgressFile
from polaris_jax.run.record import with_recorded_defaults
from polaris_jax.run.workdir import ensure_workdir, write_json
from polaris_jax.system import processes
from polaris_jax.system.progress import Progress

# Below this budget the blog's own figures are out of reach for lack of tokens alone.
COMPARABLE_TOKENS = 64 * 1024


def evaluate(
    config: RunConfig,
    workdir: epath.Path,
    *,
    progress: Progress,
    checkpoint: str = "",
    tag: str = "",
    forecast: Forecast = UNKNOWN,
) -> dict[str, Any]:
    """Scores policies on the held-out problems -> eval.json, responses.jsonl, eval.png.

    Problems that cannot be asked are no part of the score: eval.json counts them in `left_out`.

    The same config and seeds give the same prompts and noise for any weights, so that two
    evaluations (before and after training) differ by their weights alone. A rerun continues
    after the last complete batch. Several policies, with or without YaRN, are compared problem by
    problem -> eval_compared.json, eval_compared.md, eval_compared.png.

    Args:
        config: the run.
        workdir: gets the files.
        progress: gets lines and bars for a person.
        checkpoint: "" is the base model, "latest" the workdir's newest checkpoint, else a path;
            several with commas between them, as in "base,latest".
        tag: put before the file names, e.g. `before` -> before_eval.json; one for each checkpoint.
        forecast: what is known of the machine's speed.

    Returns:
        The content of eval.json, that of the last checkpoint if there are several.

    Raises:
        ConfigError: there are no held-out problems or no such checkpoint, or a sequence needs more
            positions than the checkpoint has.
    """
    # The run's own dtype: prompts are those of the config, as in evaluations before it.
    config = with_recorded_defaults(workdir, config, progress.line, sections=("model",))
    asked = scored_by(checkpoint, tag)
    first = Weights.of(workdir, asked[0].checkpoint)
    config = with_decided_dtype(config, first, progress.line)
    check_reward(config.reward)
    ensure_workdir(workdir)
    variants = variants_of(config.evaluate)
    stems = [f"{kind}{v.suffix}" for v in variants for kind in ("responses", "forced")]
    writes = [f"{stem}{end}" for stem in stems for end in (".jsonl", ".identity.json")]
    writes += ["eval.json", "eval.png", *COMPARED]
    primary = processes.is_first()
    with contextlib.ExitStack() as owned:
        owners = [
            owned.enter_context(
                command_owns(workdir, "evaluate", writes=writes, primary=primary, tag=scored.tag)
            )
            for scored in asked
        ]
        if len(asked) > 1 and all(scored.tag for scored in asked):  # their table has no tag
            owned.enter_context(
                command_owns(workdir, "evaluate", writes=COMPARED, primary=primary, tag="")
            )
        run = _Evaluation.begin(config, workdir, progress, asked, forecast=forecast)
        summaries = [
            run.score(scored, ownership) for scored, ownership in zip(asked, owners, strict=True)
        ]
        if len(asked) * len(variants) > 1 and primary:
            for ownership in owners:
                ownership.check()
            prefix = tag_prefix(asked[0].tag) if len(asked) == 1 else ""
            compare_evaluations(
                [workdir / f"{tag_prefix(scored.tag)}eval.json" for scored in asked],
                [scored.name for scored in asked],
                workdir,
                prefix=prefix,
                say=progress.line,
            )
    return summaries[-1]


COMPARED = ("eval_compared.json", "eval_compared.md", "eval_compared.png")


class _Evaluation:
    """What all checkpoints of one call share: problems, samplers, and what is left to sample."""

    def __init__(
        self,
        config: RunConfig,
        workdir: epath.Path,
        progress: Progress,
        given: Sequence[Problem],
        left_out: Mapping[str, int],
        *,
        checkpoints: int,
        forecast: Forecast,
    ) -> None:
        self._config, self._workdir, self._progress = config, workdir, progress
        self._given, self._left_out = given, left_out
        self._budget = budget_of(config)
        self._samplers = open_samplers(config, progress)
        self._checkpoints, self._forecast = checkpoints, forecast
        self._workload: Workload | None = None
        self._known = bool(known_benchmarks(config.evaluate.problems))
        self._cost_said = False

    @classmethod
    def begin(
        cls,
        config: RunConfig,
        workdir: epath.Path,
        progress: Progress,
        asked: Sequence[Scored],
        *,
        forecast: Forecast,
    ) -> _Evaluation:
        """Reads the problems, and finds every checkpoint before any is loaded."""
        given, left_out = evaluation_problems(config, progress)
        budget = budget_of(config)
        if known_benchmarks(config.evaluate.problems) and budget < COMPARABLE_TOKENS:
            progress.line(
                f"warning: a budget of {budget} tokens is under 64K: not comparable with the "
                "POLARIS blog's figures"
            )
        if config.evaluate.beside == "blog" and not known_benchmarks(config.evaluate.problems):
            raise ConfigError(
                f"evaluate.beside=blog: evaluate.problems={config.evaluate.problems} is none of "
                f"the blog's benchmarks; take one or several of {', '.join(BENCHMARKS)}, or none"
            )
        for scored in asked:
            if scored.checkpoint:
                find_checkpoint(workdir, scored.checkpoint)
        run = cls(
            config, workdir, progress, given, left_out, checkpoints=len(asked), forecast=forecast
        )
        run._say_cost(asked)
        return run

    def _say_cost(self, asked: Sequence[Scored]) -> None:
        """Says what the blog's benchmarks will cost, before any weights are downloaded or read.

        A call that continues says it later, when it knows what is left.
        """
        variants = variants_of(self._config.evaluate)
        began = any(
            (self._workdir / f"{tag_prefix(scored.tag)}responses{variant.suffix}.jsonl").exists()
            for scored in asked
            for variant in variants
        )
        if self._known and not began:
            n = self._config.evaluate.n
            responses = len(asked) * len(variants) * len(self._given) * n
            batch = min(BATCH_PROMPTS, len(self._given)) * n
            work = [Batches(responses, batch, n, self._budget)]
            self._progress.line(before_text("evaluate", work, self._forecast, always=True))
            self._cost_said = True

    def score(self, scored: Scored, ownership: Ownership) -> dict[str, Any]:
        """Scores one checkpoint under every variant; its weights are freed at the end."""
        config, section, progress = self._config, self._config.evaluate, self._progress
        variants, prefix = variants_of(section), tag_prefix(scored.tag)
        weights = _weights(config, self._workdir, scored.checkpoint, progress)
        for variant in variants:
            check_evaluated_positions(
                config,
                variant.of(weights)[0].config,
                progress.line,
                max_response_tokens=self._budget + forced_room(section, weights[1]),
                yarn=variant.yarn,
            )
        problems = fitting(
            self._given,
            config.data,
            tokenizer=weights[1],
            vocab_size=weights[0].config.vocab_size,
            say=progress.line,
        )
        left_out = {**self._left_out, "long_prompt": len(self._given) - len(problems)}
        asked = Asked(config, progress, problems, self._budget, self._samplers)
        files = self._open(asked, weights, scored, ownership)
        workload = self._work(asked, [done for done, _ in files.values()])
        results = {}
        for variant, (done, forced) in files.items():
            rows = respond(asked, weights, variant, done=done, workload=workload)
            results[variant] = self._result(asked, weights, variant, rows, done, forced)
        summary = _with_variants(results, config)
        summary |= {"checkpoint": scored.checkpoint or BASE, "rope": section.yarn}
        summary["left_out"] = {reason: count for reason, count in left_out.items() if count}
        if processes.is_first():
            ownership.check()
            write_json(self._workdir / f"{prefix}eval.json", summary)
            evaluation_figure(summary, self._workdir / f"{prefix}eval.png")
        for variant, result in results.items():
            progress.line(score_line(f"{scored.name}{variant.label}", result))
            for figures in (result, result.get("forced", {})):
                say_failed(figures, result["problems"] * section.n, progress.line)
            for line in beside_lines(result.get("beside") or {}, sets=result.get("sets", ())):
                progress.line(line)
        return summary

    def _open(
        self, asked: Asked, weights: Loaded, scored: Scored, ownership: Ownership
    ) -> dict[Variant, tuple[ProgressFile, ProgressFile | None]]:
        """The files of each variant: its responses, and its forced answers if any are asked for."""
        config, section, prefix = self._config, self._config.evaluate, tag_prefix(scored.tag)
        inputs, places = _inputs(
            config, self._workdir, self._progress, weights[1], scored.checkpoint
        )
        texts, named = reward_inputs(config.reward)
        inputs |= texts | {"problems": problems_digest(self._given, extras=True)}
        places |= named | {"problems": f"evaluate.problems={section.problems}"}
        options = {
            "key": ("problem_id", "sample"),
            "unit": section.n,
            "again": grading_failed,
            "inputs": inputs,
            "places": places,
            "may_write": ownership.check,
        }
        files = {}
        for variant in variants_of(section):
            identity = response_identity(
                variant.config(config),
                weights[0],
                asked.problems,
                max_response_tokens=self._budget,
                yarn=variant.yarn,
                drops_own=variant.of(weights) is not weights,
            )
            path = self._workdir / f"{prefix}responses{variant.suffix}.jsonl"
            done = open_progress(path, identity, valid=is_response, **options)
            require_ids(done.rows, budgets_of(section, self._budget), path=path)
            forced = None
            if section.force_answer_tokens:
                forced = open_progress(
                    self._workdir / f"{prefix}forced{variant.suffix}.jsonl",
                    forced_identity(identity, section),
                    valid=is_forced_row,
                    **options,
                )
            files[variant] = done, forced
        return files

    def _work(self, asked: Asked, files: Sequence[ProgressFile]) -> Workload:
        """What this call samples: said before its first checkpoint, that of the others included."""
        if self._workload is None:
            n = self._config.evaluate.n
            each = len(asked.problems) * n
            left = sum(each - len(done.rows) for done in files)
            left += (self._checkpoints - 1) * len(files) * each
            batch = min(BATCH_PROMPTS, len(asked.problems)) * n
            self._workload = Workload(
                "evaluate",
                [Batches(left, batch, n, self._budget)],
                forecast=self._forecast,
                progress=self._progress,
                always=self._known,
                said=self._cost_said,
            )
        return self._workload

    def _result(
        self,
        asked: Asked,
        weights: Loaded,
        variant: Variant,
        rows: Sequence[Mapping[str, Any]],
        done: ProgressFile,
        forced: ProgressFile | None,
    ) -> dict[str, Any]:
        config, section = self._config, self._config.evaluate
        correct_at = config.reward.correct_at
        result = score_rows(
            rows,
            section,
            correct_at=correct_at,
            max_response_tokens=self._budget,
            later=grade_later(asked, weights[1], rows),
        )
        if forced is not None:
            answers = force_answers(asked, weights, variant, rows, done=forced, path=done.path)
            result["forced"] = forced_scores(answers, section, correct_at)
        if section.beside == "blog":
            known = known_benchmarks(section.problems)
            by_set = sets_of(rows) or ({known[0]: list(rows)} if len(known) == 1 else {})
            result["beside"] = beside_blog(
                {name: grades_of(of_set, correct_at).correct_PR for name, of_set in by_set.items()}
            )
        return result


def budget_of(config: RunConfig) -> int:
    """The budget of an evaluation's responses, in tokens."""
    return config.evaluate.max_response_tokens or config.stages[-1].max_response_tokens


def _with_variants(results: Mapping[Variant, dict[str, Any]], config: RunConfig) -> dict[str, Any]:
    """The first variant's figures, with those of the others inside."""
    first, *others = results
    summary = dict(results[first])
    factors = {}
    for variant in others:
        if variant.attention_factor is not None:
            factors[f"{variant.attention_factor:g}"] = results[variant]
            continue
        for plain, scaled in zip(
            summary["budget_curve"], results[variant]["budget_curve"], strict=True
        ):
            plain["accuracy_yarn"] = scaled["accuracy"]
        summary["yarn"] = results[variant]
    if factors:
        summary["attention_factors"] = factors
    yarn = config.rope.yarn
    return summary | {"yarn_factor": yarn.factor, "attention_factor": yarn.attention_factor}


def _weights(config: RunConfig, workdir: epath.Path, checkpoint: str, progress: Progress) -> Loaded:
    if not checkpoint:
        return load_base(config, workdir, progress)
    path, _ = find_checkpoint(workdir, checkpoint)
    model, tokenizer = load_any(path)
    return model, tokenizer or load_base_tokenizer(config)


def _inputs(
    config: RunConfig, workdir: epath.Path, progress: Progress, tokenizer: Any, checkpoint: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the responses depend on by content, and the places of it; see `run.identity`.

    Other weights at `model.path` are refused. A checkpoint's weights are among the settings, since
    `--checkpoint=latest` names others from day to day; its tokenizer stays.
    """
    if not checkpoint:
        return base_inputs(config, workdir, progress, tokenizer=tokenizer)
    digests = tokenizer_digests(tokenizer)
    inputs = {f"{name} of {checkpoint}": value for name, value in digests.items()}
    return inputs, dict.fromkeys(inputs, f"--checkpoint={checkpoint}")
