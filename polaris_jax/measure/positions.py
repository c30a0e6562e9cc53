"""Log-probs of stored responses by position, beyond the trained length, with and without YaRN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from polaris_jax.assemble import evaluation_problems
from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.data.prompts import prompt_format
from polaris_jax.measure.policy import with_decided_dtype
from polaris_jax.measure.respond import Variant
from polaris_jax.measure.responses import ids_of
from polaris_jax.measure.solve import drawn_once
from polaris_jax.measure.weights import Weights
from polaris_jax.models import Decoder, RopeScaling, token_logprobs
from polaris_jax.report.evaluations import positions_figure
from polaris_jax.run.owner import command_owns, tag_prefix
from polaris_jax.run.record import with_recorded_defaults
from polaris_jax.run.workdir import ensure_workdir, write_json
from polaris_jax.system import processes
from polaris_jax.system.foreign import bounded_lines, open_regular, parse_json
from polaris_jax.system.progress import Progress

POINTS = 16  # points of the curve up to the trained length
PADDED = 256  # sequence lengths are rounded up to a multiple, so that few programs are compiled


def positions(
    config: RunConfig,
    workdir: epath.Path,
    *,
    progress: Progress,
    checkpoint: str = "",
    tag: str = "",
    responses: int = 32,
) -> dict[str, Any]:
    """Mean log-prob of response tokens by position -> positions.json, positions.png.

    Reads what `evaluate` has sampled, the longest responses, and computes the log-probs of their
    tokens at temperature 1 without rope.yarn, with it, and with each of
    `evaluate.attention_factors`. Responses that were sampled without YaRN favour the model without
    it where it still works; beyond the trained length its log-probs fall.

    Args:
        config: the run.
        workdir: where `evaluate` left responses.jsonl, or responses_yarn.jsonl; gets the files.
        progress: gets lines and bars for a person.
        checkpoint: "" is the base model, "latest" the workdir's newest checkpoint, else a path.
        tag: the tag of the evaluation, put before the file names.
        responses: number of responses, the longest ones.

    Returns:
        The content of positions.json.

    Raises:
        ConfigError: there are no stored responses with token ids, or no such checkpoint.
    """
    if responses < 1:
        raise ConfigError(f"--responses={responses}: must be at least 1")
    config = with_recorded_defaults(workdir, config, progress.line, sections=("model",))
    weights = Weights.of(workdir, checkpoint)
    config = with_decided_dtype(config, weights, progress.line)
    ensure_workdir(workdir)
    prefix = tag_prefix(tag)
    source, rows = _longest(workdir, prefix, responses)
    by_id = {problem.id: problem for problem in evaluation_problems(config, progress)[0]}
    rows = [row for row in rows if row["problem_id"] in by_id]
    if not rows:
        raise ConfigError(
            f"{source}: none of its problems is in evaluate.problems={config.evaluate.problems}; "
            "name the set that it was sampled on"
        )
    writes = ["positions.json", "positions.png"]
    primary = processes.is_first()
    with command_owns(workdir, "positions", writes=writes, primary=primary, tag=tag) as ownership:
        model, tokenizer = weights.load(config, workdir, progress), weights.describe(config)[1]
        drawn = drawn_once(
            [by_id[row["problem_id"]] for row in rows],
            prompt_format(config.data),
            tokenizer=tokenizer,
        )
        sequences = [
            (len(group.prompt), (*group.prompt, *(ids_of(row) or ())))
            for group, row in zip(drawn, rows, strict=True)
        ]
        trained = config.rope.yarn.original_max_position_embeddings
        width = max(1, trained // POINTS)
        dtype = jnp.dtype(config.model.arithmetic)
        model = Decoder.from_params(
            model.config, {path: value.astype(dtype) for path, value in model.params().items()}
        )
        variants = _variants(config)
        with progress.phase("positions", len(variants) * len(sequences)) as phase:
            curves = []
            for variant in variants:
                scaling = variant.rope_scaling(config)
                scaled = variant.of((model, tokenizer))[0]
                scaled = scaled if scaling is None else scaled.with_rope_scaling(scaling)
                name = _name(variant, config, scaled.config.rope_scaling)
                curves.append({"name": name} | _curve(scaled, sequences, width))
                phase.advance_to(len(curves) * len(sequences))
        summary = {
            "source": source.name,
            "checkpoint": weights.name,
            "responses": len(sequences),
            "trained_length": trained,
            "yarn_factor": config.rope.yarn.factor,
            "width": width,
            "curves": curves,
        }
        if primary:
            ownership.check()
            write_json(workdir / f"{prefix}positions.json", summary)
            positions_figure(summary, workdir / f"{prefix}positions.png")
    for curve in curves:
        inside, beyond = (_mean(curve, width, trained, far=far) for far in (False, True))
        more = "none reaches it" if beyond is None else f"{beyond:.3f} beyond"
        shown = "-" if inside is None else f"{inside:.3f}"
        progress.line(
            f"{curve['name']}: {shown} nats a token up to the trained length of {trained:,} "
            f"tokens, {more}"
        )
    return summary


def _longest(
    workdir: epath.Path, prefix: str, count: int
) -> tuple[epath.Path, list[dict[str, Any]]]:
    """The file and its longest rows; of equal lengths the first."""
    names = [f"{prefix}responses{suffix}.jsonl" for suffix in ("", "_yarn")]
    path = next((workdir / name for name in names if (workdir / name).exists()), None)
    if path is None:
        raise ConfigError(
            f"--workdir={workdir}: has no {names[0]}; run `polaris evaluate` first, with the same "
            "--tag"
        )
    rows: list[dict[str, Any]] = []
    with open_regular(path) as file:
        for number, line in bounded_lines(file):
            row = parse_json(line or b"", where=f"{path}:{number}", strict=False)
            if isinstance(row.get("token_ids"), str) and isinstance(row.get("tokens"), int):
                rows.append({name: row[name] for name in ("problem_id", "tokens", "token_ids")})
                rows = sorted(rows, key=lambda r: -r["tokens"])[:count]
    if not rows:
        raise ConfigError(
            f"{path}: has no token ids, as in versions before them; run `polaris evaluate` anew "
            "with another evaluate.seed or --tag"
        )
    return path, rows


def _variants(config: RunConfig) -> list[Variant]:
    """Without YaRN, with it, and with each further attention factor."""
    plain = Variant(drops_own=config.evaluate.own_rope == "drop")
    if config.rope.yarn.factor <= 1:
        return [plain]
    factors = config.evaluate.attention_factors
    return [plain, Variant(yarn=True), *(Variant(True, factor) for factor in factors)]


def _name(variant: Variant, config: RunConfig, scaling: RopeScaling | None) -> str:
    """What a curve is called; `scaling` is the rotary scaling that it was computed under."""
    if not variant.yarn:
        return "without YaRN" if scaling is None else f"its own {scaling.rope_type} scaling"
    yarn = variant.config(config).rope.yarn
    return f"YaRN x {yarn.factor:g}, attention {yarn.attention_factor:g}"


@jax.jit
def _score(model: Decoder, token_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    position_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)
    return token_logprobs(model, token_BT, position_BT)


def _curve(
    model: Decoder, sequences: Sequence[tuple[int, tuple[int, ...]]], width: int
) -> dict[str, list[Any]]:
    """Means in windows of `width` positions: log-prob, its standard error, entropy, tokens.

    Args:
        model: the model under its rotary scaling.
        sequences: (tokens of the prompt, prompt and response).
        width: tokens of a window; a token is in the window of its own position.
    """
    windows = -(-max(len(ids) for _, ids in sequences) // width)
    count_RW, logp_RW, entropy_RW = (np.zeros((len(sequences), windows)) for _ in range(3))
    for row, (prompt, ids) in enumerate(sequences):
        padded = -(-len(ids) // PADDED) * PADDED
        token_BT = np.zeros((1, padded), np.int32)
        token_BT[0, : len(ids)] = ids  # what follows changes nothing before it
        logp_BT, entropy_BT = (np.asarray(x, np.float64) for x in _score(model, token_BT))
        at = np.arange(prompt, len(ids))
        for total_RW, value_T in (
            (count_RW, np.ones(len(at))),
            (logp_RW, logp_BT[0, at - 1]),
            (entropy_RW, entropy_BT[0, at - 1]),
        ):
            total_RW[row] = np.bincount(at // width, value_T, minlength=windows)
    tokens_W = count_RW.sum(axis=0)
    known_W = tokens_W > 0
    mean_W = np.divide(logp_RW.sum(axis=0), tokens_W, where=known_W, out=np.zeros(windows))
    entropy_W = np.divide(entropy_RW.sum(axis=0), tokens_W, where=known_W, out=np.zeros(windows))
    # Error of a ratio, over responses: tokens of one response are alike.
    residual_RW = logp_RW - mean_W * count_RW
    seen_W = (count_RW > 0).sum(axis=0)
    spread_W = np.sqrt((residual_RW**2).sum(axis=0) * seen_W / np.maximum(1, seen_W - 1))
    error_W = np.divide(spread_W, tokens_W, where=known_W, out=np.zeros(windows))
    return {
        "position": [(w + 0.5) * width for w in range(windows)],
        "logprob": [float(x) if ok else None for x, ok in zip(mean_W, known_W, strict=True)],
        "stderr": [float(x) if n > 1 else None for x, n in zip(error_W, seen_W, strict=True)],
        "entropy": [float(x) if ok else None for x, ok in zip(entropy_W, known_W, strict=True)],
        "tokens": [int(n) for n in tokens_W],
        "responses": [int(n) for n in seen_W],
    }


def _mean(curve: Mapping[str, Any], width: int, trained: int, *, far: bool) -> float | None:
    """Mean log-prob of the windows beyond the trained length, or up to it; None if none is."""
    pairs = [
        (value, count)
        for at, value, count in zip(
            curve["position"], curve["logprob"], curve["tokens"], strict=True
        )
        if count and (at - width / 2 >= trained) == far
    ]
    total = sum(count for _, count in pairs)
    return sum(value * count for value, count in pairs) / total if total else None
