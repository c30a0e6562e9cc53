"""Every metric that a run writes, with its meaning and what to look for.

`glossary` makes docs/metrics.md of it. A metric that is written and is not declared here fails a
test.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric, or several that are explained together.

    Attributes:
        names: the names as written. NAME stands for a name of the user's, N for a number.
        meaning: what it measures, with its unit.
        look: what to look for; empty: nothing in particular.
    """

    names: tuple[str, ...]
    meaning: str
    look: str = ""


STEP = (
    Metric(("step",), "index of the step, from 0; -1 is the score before the first update"),
    Metric(("stage",), "index of the stage, from 0"),
    Metric(
        ("rollout/reward_mean",),
        "mean reward",
        "see [reading a run](howto/reading_a_run.md#five-numbers-to-look-at-first)",
    ),
    Metric(
        ("rollout/informative_share",),
        "share of groups whose rewards are not all equal",
        "see [reading a run](howto/reading_a_run.md#five-numbers-to-look-at-first)",
    ),
    Metric(
        ("rollout/mean_length",),
        "mean tokens of a response",
        "growth within a stage of a reasoning model; a fall where answers were cut",
    ),
    Metric(
        ("rollout/mean_length_correct", "rollout/mean_length_incorrect"),
        "mean tokens of correct and of other responses",
        "incorrect ones are longer as a rule (tiny run, step 30: 34.8 and 40.2)",
    ),
    Metric(
        ("rollout/clip_ratio",),
        "share that the budget ended",
        "see [reading a run](howto/reading_a_run.md#five-numbers-to-look-at-first)",
    ),
    Metric(
        ("rollout/clip_ratio_correct", "rollout/clip_ratio_incorrect"),
        "share that the budget ended, by class",
        "incorrect ones alone clipped: a larger budget would help",
    ),
    Metric(
        ("rollout/diversity",),
        "distinct over all 4-grams among a problem's responses, mean over problems, in [0, 1]",
        "falls within a stage (tiny run: 0.33 to 0.18), rises with temperature",
    ),
    Metric(
        ("rollout/temperature", "rollout/max_response_tokens"),
        "temperature and budget of the stage",
        "change at borders only",
    ),
    Metric(
        ("rollout/logp_gap_mean", "rollout/logp_gap_max"),
        "absolute difference of sampler's and trainer's log-prob, nats, over tokens of this step",
        "see [reading a run](howto/reading_a_run.md#five-numbers-to-look-at-first); "
        "`rollout.max_logp_gap_mean` ends the run above a mean",
    ),
    Metric(
        ("rollout/stale_share", "rollout/lag_mean", "rollout/lag_max"),
        "under `carry`: share of tokens of former policies, and their age in steps "
        "that had an update",
        "`lag_max` at most `rollout.partial_max_lag`",
    ),
    Metric(
        ("rollout/carried_groups", "rollout/carried_responses", "rollout/carried_tokens"),
        "under `carry`: what the step leaves in flight",
        "0 at a stage's last step",
    ),
    Metric(
        ("rollout/reset_tokens",),
        "tokens that temperature resets have sampled so far, for targets and candidates",
        "grows at borders only; small beside what training samples",
    ),
    Metric(
        ("reward/NAME",),
        "an entry that [a reward function](howto/reward.md) returned beside the reward: "
        "mean over the responses that have it",
    ),
    Metric(
        ("batch/informative_groups",),
        "informative groups after the rescue; under `batch.on_scarce=resample` after groups of "
        "further batches have taken the place of others",
    ),
    Metric(
        ("batch/distinct_problems",),
        "problems of the groups that were trained, a copy counted once",
        "near `batch/informative_groups`; lower: problems return within a step",
    ),
    Metric(
        ("batch/effective_groups",),
        "(sum w)² / sum w², w the rows trained per distinct problem: how many problems "
        "the gradient is worth",
        "far below `rollout.prompts_per_step`: copies stand in for problems; see "
        "`batch.max_copies`, `batch.on_scarce=resample`",
    ),
    Metric(
        ("batch/rescued_groups",),
        "groups without a correct response that got a stored one",
        "few (tiny run: 15 in 48 steps); many: problems are at the edge of what the model can do",
    ),
    Metric(
        ("batch/rescued_age",),
        "steps since the stored responses of this step's rescues were sampled, mean",
        "grows with the length of an epoch; the older, the further from the present policy",
    ),
    Metric(
        ("batch/substituted_groups",),
        "groups replaced by a copy of an informative one",
        "grows as the reward does (tiny run: 2.7 to 12.5 of 32 a step)",
    ),
    Metric(
        ("batch/donors_reused",),
        "copies of a group that had been copied already",
        "above 0: more than half of the batch is uninformative",
    ),
    Metric(
        ("batch/resampled_batches",),
        "further batches that the step drew",
    ),
    Metric(
        ("batch/steps_without_update",),
        "1 if the step made no update",
        "often 1: problems are too hard, or too easy",
    ),
    Metric(
        ("batch/tokens",),
        "response tokens that count in the loss",
    ),
    Metric(
        ("batch/shared_prompt_tokens",),
        "prompt tokens that the update did not compute again, because responses share them",
        "only if `batch.share_prompts` is on or resolves to on",
    ),
    Metric(
        ("batch/padding_share",),
        "share of positions without a token",
        "tiny run: 0.08 to 0.2; high: lower `batch.row_len`, or more rows",
    ),
    Metric(
        ("batch/attention_imbalance",),
        "attention work of each microbatch's costliest shard over the mean",
        "1 is even",
    ),
    Metric(
        ("batch/context_imbalance",),
        "the same over the context shards of a row",
        "1 is even; up to 1.06 for packed rows of long segments",
    ),
    Metric(
        ("update/loss",),
        "the clipped surrogate, with the KL term and the entropy bonus where they are on",
        "noise around 0: it is no measure of progress",
    ),
    Metric(
        ("update/grad_norm",),
        "norm before clipping",
        "steady (tiny run: 0.2 to 0.4); spikes above `optimizer.max_grad_norm` are clipped",
    ),
    Metric(
        ("update/entropy",),
        "mean entropy at response tokens, nats",
        "see [reading a run](howto/reading_a_run.md#five-numbers-to-look-at-first)",
    ),
    Metric(
        ("update/fresh_entropy",),
        "the same without rescued and copied rows",
        "the temperature reset goes by it",
    ),
    Metric(
        ("update/ratio_mean",),
        "mean probability ratio",
        "exactly 1 with one on-policy update a batch",
    ),
    Metric(
        ("update/clip_fraction_low", "update/clip_fraction_high", "update/clip_fraction_dual"),
        "shares of tokens whose gradient a clip made zero",
        "0 on-policy; with several minibatches a growing share says that the steps are large",
    ),
    Metric(
        ("update/tis_fraction",),
        "with `old_logprobs=sampler`: share of tokens cut to `tis_cap`, the ratio's cap",
        "near 0",
    ),
    Metric(
        ("update/kl",),
        "with `kl_coef` > 0: KL to the base model, nats",
        "grows slowly",
    ),
    Metric(
        ("update/skipped",),
        "updates skipped because the gradient was not finite",
        "0; `optimizer.max_skips` in a row end the run",
    ),
    Metric(
        ("data/dropped",),
        "problems dropped so far",
        "grows at borders only",
    ),
    Metric(
        ("data/epoch",),
        "epoch of the batch",
        "a drop begins a new one",
    ),
    Metric(
        ("eval/avg@N",),
        "held-out score, on steps where one is due; N is `evaluate.n`",
        "the number to judge a run by",
    ),
    Metric(
        ("eval/diversity",),
        "distinct 4-grams among a held-out problem's responses, over all their 4-grams; with each "
        "held-out score, so at `evaluate.temperature` whatever the stage samples at",
        "a fall while the score rises: the policy writes the same texts again; compare only at one "
        "temperature, budget and `evaluate.n`",
    ),
)

TIMING = (
    Metric(
        ("time/rollout_s", "time/grade_s", "time/update_s", "time/save_s", "time/evaluate_s"),
        "seconds of the step's phases; `grade` is what was left to wait for after "
        "sampling, `update` includes packing and the weight sync",
        "the rollout is most of a step at full size",
    ),
    Metric(
        ("time/weight_sync_s", "throughput/weight_sync_bytes"),
        "handing weights to the sampler: seconds, bytes written to this process's devices",
    ),
    Metric(
        ("throughput/rollout_tokens_per_s", "throughput/update_tokens_per_s"),
        "response tokens a second",
        "steady from a stage's third step on",
    ),
    Metric(
        ("throughput/update_flops_per_s", "throughput/update_mfu"),
        "model FLOPs a second, and their share of the devices' peak; null if the peak "
        "is unknown (CPUs)",
    ),
    Metric(
        ("sampler/slot_occupancy",),
        "share of slot-steps that made a token",
        "low: the tail of a few long responses (tiny run: 0.84)",
    ),
    Metric(
        ("sampler/row_waste",),
        "share of computed rows that made no token",
        "tiny run: 0.08",
    ),
    Metric(
        ("sampler/live_rows_min", "sampler/live_rows_max"),
        "fewest and most rows that a data shard decoded in a call",
        "far apart over shards: uneven dealing",
    ),
    Metric(
        ("sampler/pages_peak",),
        "most pages in use at once",
        "near `rollout.num_pages`: expect preemptions",
    ),
    Metric(
        ("sampler/preemptions",),
        "rows preempted because pages ran out; their tokens are computed again",
        "0; else raise `rollout.num_pages` or lower `rollout.slots`",
    ),
    Metric(
        ("sampler/moves",),
        "live rows that moved to an emptier data shard; their tokens are computed again",
        "some, where a sampler has several data shards",
    ),
    Metric(
        (
            "sampler/prefix_hits",
            "sampler/prefix_query_tokens",
            "sampler/prefix_hit_tokens",
            "sampler/prefix_hit_rate",
        ),
        "samples that shared a prefilled prompt, tokens needed and found in pages, their share",
        "about 1 - 1/R (tiny run: 0.875 with 8 responses)",
    ),
    Metric(
        (
            "sampler/verify_calls",
            "sampler/draft_tokens",
            "sampler/draft_accepted",
            "sampler/draft_rate",
            "sampler/draft_steps_saved",
        ),
        "with `rollout.draft=history`: calls that verified drafts, tokens drafted and accepted, "
        "their share, and the decode steps that the accepted tokens would have taken",
        "a low share: few calls, since drafts that are rejected are given up",
    ),
    Metric(
        (
            "sampler/verify_calls_by_rows",
            "sampler/draft_tokens_by_rows",
            "sampler/draft_accepted_by_rows",
            "sampler/draft_steps_saved_by_rows",
        ),
        "the same by live rows of a data shard: lists for 1, 2, 3 or 4, 5 to 8, and more",
    ),
    Metric(
        ("sampler/compiles", "compiles/step"),
        "compilations while sampling, and over the step, in the process with most",
        "0 after a stage's second step; more cost seconds each time",
    ),
    Metric(
        ("reward/graded", "reward/graded_by_process"),
        "answers graded, and by each process",
    ),
    Metric(
        ("reward/timeouts", "reward/crashes"),
        "answers whose grading overran its deadline, or killed its worker; both score 0",
        "0; time-outs on a busy machine: raise `reward.timeout_s`",
    ),
    Metric(
        ("reward/memory", "reward/errors", "reward/invalid"),
        "answers whose grading met the memory limit, raised an exception, or gave no "
        "reward in [0, 1]; all score 0",
        "0; others: [mend the reward function](howto/reward.md#how-it-runs-and-how-it-may-fail)",
    ),
    Metric(
        ("memory/host_bytes", "memory/host_peak_bytes"),
        "resident memory of this process",
        "steady; growth is a leak",
    ),
    Metric(
        ("memory/device_bytes", "memory/device_peak_bytes", "memory/device_limit_bytes"),
        "memory of the fullest local device; null if the platform does not report it",
    ),
)
