"""The config's sections: every setting, declared once.

A declaration has the field's type, default, help and range, whether a resume may change it, and the
value that earlier versions had (`settings.Setting` explains each). Rules over several fields are
functions in `rules`. `data` declares problems, prompts and warm start, `training` what a step of
training computes, this file the rest.
docs/config.md and --help are made from both. Functions elsewhere take their section, never the
complete config.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Literal

from polaris_jax.config.data import DataSection, WarmstartSection
from polaris_jax.config.rollout import RolloutSection
from polaris_jax.config.settings import YES, Setting, declared_sections, setting
from polaris_jax.config.training import (
    BatchSection,
    ModelSection,
    ObjectiveSection,
    OptimizerSection,
    StageSection,
)

# Limits that other packages import from here.
MIN_WORKER_MEMORY_BYTES = 1 << 26  # limit of reward.memory_limit_bytes: a worker needs this to load
MAX_ANSWER_TIMEOUT_S = 86_400.0  # limit of reward.timeout_s: timers overflow far above it
MIN_PROBE_STEP = 0.001  # closer temperatures sample nearly alike and measure the same


@dataclasses.dataclass(frozen=True)
class RewardSection:
    """How responses are graded."""

    workers: int = setting(2, "Grader processes.", above=0, resume=YES)
    timeout_s: float = setting(
        5.0,
        "Deadline of one answer, in seconds.",
        above=0,
        at_most=MAX_ANSWER_TIMEOUT_S,
        rule=f"the deadline of one answer, above 0 and at most {MAX_ANSWER_TIMEOUT_S:g} (a day); "
        "set it in that range, such as to 5.0",
    )
    memory_limit_bytes: int = setting(
        1 << 30,
        "Address space of one worker; 0: no limit.",
        at_least=MIN_WORKER_MEMORY_BYTES,
        also=0,
        rule=f"a worker needs {MIN_WORKER_MEMORY_BYTES} to load; set it to that or more, or to 0 "
        "for no limit",
    )
    mode: Literal["train", "eval"] = setting(
        "train",
        "train: the answer must follow </think>. eval: the last box anywhere, for models without "
        "tags.",
    )
    control: Literal["none", "permute", "foreign_golds"] = setting(
        "none",
        "Control experiments, from which nothing can be learned. permute: shuffles rewards within "
        "each group. foreign_golds: each training problem gets another problem's gold and other "
        "columns.",
    )
    function: str = setting(
        "",
        "A reward function: file.py:name or package.module:name; several with weights as "
        "a.py:f*0.8,b.py:g*0.2; empty: the math grader. See docs/howto/reward.md.",
        before="",
        usual="custom_reward_function.path custom_reward_function.name reward_funcs",
    )
    correct_at: float = setting(
        1.0,
        "A response counts as correct from this reward on.",
        above=0,
        at_most=1,
        rule="the reward from which a response counts as correct, above 0 and at most 1; set it "
        "to 1.0, or lower for a reward that grades in parts",
        before=1.0,
    )


@dataclasses.dataclass(frozen=True)
class CalibrateSection:
    """`polaris calibrate`: how hard each problem is for the model."""

    n: int = setting(8, "Responses to each problem.", above=0)
    temperature: float = setting(0.6, "Sampling temperature.", above=0)
    max_response_tokens: int = setting(0, "Longest response; 0: the first stage's.", at_least=0)
    preset: Literal["full", "drop_perfect", "aggressive", "range"] = setting(
        "drop_perfect",
        "Problems that stay: all, those not always solved, those solved in at most half of the "
        "responses, or those whose pass rate lies in [min_rate, max_rate].",
    )
    min_rate: float = setting(
        0.0, "Lowest pass rate that preset=range keeps.", at_least=0, at_most=1, before=0.0
    )
    max_rate: float = setting(
        1.0, "Highest pass rate that preset=range keeps.", at_least=0, at_most=1, before=1.0
    )
    problems: int = setting(
        0,
        "Problems that are sampled, drawn by the seed; the others are in neither of the files that "
        "it leaves. 0: all.",
        at_least=0,
        before=0,
    )
    keep_responses: bool = setting(
        False, "Keep the responses, in the workdir's calibrate_responses/.", resume=YES
    )
    batch_prompts: int = setting(64, "Prompts between two saves.", above=0)


@dataclasses.dataclass(frozen=True)
class ProbeSection:
    """`polaris probe` and temperature resets: a sweep over temperatures."""

    start: float = setting(0.2, "Lowest temperature.", above=0, former=(0.1,))
    stop: float = setting(1.7, "Highest temperature; the sweep needs three or more.")
    step: float = setting(
        0.15,
        "Distance of two temperatures.",
        at_least=MIN_PROBE_STEP,
        rule=f"temperatures must lie at least {MIN_PROBE_STEP} apart; set it to that or more, such "
        "as to 0.1",
        former=(0.1,),
    )
    temperatures: tuple[float, ...] = setting(
        (),
        "The temperatures in place of start, stop and step; three or more, ascending.",
        above=0,
        before=[],
    )
    refine: int = setting(
        2,
        "Temperatures added halfway to the next one at the borders of the robust and the "
        "exploration zone, at most; none closer than 0.05 to another.",
        at_least=0,
        at_most=16,
        before=0,
    )
    problems: int = setting(64, "Problems that are sampled.", above=0)
    n: int = setting(32, "Responses to each problem at each temperature.", above=0, former=(16,))
    max_response_tokens: int = setting(0, "Longest response; 0: the first stage's.", at_least=0)
    rgz_share: float = setting(
        0.03,
        "Loss inside the robust generation zone, as a share of the best accuracy.",
        at_least=0,
        at_most=1,
        before=0.03,
    )
    cez_share: float = setting(
        0.14,
        "Loss inside the controlled exploration zone, as a share of the best accuracy; at least "
        "rgz_share.",
        at_least=0,
        at_most=1,
        before=0.14,
    )
    rgz_tolerance: float = setting(
        0.0,
        "The robust zone's loss in points of accuracy, as earlier versions had it; 0: rgz_share.",
        at_least=0,
        former=(0.02,),
    )
    cez_tolerance: float = setting(
        0.0,
        "The exploration zone's loss in points of accuracy, as earlier versions had it; 0: "
        "cez_share.",
        at_least=0,
        former=(0.10,),
    )
    max_candidates: int = setting(
        10,
        "Temperatures tried in a reset between stages, at most; the reset tries no more once one "
        "reaches the target.",
        above=0,
        former=(5,),
    )


@dataclasses.dataclass(frozen=True)
class GuardsSection:
    """Limits of a run; passing one prints a warning, or ends the run if `stop` names the guard.

    The guards are uninformative, zero_reward, entropy, length, clip and grader.
    rollout.max_logp_gap_mean and optimizer.max_skips always end the run.
    """

    stop: str = setting("", "Guards that end the run, separated by commas; the others warn.")
    uninformative_steps: int = setting(
        5, "Steps in a row that no group informs, or without an update; 0: off.", at_least=0
    )
    zero_reward_steps: int = setting(
        5, "Steps in a row in which every reward is 0; 0: off.", at_least=0
    )
    steps: int = setting(
        3, "Steps in a row for entropy, length and clip; 0: all three off.", at_least=0
    )
    entropy_low: float = setting(
        0.1, "Share of the entropy of the stage's first steps; 0: off.", at_least=0, below=1
    )
    entropy_high: float = setting(
        5.0, "Multiple of the entropy of the stage's first steps; 0: off.", at_least=1, also=0
    )
    length_growth: float = setting(
        3.0, "Multiple of the mean length of the stage's first steps; 0: off.", at_least=1, also=0
    )
    clip_ratio: float = setting(
        0.9, "Share of responses that the budget ends; 0: off.", at_least=0, at_most=1
    )
    grader_failures: float = setting(
        0.05, "Share of a step's answers whose grading failed; 0: off.", at_least=0, at_most=1
    )


@dataclasses.dataclass(frozen=True)
class CheckpointSection:
    """When checkpoints are saved, and how many are kept."""

    every_steps: int = setting(
        10, "Steps between two checkpoints.", above=0, usual="save_steps save_freq"
    )
    keep_last: int = setting(
        2, "Checkpoints kept.", above=0, usual="save_total_limit max_actor_ckpt_to_keep"
    )
    grace_s: float = setting(25.0, "Seconds that a stop may take to save.", above=0)


@dataclasses.dataclass(frozen=True)
class EvaluateSection:
    """`polaris evaluate`, and the held-out score during training.

    The held-out score is graded in mode "eval", whatever reward.mode is. Its budget is
    max_response_tokens in every stage.
    """

    problems: str = setting(
        "",
        "A source like data.problems, or several, pooled, as in aime24+aime25; empty: the problems "
        "of data.arithmetic.held_out.",
        usual="val_files eval_dataset",
    )
    every_steps: int = setting(
        0,
        "Steps between held-out scores during training; 0: none.",
        at_least=0,
        usual="eval_steps test_freq",
    )
    n: int = setting(8, "Responses to each problem.", above=0, usual="val_kwargs.n")
    temperature: float = setting(0.6, "Sampling temperature; 0: greedy.", at_least=0)
    top_k: int = setting(0, "Samples from the k likeliest tokens; 0: off.", at_least=0)
    top_p: float = setting(
        1.0, "Samples from the likeliest tokens of this total; 1.0: off.", above=0, at_most=1
    )
    max_response_tokens: int = setting(0, "Longest response; 0: the last stage's.", at_least=0)
    length_edges: tuple[int, ...] = setting(
        (16_384, 32_768), "Ascending lengths, in tokens, that divide the length groups.", at_least=1
    )
    budgets: tuple[int, ...] = setting(
        (), "Ascending tokens at which the budget curve truncates; (): powers of two.", at_least=1
    )
    seed: int = setting(0, "Any integer; hashed before use.")
    yarn: Literal["off", "on", "both"] = setting(
        "off", "on: with rope.yarn. off: without. both: one after the other."
    )
    attention_factors: tuple[float, ...] = setting(
        (),
        "Further rope.yarn.attention_factor to evaluate under, one after the other; 1.0405 is what "
        "serving software makes of factor 1.5. Needs yarn=on or both.",
        above=0,
    )
    own_rope: Literal["keep", "drop"] = setting(
        "keep",
        "drop: without rope.yarn a checkpoint is evaluated without the rotary scaling of its own "
        "config.json or stage, too. keep: with it.",
    )
    force_answer_tokens: int = setting(
        0,
        "Budget forcing: a response that the budget cut is closed with </think> and "
        "force_answer_text and continued for this many tokens; scored beside the others. 0: off.",
        at_least=0,
    )
    force_answer_text: str = setting(
        "The final answer is \\boxed{", "The beginning of a forced answer, after </think>."
    )
    beside: Literal["none", "blog"] = setting(
        "none", "blog: the scores of the POLARIS blog's table beside ours, on its benchmarks."
    )


@dataclasses.dataclass(frozen=True)
class MeshSection:
    """The trainer's mesh: the product of its axes is the number of training devices."""

    data: int = setting(
        1,
        "Shards of parameters and batch, as fsdp: an axis of its own for the outer links, which "
        "each layer's gather crosses too.",
        at_least=1,
    )
    fsdp: int = setting(
        -1,
        "Shards of parameters and batch; -1: all devices that are left.",
        at_least=1,
        also=-1,
        rule="must be at least 1, or -1 for the rest",
    )
    context: int = setting(
        1, "Parts of each sequence.", at_least=1, usual="ulysses_sequence_parallel_size"
    )
    tensor: int = setting(1, "Parts of each layer's heads and MLP.", at_least=1)


@dataclasses.dataclass(frozen=True)
class YarnSection:
    """YaRN beyond the trained length, for stages and for evaluation."""

    factor: float = setting(
        1.5, "Factor in evaluation; 1.0: off.", at_least=1, rule="must be 1.0 (off) or more"
    )
    original_max_position_embeddings: int = setting(
        32_768, "Length that the checkpoint was trained for (32,768 for Qwen3)."
    )
    attention_factor: float = setting(
        1.0,
        "Factor of the rotary sines and cosines; 1.0 leaves attention as it is.",
        above=0,
        rule="must be above 0; 1.0 leaves attention as it is",
    )
    beta_fast: float = setting(32.0, "Rotations above which a frequency stays; above beta_slow.")
    beta_slow: float = setting(1.0, "Rotations below which a frequency is interpolated.", above=0)


@dataclasses.dataclass(frozen=True)
class RopeSection:
    """Rotary embeddings."""

    yarn: YarnSection = setting(YarnSection())


@dataclasses.dataclass(frozen=True)
class MetricsSection:
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = setting(True, "Writes TensorBoard files.")
    wandb: bool = setting(False, "Logs to Weights & Biases.", usual="logger report_to")
    wandb_project: str = setting("polaris_jax", "Project there.", usual="project_name project")
    wandb_name: str = setting(
        "", "Name of the run there; empty: W&B makes one.", usual="experiment_name run_name"
    )
    wandb_group: str = setting("", "Group of the run there; empty: none.")
    wandb_tags: tuple[str, ...] = setting((), "Tags of the run there.")
    samples: int = setting(
        8,
        "Responses in the table of samples that TensorBoard and Weights & Biases get at every "
        "tenth step; 0: none.",
        at_least=0,
    )


@dataclasses.dataclass(frozen=True)
class DistributedSection:
    """Runs of several processes."""

    heartbeat_timeout_s: int = setting(
        100, "Seconds without a sign of life before a process counts as lost.", above=0
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Settings of the run itself."""

    seed: int = setting(0, "Any integer; hashed together with the name of each use.")
    model: ModelSection = setting(ModelSection())
    data: DataSection = setting(DataSection())
    warmstart: WarmstartSection = setting(WarmstartSection())
    rollout: RolloutSection = setting(RolloutSection())
    stages: tuple[StageSection, ...] = setting((StageSection(),))
    batch: BatchSection = setting(BatchSection())
    objective: ObjectiveSection = setting(ObjectiveSection())
    optimizer: OptimizerSection = setting(OptimizerSection())
    reward: RewardSection = setting(RewardSection())
    calibrate: CalibrateSection = setting(CalibrateSection())
    probe: ProbeSection = setting(ProbeSection())
    guards: GuardsSection = setting(GuardsSection(), resume=YES)
    checkpoint: CheckpointSection = setting(CheckpointSection(), resume=YES)
    evaluate: EvaluateSection = setting(EvaluateSection(), resume=YES)
    mesh: MeshSection = setting(MeshSection(), resume=YES)
    rope: RopeSection = setting(RopeSection())
    metrics: MetricsSection = setting(MetricsSection(), resume=YES)
    distributed: DistributedSection = setting(DistributedSection(), resume=YES)


SETTINGS: Mapping[str, Setting] = types.MappingProxyType(
    {field.name: field for section in declared_sections(RunConfig) for field in section.settings}
)
