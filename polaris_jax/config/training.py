"""The sections that decide what a step of training computes (`sections` has the others)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from polaris_jax.config.settings import GROWS, YES, setting


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """Which weights to train, and how the trainer computes with them."""

    path: str = setting(
        "",
        "Hugging Face directory, Hub id or GGUF file; empty: made by the warm start.",
        usual="model_name model_name_or_path pretrained_model_name_or_path",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "Type of the trainer's arithmetic and of the sampler's weights and pages; master weights "
        "are always float32. auto: bfloat16, but float32 on a CPU whose sampler would have no "
        "kernels for it. run.json records the choice, and a resume keeps it.",
        former=("bfloat16", "float32"),  # the second: what auto became on another machine
        usual="torch_dtype bf16 fp16",
    )
    attention: Literal["auto", "reference", "chunked", "splash", "triton", "cudnn"] = setting(
        "auto", "Attention back end of the trainer; auto: the fastest that the platform allows."
    )
    remat: Literal["none", "layer", "layer_offload"] = setting(
        "layer",
        "Kept for the backward pass: everything (none), each layer's input, or these inputs in "
        "host memory.",
        resume=YES,
        usual="gradient_checkpointing enable_gradient_checkpointing",
    )
    max_position_tokens: int = setting(
        0,
        "Limit of prompt and response together; 0: the checkpoint's own (times the YaRN factor).",
        at_least=0,
        usual="max_model_len",
    )

    @property
    def arithmetic(self) -> str:
        """`dtype` without auto, which is bfloat16 here.

        A start on a CPU has put float32 in place of auto before, if it must
        (`rollout.samplers.with_dtype`).
        """
        return "bfloat16" if self.dtype == "auto" else self.dtype


@dataclasses.dataclass(frozen=True)
class StageSection:
    """One stage of training. A run has one or more, numbered from 0: `stages[0]`."""

    steps: int = setting(
        100,
        "Updates in this stage, at most.",
        at_least=1,
        resume=GROWS,
        usual="max_steps total_training_steps total_epochs num_train_epochs",
    )
    max_response_tokens: int = setting(
        39_936,
        "Longest response.",
        at_least=1,
        usual="max_new_tokens max_tokens max_completion_length max_response_length",
    )
    temperature: float = setting(
        1.4,
        "Sampling temperature.",
        above=0,
        rule="training samples at a temperature above 0; greedy rollouts have no diversity",
    )
    temperature_rule: Literal["fixed", "probe", "match_diversity"] = setting(
        "fixed",
        "fixed: `temperature`. probe: the workdir's probe.json (if there is none: `temperature`, "
        "with a warning). match_diversity: reset at the stage's start so that diversity regains "
        "its value at the former stage's start.",
    )
    reset_optimizer: bool = setting(True, "The stage begins with a fresh optimizer.")
    drop_above: float = setting(
        0.9,
        "Problems above this accuracy are dropped at the stage's end; 1.0: none.",
        at_least=0,
        at_most=1,
        rule="must lie in [0, 1]; 1.0 drops nothing",
    )
    drop_statistic: Literal["stage_mean", "last"] = setting(
        "stage_mean", "Accuracy that drop_above is compared with: the stage's mean or the last."
    )
    rope_factor: float = setting(
        1.0,
        "YaRN factor during this stage; 1.0: off.",
        at_least=1,
        rule="YaRN stretches positions; set it to 1.0 (off) or more",
    )
    end_window: int = setting(
        10,
        "Steps of a mean in the end_ rules, which may end the stage early.",
        at_least=1,
        before=10,
    )
    end_reward_gain: float = setting(
        0.0,
        "Ends the stage if the mean reward of end_window steps exceeds that of the end_window "
        "steps before by less than this; 0: off.",
        at_least=0,
        before=0.0,
    )
    end_score_gain: float = setting(
        0.0,
        "The same for the mean held-out score; needs evaluate.every_steps of at most end_window; "
        "0: off.",
        at_least=0,
        before=0.0,
    )
    end_clip_ratio: float = setting(
        0.0,
        "Ends the stage if the budget ended more than this share of the responses, mean over "
        "end_window steps; 0: off.",
        at_least=0,
        below=1,
        before=0.0,
    )
    end_entropy: float = setting(
        0.0,
        "Ends the stage if the mean entropy of end_window steps is below this, in nats; 0: off.",
        at_least=0,
        before=0.0,
    )
    evaluate_temperature: float = setting(
        0.0,
        "Temperature of the held-out score in this stage; 0: evaluate.temperature.",
        at_least=0,
        rule="must not be negative; 0 takes evaluate.temperature",
    )


@dataclasses.dataclass(frozen=True)
class BatchSection:
    """From graded groups to packed rows: rescue, substitution, packing."""

    row_len: int = setting(
        0,
        "Tokens in a packed row; 0: the longest prompt and response of the stages, rounded up to a "
        "multiple that the mesh divides.",
        at_least=0,
        resume=YES,
    )
    rows: int = setting(
        0,
        "Packed rows in a microbatch, over all devices; 0: one for each data x fsdp shard.",
        at_least=0,
        resume=YES,
        usual="ppo_micro_batch_size ppo_micro_batch_size_per_gpu gradient_accumulation_steps",
    )
    share_prompts: Literal["auto", "on", "off"] = setting(
        "auto",
        "A packed row holds a prompt once for all of its responses there: fewer tokens, the same "
        "gradient to rounding. auto: where model.attention can (chunked, reference).",
        before="off",
    )
    rescue: bool = setting(
        True,
        "A group without a correct response takes a stored correct one of its problem. Without "
        "effect in a problem's first epoch.",
    )
    substitute: bool = setting(
        True,
        "Groups whose rewards all agree are replaced by copies of informative groups. Copies bring "
        "no new problem: batch/effective_groups never exceeds the informative groups.",
    )
    max_copies: int = setting(
        0,
        "Copies of one group at most; places left over stay without effect. 0: no limit.",
        at_least=0,
        before=0,
    )
    min_informative: float = setting(
        1.0 / 3.0,
        "Share of informative groups below which a batch is scarce.",
        at_least=0,
        at_most=1,
        rule="a share; must lie in [0, 1]",
    )
    on_scarce: Literal["train", "resample", "skip"] = setting(
        "train",
        "What a step does with a scarce batch. resample: draws further prompts, and keeps the "
        "informative groups; with min_informative=1 this is dynamic sampling.",
        usual="filter_groups",
    )
    max_resample: int = setting(
        2, "With resample: most times that a step samples anew.", at_least=0
    )


@dataclasses.dataclass(frozen=True)
class ObjectiveSection:
    """The loss."""

    clip_low: float = setting(
        0.2,
        "Ratios are clipped below 1 - clip_low.",
        above=0,
        below=1,
        rule="ratios are clipped below 1 - clip_low, which must lie between 0 and 1; set it in "
        "(0, 1), such as to 0.2",
        usual="epsilon clip_ratio_low",
    )
    clip_high: float = setting(
        0.28,
        "Ratios are clipped above 1 + clip_high. With minibatches=1 and old_logprobs=current the "
        "ratio is 1, and neither clip acts.",
        at_least=0,
        usual="epsilon epsilon_high clip_ratio_high",
    )
    dual_clip: float = setting(
        3.0,
        "Bound of the loss where the advantage is negative, as a ratio above 1 + clip_high; 0: "
        "off.",
        at_least=0,
        usual="clip_ratio_c delta",
    )
    old_logprobs: Literal["current", "recompute", "sampler"] = setting(
        "current",
        "Log-probs in the ratio's denominator: those of the update itself, those computed again "
        "before the first update, or the sampler's.",
    )
    tis_cap: float = setting(
        2.0,
        "With old_logprobs=sampler: cap of the importance weight between sampler and trainer; 0: "
        "off. The upper clip acts only below it.",
        at_least=1,
        also=0,
        rule="a cap below 1 would weaken tokens whose policy has not moved; set it to 0 (off), or "
        "to 1 or more, such as 2.0",
    )
    minibatches: int = setting(
        1,
        "Optimizer steps for each rollout batch, each on its own part of the prompts; must divide "
        "prompts_per_step.",
        above=0,
        usual="ppo_mini_batch_size num_mini_batches",
    )
    aggregation: Literal[
        "token_mean", "sequence_mean", "sequence_sum_constant", "microbatch_token_mean"
    ] = setting(
        "token_mean",
        "How token losses become the loss. token_mean: the mean over all tokens. sequence_mean: "
        "each response's mean, then over responses. sequence_sum_constant: each response's sum "
        "over the budget, then over responses (Dr. GRPO). microbatch_token_mean: the mean over the "
        "tokens of each microbatch.",
        usual="loss_agg_mode loss_type",
    )
    std: Literal["std", "off"] = setting(
        "std",
        "std: advantages are divided by their group's standard deviation.",
        usual="norm_adv_by_std_in_grpo scale_rewards",
    )
    baseline: Literal["mean", "leave_one_out"] = setting(
        "mean", "Baseline of a response: its group's mean, or the mean of the other responses."
    )
    mask_truncated: bool = setting(
        False,
        "Leaves responses that reached the limit out of the loss.",
        usual="mask_truncated_completions overlong_filtering",
    )
    kl_coef: float = setting(
        0.0, "Weight of the KL term; 0: off.", at_least=0, usual="beta kl kl_loss_coef"
    )
    entropy_coef: float = setting(
        0.0, "Weight of the entropy bonus; 0: off.", at_least=0, usual="entropy_coeff"
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    """AdamW."""

    learning_rate: float = setting(1e-6, "Learning rate, constant.", at_least=0, usual="lr")
    b1: float = setting(0.9, "Decay of the first moment.", at_least=0, below=1, usual="betas")
    b2: float = setting(0.999, "Decay of the second moment.", at_least=0, below=1, usual="betas")
    eps: float = setting(1e-8, "Added to the root of the second moment.", above=0, usual="epsilon")
    weight_decay: float = setting(0.01, "Weight decay, on every parameter.", at_least=0)
    max_grad_norm: float = setting(
        1.0, "Longer gradients are scaled to this norm.", above=0, usual="grad_clip max_norm"
    )
    max_skips: int = setting(5, "Consecutive non-finite updates before the run stops.", above=0)
    moment_dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        "bfloat16 halves the moments' memory and departs from the recipe: the second moment is "
        "rounded stochastically, because it would never fall otherwise.",
    )
    moments_in_host_memory: bool = setting(
        False,
        "Keeps moments in host memory between updates; each update fetches 8 B a parameter.",
        resume=YES,
    )
