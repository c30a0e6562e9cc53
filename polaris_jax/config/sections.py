"""The config's sections: frozen dataclasses that hold every setting's name, type and default.

A default is written once, here. `polaris_jax.config` builds and checks the sections; `rules` holds
the rules. Functions elsewhere take their section, never the complete config.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

# Limits that other packages import from here.
MAX_SLIP_RATE = 0.6  # limit of warmstart.slip_rate: the rate if every result of a text may slip
MIN_WORKER_MEMORY_BYTES = 1 << 26  # limit of reward.memory_limit_bytes: a worker needs this to load
MAX_ANSWER_TIMEOUT_S = 86_400.0  # limit of reward.timeout_s: timers overflow far above it
SEED_LIMIT = 1 << 63  # limit of seeds that go into generators unhashed

PROMPT_SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."


class ConfigError(ValueError):
    """A bad config value; its text is one line for the user."""


def require(ok: bool, path: str, value: object, rule: str) -> None:
    """Raises ConfigError if `ok` is false.

    Args:
        ok: True if the rule holds.
        path: name of the field.
        value: value of the field.
        rule: text of the rule and of the remedy.

    Raises:
        ConfigError: `ok` is false. The text names the field, its value and the rule.
    """
    if not ok:
        raise ConfigError(f"{path}={value!r}: {rule}")


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """Which weights, and how the trainer computes with them."""

    path: str = ""  # HF directory, Hub id, or GGUF file; empty: made by the warm start
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # compute; master weights are always float32
    attention: Literal["auto", "reference", "chunked", "splash", "triton", "cudnn"] = "auto"
    # kept for the backward pass: everything, each layer's input, or these inputs in host memory
    remat: Literal["none", "layer", "layer_offload"] = "layer"
    max_position_tokens: int = 0  # prompt + response limit; 0: the checkpoint's own (x YaRN factor)


@dataclasses.dataclass(frozen=True)
class ArithmeticSection:
    """Procedural word problems, taken when `data.problems` is empty; train=0 turns them off."""

    train: int = 0
    held_out: int = 0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class DataSection:
    problems: str = (
        ""  # jsonl, json, parquet, HF data set directory or name; empty: see data.arithmetic
    )
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
    slip_rate: float = 0.3  # share of intermediate results that carry a slip, up to MAX_SLIP_RATE
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
    num_pages: int = 0  # 0: every slot at full length, or as far as device memory goes
    reserve: float = 0.1  # with num_pages=0, share of device memory left free beside the pool
    data: int = 0  # the sampler's mesh on a process's devices; 0: all (1 on a CPU)
    tensor: int = 1  # devices that share one copy of the sampler's weights
    processes: int = 1  # processes that share a sampler, for a model too large for one host
    # the last devices of each process, which only sample; the others train; 0: all do both
    devices: int = 0
    # where master weights and moments lie during sampling; host: pinned memory, fetched for each
    # update
    trainer_state: Literal["device", "host"] = "device"
    # decode kernels: xla anywhere, ragged on TPU, pallas_gpu on GPU, native on a CPU with a C++
    # compiler; auto: the platform's own kernel if it can be used
    attention: Literal["auto", "xla", "ragged", "pallas_gpu", "native"] = "auto"
    decode_steps: int = 16  # decode steps in a device call
    prefill_chunk: int = 128  # prompt tokens in a prefill call
    prefill_budget: int = 8192  # prompt tokens between two decode calls; 0: no limit
    prefix_cache: bool = True  # full pages are reused by later prompts with equal beginnings
    # wait: a step trains on all groups that it has begun. carry: a step begins more groups, ends
    # when `partial_share` of its groups are complete, and the next step continues the others
    partial_rollouts: Literal["wait", "carry"] = "wait"
    partial_share: float = 0.8  # under carry; in [0.5, 1]
    partial_max_lag: int = 2  # under carry: updates between a token's policy and the trained one
    max_logp_gap_mean: float = 0.0  # stop the run above this mean |sampler - trainer|; 0: off
    total_tokens: int = 0  # end the run after this number of sampled tokens (ablations); 0: off
    save_every: int = 1  # steps from one rollouts/step_N.jsonl to the next; 0: never write


@dataclasses.dataclass(frozen=True)
class StageSection:
    steps: int = 100
    max_response_tokens: int = 39_936
    temperature: float = 1.4
    # fixed: `temperature`; probe: the workdir's probe.json (if there is none: `temperature`, with a
    # warning); match_diversity: reset at the stage's start so that diversity regains its value of
    # the former stage's start
    temperature_rule: Literal["fixed", "probe", "match_diversity"] = "fixed"
    reset_optimizer: bool = True
    drop_above: float = 0.9  # drop problems above this accuracy at the stage's end; 1.0: off
    drop_statistic: Literal["stage_mean", "last"] = "stage_mean"
    rope_factor: float = 1.0  # YaRN factor during this stage
    evaluate_temperature: float = 0.0  # for the held-out score while training; 0: evaluate's


@dataclasses.dataclass(frozen=True)
class BatchSection:
    # tokens in a packed row; 0: max prompt + max response of the stages, rounded up to a multiple
    # that the mesh divides
    row_len: int = 0
    rows: int = 0  # packed rows in a microbatch (global); 0: one for each data x fsdp shard
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
    minibatches: int = 1  # optimizer steps for each rollout batch
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
    # bfloat16 halves the moments' memory and departs from the recipe: the second moment is rounded
    # stochastically, because it would never fall otherwise
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    moments_in_host_memory: bool = False  # between updates; each update fetches 8 B a parameter


@dataclasses.dataclass(frozen=True)
class RewardSection:
    workers: int = 2
    timeout_s: float = 5.0
    memory_limit_bytes: int = 1 << 30  # address space of one worker; 0: no limit
    # train: the answer must follow </think>; eval: the last box anywhere, for models without tags
    mode: Literal["train", "eval"] = "train"
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
    max_candidates: int = 5  # in a temperature reset at a stage end


@dataclasses.dataclass(frozen=True)
class CheckpointSection:
    every_steps: int = 10
    keep_last: int = 2
    grace_s: float = 25.0


@dataclasses.dataclass(frozen=True)
class EvaluateSection:
    problems: str = ""  # a source like data.problems; empty: data.arithmetic.held_out
    # Steps between held-out scores during training; 0: off. The score is graded in mode "eval",
    # whatever reward.mode is. The budget in every stage is max_response_tokens below, by default
    # the last stage's.
    every_steps: int = 0
    n: int = 8
    temperature: float = 0.6
    top_k: int = 0
    top_p: float = 1.0
    max_response_tokens: int = 0  # 0: the last stage's
    length_edges: tuple[int, ...] = (16_384, 32_768)
    budgets: tuple[int, ...] = ()  # tokens at which the budget curve truncates; (): powers of two
    seed: int = 0
    yarn: Literal["off", "on", "both"] = (
        "off"  # on: with rope.yarn; off: without it; both: one after the other
    )


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
    """All settings of a run. Field names are those of the command line."""

    seed: int = 0  # any integer: hashed together with the name of its use
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
