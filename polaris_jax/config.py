"""The one config boundary: an `ml_collections.ConfigDict` in, frozen validated sections out.

`configs/*.py` start from `default_config()`, which is made from the dataclasses below, so a default
is written once. `build_config` turns a ConfigDict into a `RunConfig` and checks everything that can
be checked before a device or a weight file is touched. Every error is a `ConfigError` that names
the field, the value, the rule and the remedy.

Functions elsewhere take their section, never the whole config.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

PROMPT_SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."


class ConfigError(ValueError):
    """A bad config value; its text is one line for the user."""


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """Which weights, and how the trainer computes with them."""

    path: str = ""  # HF directory, Hub id, or GGUF file; empty: made by the warm start
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # compute; master weights are always float32
    attention: Literal["auto", "reference", "chunked"] = "auto"
    remat: Literal["none", "layer"] = "layer"
    max_position_tokens: int = 0  # prompt + response limit; 0: the checkpoint's own (x YaRN factor)


@dataclasses.dataclass(frozen=True)
class ArithmeticSection:
    """Procedural word problems (`data.problems="arithmetic"`)."""

    train: int = 1024
    held_out: int = 256
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class DataSection:
    problems: str = ""  # jsonl/json/parquet file, HF data set directory/name, or "arithmetic"
    prompt_suffix: str = PROMPT_SUFFIX
    max_prompt_tokens: int = 1024
    arithmetic: ArithmeticSection = ArithmeticSection()


@dataclasses.dataclass(frozen=True)
class WarmstartSection:
    """Supervised warm start that makes a base model on the spot; steps=0 turns it off."""

    steps: int = 0
    batch_size: int = 64
    learning_rate: float = 3e-3
    examples: int = 8192
    slip_rate: float = 0.3  # share of intermediate results that carry a slip
    seed: int = 0
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    max_position_tokens: int = 512


@dataclasses.dataclass(frozen=True)
class RolloutSection:
    prompts_per_step: int = 128
    responses_per_prompt: int = 8
    top_p: float = 1.0
    top_k: int = 0
    slots: int = 64
    page_size: int = 16
    num_pages: int = 0  # 0: enough for every slot at full length
    decode_steps: int = 16  # decode steps a device call
    prefill_chunk: int = 128  # prompt tokens a prefill call
    max_logp_gap_mean: float = 0.0  # stop the run above this mean |sampler - trainer|; 0: off
    save_every: int = 1  # write rollouts/step_N.jsonl every so many steps; 0: never


@dataclasses.dataclass(frozen=True)
class StageSection:
    steps: int = 100
    max_response_tokens: int = 39_936
    temperature: float = 1.4
    # fixed: `temperature`; probe: the workdir's probe.json; match_diversity: reset at the stage's
    # start so that diversity regains what it was at the former stage's start
    temperature_rule: Literal["fixed", "probe", "match_diversity"] = "fixed"
    reset_optimizer: bool = True
    drop_above: float = 0.9  # at the stage's end drop problems above; 1.0: off
    rope_factor: float = 1.0  # YaRN factor during this stage


@dataclasses.dataclass(frozen=True)
class BatchSection:
    row_len: int = 0  # tokens of a packed row; 0: max prompt + max response of the stages
    rows: int = 8  # packed rows of a microbatch (global)
    rescue: bool = True
    substitute: bool = True
    min_informative: float = 1.0 / 3.0
    on_scarce: Literal["train", "resample", "skip"] = "train"
    max_resample: int = 2


@dataclasses.dataclass(frozen=True)
class ObjectiveSection:
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 3.0  # 0: off
    old_logprobs: Literal["current", "recompute", "sampler"] = "current"
    tis_cap: float = 2.0
    minibatches: int = 1  # optimizer steps a rollout batch
    aggregation: Literal[
        "token_mean", "sequence_mean", "sequence_sum_constant", "microbatch_token_mean"
    ] = "token_mean"
    std: Literal["std", "off"] = "std"
    baseline: Literal["mean", "leave_one_out"] = "mean"
    mask_truncated: bool = False
    kl_coef: float = 0.0
    entropy_coef: float = 0.0


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    learning_rate: float = 1e-6
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_skips: int = 5  # consecutive non-finite updates before the run stops


@dataclasses.dataclass(frozen=True)
class RewardSection:
    workers: int = 2
    timeout_s: float = 5.0
    memory_limit_bytes: int = 1 << 30
    control: Literal["none", "permute"] = "none"  # permute: shuffle rewards in a group (ablation)


@dataclasses.dataclass(frozen=True)
class CalibrateSection:
    n: int = 8
    temperature: float = 0.6
    max_response_tokens: int = 0  # 0: the first stage's
    preset: Literal["full", "drop_perfect", "aggressive"] = "drop_perfect"
    batch_prompts: int = 64  # prompts between two saves


@dataclasses.dataclass(frozen=True)
class ProbeSection:
    start: float = 0.1
    stop: float = 1.7
    step: float = 0.1
    problems: int = 64
    n: int = 16
    max_response_tokens: int = 0  # 0: the first stage's
    rgz_tolerance: float = 0.02
    cez_tolerance: float = 0.10
    max_candidates: int = 5  # of a stage-end reset


@dataclasses.dataclass(frozen=True)
class CheckpointSection:
    every_steps: int = 10
    keep_last: int = 2
    grace_s: float = 25.0


@dataclasses.dataclass(frozen=True)
class EvaluateSection:
    problems: str = ""  # file, or "arithmetic" (its held-out part); empty: none
    every_steps: int = 0  # during training; 0: off
    n: int = 8
    temperature: float = 0.6
    top_k: int = 0
    top_p: float = 1.0
    max_response_tokens: int = 0  # 0: the last stage's
    length_edges: tuple[int, ...] = (16_384, 32_768)
    budgets: tuple[int, ...] = ()  # tokens at which the budget curve truncates; (): powers of two
    seed: int = 0
    yarn: bool = False  # evaluate under rope.yarn


@dataclasses.dataclass(frozen=True)
class MeshSection:
    data: int = 1
    fsdp: int = -1  # -1: all devices that the other axes leave
    context: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class YarnSection:
    factor: float = 1.5
    original_max_position_embeddings: int = 32_768
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclasses.dataclass(frozen=True)
class RopeSection:
    yarn: YarnSection = YarnSection()


@dataclasses.dataclass(frozen=True)
class MetricsSection:
    tensorboard: bool = True
    wandb: bool = False


@dataclasses.dataclass(frozen=True)
class DistributedSection:
    heartbeat_timeout_s: int = 100


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything a run is. See each section; names are the command line's."""

    seed: int = 0
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    warmstart: WarmstartSection = WarmstartSection()
    rollout: RolloutSection = RolloutSection()
    stages: tuple[StageSection, ...] = (StageSection(),)
    batch: BatchSection = BatchSection()
    objective: ObjectiveSection = ObjectiveSection()
    optimizer: OptimizerSection = OptimizerSection()
    reward: RewardSection = RewardSection()
    calibrate: CalibrateSection = CalibrateSection()
    probe: ProbeSection = ProbeSection()
    checkpoint: CheckpointSection = CheckpointSection()
    evaluate: EvaluateSection = EvaluateSection()
    mesh: MeshSection = MeshSection()
    rope: RopeSection = RopeSection()
    metrics: MetricsSection = MetricsSection()
    distributed: DistributedSection = DistributedSection()


# Fields that do not change what a run computes: free to differ between a run and its resume.
FREE_SECTIONS = ("metrics", "checkpoint", "evaluate", "distributed", "mesh")
FREE_FIELDS = ("reward.workers", "rollout.save_every")


def default_config() -> ConfigDict:
    """A locked ConfigDict of every default; the base of all files in configs/."""
    return lock(_to_config_dict(RunConfig()))


def stage(**fields: Any) -> ConfigDict:
    """One locked entry of `config.stages`."""
    return _to_config_dict(StageSection(**fields)).lock()


def lock(config: ConfigDict) -> ConfigDict:
    """Locks a config, its sections, and (what `lock()` leaves open) the dicts inside lists."""
    for value in config.values():
        if isinstance(value, ConfigDict):
            lock(value)
        elif isinstance(value, list | tuple):
            for item in value:
                if isinstance(item, ConfigDict):
                    lock(item)
    return config.lock()


def _to_config_dict(section: Any) -> ConfigDict:
    def convert(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return _to_config_dict(value)
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            return [convert(item) for item in value]
        return value

    return ConfigDict({f.name: convert(getattr(section, f.name)) for f in _fields(section)})


def _fields(section: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(section)


def build_config(config: Mapping[str, Any] | ConfigDict) -> RunConfig:
    """A checked `RunConfig` from a ConfigDict or a nested mapping.

    Raises:
        ConfigError: unknown field (the nearest name is suggested), wrong type, or a value that
            breaks a rule.
    """
    run: RunConfig = _build(RunConfig, config, "")
    validate(run)
    return run


def _build(cls: type, mapping: Any, path: str) -> Any:
    if not isinstance(mapping, Mapping | ConfigDict):
        raise ConfigError(f"{path or 'config'}={mapping!r}: expected a section with fields")
    hints = typing.get_type_hints(cls)
    for name in mapping:
        if name not in hints:
            raise ConfigError(unknown_field(f"{path}{name}", [f"{path}{n}" for n in hints]))
    return cls(**{name: _convert(hints[name], mapping[name], f"{path}{name}") for name in mapping})


def unknown_field(name: str, known: list[str]) -> str:
    """The error text for a misspelt field."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"{name}: there is no such field; did you mean {near[0] if near else known[0]}?"


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{path}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}={value!r}: expected a list")
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            choices = ", ".join(map(str, args))
            raise ConfigError(f"{path}={value!r}: expected one of {choices}")
        return value
    if isinstance(hint, types.UnionType):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(
            f"{path}={value!r}: expected {hint.__name__}, got {type(value).__name__}"
        )
    if hint is float and math.isnan(value):
        raise ConfigError(f"{path}={value!r}: not a number")
    return value


def _require(ok: bool, path: str, value: Any, rule: str) -> None:
    if not ok:
        raise ConfigError(f"{path}={value!r}: {rule}")


def validate(config: RunConfig) -> None:
    """Checks every rule that needs no file and no device.

    Raises:
        ConfigError: with field, value, rule and remedy.
    """
    r, b, o, opt = config.rollout, config.batch, config.objective, config.optimizer
    _require(
        r.responses_per_prompt >= 2,
        "rollout.responses_per_prompt",
        r.responses_per_prompt,
        "a group baseline needs at least 2 responses; set it to 2 or more, or use "
        "`polaris evaluate` for single samples",
    )
    _require(
        r.top_p == 1.0,
        "rollout.top_p",
        r.top_p,
        "training rollouts must sample from the whole distribution, or the kept mass enters the "
        "ratio; set it to 1.0 (evaluate.top_p is free)",
    )
    _require(
        r.top_k == 0,
        "rollout.top_k",
        r.top_k,
        "training rollouts must sample from the whole distribution; set it to 0 "
        "(evaluate.top_k is free)",
    )
    positive = {
        "rollout": "prompts_per_step slots page_size decode_steps prefill_chunk",
        "data": "max_prompt_tokens",
        "batch": "rows",
        "objective": "minibatches",
        "optimizer": "max_grad_norm max_skips eps",
        "reward": "workers timeout_s memory_limit_bytes",
        "calibrate": "n temperature batch_prompts",
        "probe": "start step problems n max_candidates",
        "checkpoint": "every_steps keep_last grace_s",
        "evaluate": "n",
        "distributed": "heartbeat_timeout_s",
    }
    for section, names in positive.items():
        for name in names.split():
            value = getattr(getattr(config, section), name)
            _require(value > 0, f"{section}.{name}", value, "must be above 0")
    not_negative = {
        "rollout": "num_pages max_logp_gap_mean save_every",
        "batch": "row_len max_resample",
        "model": "max_position_tokens",
        "objective": "clip_low clip_high tis_cap kl_coef entropy_coef dual_clip",
        "optimizer": "learning_rate weight_decay",
        "evaluate": "every_steps temperature top_k max_response_tokens",
        "warmstart": "steps",
    }
    for section, names in not_negative.items():
        for name in names.split():
            value = getattr(getattr(config, section), name)
            _require(value >= 0, f"{section}.{name}", value, "must not be negative")
    _require(0 <= opt.b1 < 1, "optimizer.b1", opt.b1, "must lie in [0, 1)")
    _require(0 <= opt.b2 < 1, "optimizer.b2", opt.b2, "must lie in [0, 1)")
    _require(0 <= b.min_informative <= 1, "batch.min_informative", b.min_informative, "in [0, 1]")
    _require(
        o.dual_clip == 0 or o.dual_clip > 1 + o.clip_high,
        "objective.dual_clip",
        o.dual_clip,
        "must exceed 1 + objective.clip_high, or be 0 to turn it off",
    )
    _require(
        o.minibatches == 1 or o.old_logprobs != "current",
        "objective.minibatches",
        o.minibatches,
        "several updates a batch need fixed old log-probs; set objective.old_logprobs=recompute "
        "or sampler",
    )
    _require(
        r.prompts_per_step * r.responses_per_prompt % o.minibatches == 0,
        "objective.minibatches",
        o.minibatches,
        "must divide rollout.prompts_per_step x rollout.responses_per_prompt",
    )
    _require(0 < config.evaluate.top_p <= 1, "evaluate.top_p", config.evaluate.top_p, "in (0, 1]")
    _require(bool(config.stages), "stages", [], "at least one stage is needed")
    for i, s in enumerate(config.stages):
        path = f"stages[{i}]"
        _require(s.steps >= 1, f"{path}.steps", s.steps, "must be at least 1")
        _require(
            s.max_response_tokens >= 1, f"{path}.max_response_tokens", s.max_response_tokens, ">= 1"
        )
        _require(
            s.temperature > 0,
            f"{path}.temperature",
            s.temperature,
            "training samples at a temperature above 0; greedy rollouts have no diversity",
        )
        _require(0 <= s.drop_above <= 1, f"{path}.drop_above", s.drop_above, "must lie in [0, 1]")
        _require(s.rope_factor >= 1, f"{path}.rope_factor", s.rope_factor, "must be at least 1")
        _require(
            s.temperature_rule != "match_diversity" or i > 0,
            f"{path}.temperature_rule",
            s.temperature_rule,
            "needs a stage before it; use fixed or probe in the first stage",
        )
        needed = config.data.max_prompt_tokens + s.max_response_tokens
        limit = config.model.max_position_tokens
        _require(
            limit == 0 or needed <= limit,
            f"{path}.max_response_tokens",
            s.max_response_tokens,
            f"with data.max_prompt_tokens={config.data.max_prompt_tokens} a sequence may reach "
            f"{needed} positions, over model.max_position_tokens={limit}; lower the budget or "
            "raise the limit",
        )
        _require(
            b.row_len == 0 or needed <= b.row_len,
            "batch.row_len",
            b.row_len,
            f"a sequence of stage {i} may reach {needed} tokens; set it to 0 or to at least that",
        )
    e, limit = config.evaluate, config.model.max_position_tokens
    needed = config.data.max_prompt_tokens + e.max_response_tokens
    _require(
        limit == 0 or needed <= limit or e.yarn,
        "evaluate.max_response_tokens",
        e.max_response_tokens,
        f"a sequence may reach {needed} positions, over model.max_position_tokens={limit}; lower "
        "the budget, raise the limit, or set evaluate.yarn=True",
    )
    _require(
        all(a < b for a, b in zip(e.length_edges, e.length_edges[1:], strict=False)),
        "evaluate.length_edges",
        e.length_edges,
        "must ascend",
    )


def row_len_tokens(config: RunConfig) -> int:
    """Tokens of a packed row: batch.row_len, or the longest sequence any stage allows."""
    longest = max(stage.max_response_tokens for stage in config.stages)
    return config.batch.row_len or config.data.max_prompt_tokens + longest


def config_fields(config: RunConfig) -> dict[str, Any]:
    """Every leaf as dotted name -> value, e.g. `stages[0].steps` -> 100."""
    leaves: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                walk(item, f"{path}.{name}" if path else name)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            for i, item in enumerate(value):
                walk(item, f"{path}[{i}]")
        else:
            leaves[path] = list(value) if isinstance(value, tuple) else value

    walk(dataclasses.asdict(config), "")
    return leaves


def binding_fields(config: RunConfig) -> dict[str, Any]:
    """The leaves that a resume may not change.

    Free: logging, checkpoint cadence, workers, evaluation, device mesh, and the length of the last
    stage (it may grow; `cli` checks the direction against the checkpoint).
    """
    last_steps = f"stages[{len(config.stages) - 1}].steps"
    return {
        name: value
        for name, value in config_fields(config).items()
        if name.split(".")[0] not in FREE_SECTIONS
        and name not in FREE_FIELDS
        and name != last_steps
    }


def config_hash(config: RunConfig) -> str:
    """16 hex digits over `binding_fields`: equal for runs that may share a workdir."""
    text = json.dumps(binding_fields(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
