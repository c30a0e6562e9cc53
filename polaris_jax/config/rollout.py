"""The section that decides how responses are sampled during training."""

from __future__ import annotations

import dataclasses
from typing import Literal

from polaris_jax.config.settings import YES, setting

# The limit of rollout.max_logp_gap_mean=0 with 8-bit keys and values, in nats: four times what
# bfloat16 alone gives.
INT8_LOGP_GAP_MEAN = 0.1


@dataclasses.dataclass(frozen=True)
class RolloutSection:
    """How responses are sampled during training, and the sampler's memory."""

    prompts_per_step: int = setting(
        128,
        "Prompts in a step.",
        above=0,
        usual="batch_size train_batch_size per_device_train_batch_size gen_batch_size",
    )
    responses_per_prompt: int = setting(
        8,
        "Responses to each prompt (its group).",
        at_least=2,
        rule="a group baseline needs at least 2 responses; set it to 2 or more, or use `polaris "
        "evaluate` for single samples",
        usual="num_generations group_size rollout.n n_samples_per_prompt",
    )
    top_p: float = setting(
        1.0,
        "Training samples from the complete distribution.",
        at_least=1,
        at_most=1,
        rule="training rollouts must sample from the complete distribution, or the kept mass "
        "enters the ratio; set it to 1.0 (evaluate.top_p is free)",
    )
    top_k: int = setting(
        0,
        "Training samples from the complete distribution.",
        at_least=0,
        at_most=0,
        rule="training rollouts must sample from the complete distribution; set it to 0 "
        "(evaluate.top_k is free)",
    )
    slots: int = setting(
        64,
        "Sequences that a sampler decodes at a time.",
        above=0,
        resume=YES,
        usual="max_num_seqs",
    )
    page_size: int = setting(16, "Tokens in a page of the KV pool.", above=0, usual="block_size")
    num_pages: int = setting(
        0,
        "Pages in the KV pool; 0: every slot at full length, or as far as device memory goes.",
        at_least=0,
        resume=YES,
    )
    reserve: float = setting(
        0.1,
        "With num_pages=0: share of device memory left free beside the pool.",
        at_least=0,
        below=1,
        rule="a share of device memory; must lie in [0, 1)",
        resume=YES,
        usual="gpu_memory_utilization vllm_gpu_memory_utilization",
    )
    data: int = setting(
        0,
        "Data shards of the sampler on a process's devices; 0: all (1 on a CPU).",
        at_least=0,
        resume=YES,
    )
    tensor: int = setting(
        1,
        "Devices that share one copy of the sampler's weights.",
        above=0,
        resume=YES,
        usual="tensor_model_parallel_size tensor_parallel_size vllm_tensor_parallel_size",
    )
    processes: int = setting(
        1,
        "Processes that share a sampler, for a model too large for one host.",
        at_least=1,
        rule="the number of processes that share one sampler must be at least 1; set it to 1, or "
        "to a divisor of the number of the run's processes",
        resume=YES,
    )
    devices: int = setting(
        0,
        "The last devices of each process, which only sample while the others train; 0: all do "
        "both.",
        at_least=0,
        resume=YES,
    )
    trainer_state: Literal["device", "host"] = setting(
        "device",
        "Where master weights and moments lie during sampling; host: pinned memory, fetched for "
        "each update.",
        resume=YES,
        usual="param_offload optimizer_offload",
    )
    attention: Literal["auto", "xla", "ragged", "ragged_v3", "pallas_gpu", "native"] = setting(
        "auto",
        "Decode kernel: xla anywhere, ragged on TPU, pallas_gpu on GPU, native on a CPU with a C++ "
        "compiler; auto: the platform's own kernel if it can be used.",
        resume=YES,
    )
    kv_dtype: Literal["auto", "int8"] = setting(
        "auto",
        "Keys and values in the sampler's pages: auto, as model.dtype; int8, half the bytes of "
        "bfloat16 and a rounded policy. int8 needs objective.old_logprobs=sampler and a tis_cap.",
        before="auto",
    )
    decode_steps: int = setting(16, "Decode steps in a device call.", above=0)
    prefill_chunk: int = setting(128, "Prompt tokens in a prefill call.", above=0)
    prefill_budget: int = setting(
        8192, "Prompt tokens between two decode calls; 0: no limit.", at_least=0
    )
    prefix_cache: bool = setting(
        True, "Later prompts with an equal beginning reuse its full pages."
    )
    draft: Literal["off", "history"] = setting(
        "off",
        "history: while few rows are live, a call verifies tokens drafted from other responses to "
        "the same prompt, of this step and of earlier ones. The same tokens are sampled in fewer "
        "steps.",
        resume=YES,
    )
    draft_tokens: int = setting(
        8, "With history: drafted tokens of a row in a call.", above=0, resume=YES
    )
    draft_store_tokens: int = setting(
        1 << 26,
        "With history: tokens of earlier responses that the run keeps, four bytes each, in each "
        "process's memory and in checkpoints; 0: drafts come from the step's own responses.",
        at_least=0,
        resume=YES,
    )
    partial_rollouts: Literal["wait", "carry"] = setting(
        "wait",
        "wait: a step trains on all groups that it began. carry: a step begins more groups and "
        "ends when partial_share of its groups are complete; the next step continues the others.",
        before="wait",
    )
    partial_share: float = setting(
        0.8,
        "With carry: share of a step's groups that it waits for.",
        at_least=0.5,
        at_most=1,
        rule="the share of a step's groups that it waits for; must lie in [0.5, 1] (below a half, "
        "more groups would be carried over than a step trains, and their lag could not be bounded)",
        before=0.8,
    )
    partial_max_lag: int = setting(
        2,
        "With carry: most steps with an update between a token's policy and the trained one.",
        above=0,
        before=2,
    )
    max_logp_gap_mean: float = setting(
        0.0,
        "Stops the run if the mean |sampler - trainer| log-prob is above this, in nats; 0: off, or "
        f"with kv_dtype=int8 {INT8_LOGP_GAP_MEAN}.",
        at_least=0,
        resume=YES,
    )
    total_tokens: int = setting(
        0, "Ends the run after this number of sampled tokens; 0: off.", at_least=0, resume=YES
    )
    save_every: int = setting(
        1,
        "Steps from one rollouts/step_N.jsonl to the next; 0: never written.",
        at_least=0,
        resume=YES,
    )
