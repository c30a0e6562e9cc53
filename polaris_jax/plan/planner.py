"""Compiles a setting's programs, each once, and turns the results into a verdict and estimates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from polaris_jax.config import check_slots
from polaris_jax.metrics.throughput import forward_flops_per_token, train_flops_per_token
from polaris_jax.models import packs_rows
from polaris_jax.plan.compile import (
    Compiled,
    SamplerSet,
    UpdateSet,
    compile_program,
    sampler_set,
    sync_programs,
    update_set,
)
from polaris_jax.plan.decode_bytes import DecodeBytes, decode_bytes
from polaris_jax.plan.fit import BUDGET, COLOCATED, Fit, Residency, Sizes, judge
from polaris_jax.plan.hlo import Traffic, link_s
from polaris_jax.plan.job import Job, Setting, sampler_device_count
from polaris_jax.plan.lengths import cut_lognormal
from polaris_jax.plan.rollout_clock import Shards
from polaris_jax.plan.roofline import (
    ASSUMED,
    Efficiency,
    Estimate,
    UpdateWork,
    estimate_step,
    further_forwards,
    live_context,
)
from polaris_jax.plan.topologies import Chip, Topology
from polaris_jax.rollout.pages import pages_for
from polaris_jax.rollout.programs.abstract import AbstractProgram
from polaris_jax.rollout.programs.spec import program_spec

# Tokens of a block in attention loops whose count the compiler does not know (skipped blocks).
ATTENTION_BLOCK_TOKENS, DECODE_BLOCK_TOKENS = 512, 128


@dataclasses.dataclass(frozen=True)
class Assessment:
    """All results of a plan for one setting.

    Attributes:
        setting: the layout.
        compiled: the compiled programs, in the order of a step.
        flops: FLOPs of each program on a device, by the program's name; counted from shapes.
        fit: the verdict; None if the product refused to build the setting.
        refusals: the messages of the compiler or the product if they refused the setting.
        slots: slots of one data shard.
        estimate: estimate of a step; None if something was refused.
        decode_step: the HBM bytes of a decode step with every slot at the mean live length; None
            if something was refused, or without an attention kernel.
    """

    setting: Setting
    compiled: tuple[Compiled, ...]
    flops: dict[str, float]
    fit: Fit | None
    refusals: tuple[str, ...]
    slots: int
    estimate: Estimate | None
    decode_step: DecodeBytes | None = None

    @property
    def fits(self) -> bool:
        return self.fit is not None and self.fit.fits and not self.refusals

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the setting does not fit; empty if it fits."""
        return self.refusals + (self.fit.breaches if self.fit else ())


class Planner:
    """Assesses settings of one job on one topology; programs are compiled once each."""

    def __init__(
        self,
        job: Job,
        topology: Topology,
        devices: Sequence[Any],
        chip: Chip,
        *,
        residency: Residency = COLOCATED,
        efficiency: Efficiency = ASSUMED,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.job, self.topology, self.devices, self.chip = job, topology, devices, chip
        self.residency, self.efficiency, self.say = residency, efficiency, say
        self._done: dict[Any, Any] = {}

    def assess(self, setting: Setting, *, num_pages: int | None = None) -> Assessment:
        """The verdict on one setting; if the product cannot build the setting, that is a refusal.

        Args:
            setting: the layout.
            num_pages: replaces the config's `rollout.num_pages`; None: the config's.
        """
        config, local = self.job.config, sampler_device_count(self.devices, self.job.config)
        try:
            check_slots(config.rollout.slots, local // setting.sampler_tensor)
            asked = config.rollout.num_pages if num_pages is None else num_pages
            return self._assess(setting, asked)
        except ValueError as error:
            return Assessment(setting, (), {}, None, (str(error),), self.slots(setting), None)

    def _assess(self, setting: Setting, num_pages: int) -> Assessment:
        made = self._once(("update", setting.mesh, setting.rows), self._update, setting)
        update, accumulate, apply = made
        sync = self._once(("sync", setting.mesh, setting.sampler_tensor), self._sync, setting)
        slots = self.slots(setting)
        sampling = self._once(("sampler", setting.sampler_tensor), self._sampler, setting)
        sampler, calls, page, beside, decode_step = sampling
        compiled = (accumulate, apply, *sync, *calls)
        refusals = tuple(
            f"{c.name}: the compiler refused it: {c.refusal}" for c in compiled if c.refusal
        )
        sizes = Sizes(
            params=update.params_bytes,
            moments=update.moments_bytes,
            weights=sampler.weights_bytes,
            accumulate=accumulate.total,
            apply=apply.total,
            sync_step=max(c.output - c.alias + c.temporary + c.code for c in sync),
            page=page,
            sampling=beside,
            reference=update.reference_bytes,
        )
        page_size = self.job.config.rollout.page_size
        fit = judge(
            sizes,
            hbm_bytes=self.chip.hbm_bytes,
            pages_per_row=pages_for(self.job.max_len, page_size),
            data_shards=len(self.devices) // setting.sampler_tensor,
            asked_pages=self._per_shard(num_pages, setting),
            residency=self.residency,
            max_pages=slots * pages_for(self.job.sampler_len, page_size) + 1,
            least_pages=pages_for(self.job.sampler_len, page_size),
            scores=self.job.config.evaluate.every_steps > 0,
        )
        estimate = None
        if not refusals and fit.pages > 1:
            estimate = self._estimate(setting, fit, update, sampler, compiled, sizes, slots)
        return Assessment(
            setting,
            compiled,
            self._flops(setting, sampler, slots),
            fit,
            refusals,
            slots,
            estimate,
            decode_step,
        )

    def with_job(self, job: Job, *, same_sampler: bool = False) -> Planner:
        """A planner of another job on the same devices.

        The new planner reuses the compiled programs of the update and the weight sync.

        Args:
            job: a job with the same architecture, row length and batch.share_prompts, and with the
                same model, objective and optimizer sections.
            same_sampler: True if the sampler's sizes are the same, too. The sampler's compiled
                programs are reused then, and nothing is compiled again.
        """
        other = Planner(
            job,
            self.topology,
            self.devices,
            self.chip,
            residency=self.residency,
            efficiency=self.efficiency,
            say=self.say,
        )
        other._done = {
            key: made for key, made in self._done.items() if same_sampler or key[0] != "sampler"
        }
        return other

    def sampler_refusal(self, setting: Setting) -> str:
        """The product's message if it refuses the sampler, else empty; compiles nothing."""
        try:
            self._sampler_set(setting, pages=self._few_pages())
        except ValueError as error:
            return str(error)
        return ""

    def least_bytes(self, setting: Setting) -> int:
        """A lower bound on the update's bytes a device, without compiling.

        The bound counts parameters, gradients and the KL term's reference in float32, moments in
        their own dtype, and the sampler's weights.
        """
        config, count = self.job.config, len(self.devices)
        moment = 2 if config.optimizer.moment_dtype == "bfloat16" else 4
        in_host = config.optimizer.moments_in_host_memory
        state = 8 + (0 if in_host else 2 * moment) + (4 if config.objective.kl_coef > 0 else 0)
        return int(self.job.model.num_parameters * state / count + self._weight_bytes(setting))

    def _weight_bytes(self, setting: Setting) -> float:
        """The sampler's weights on a device, from the number of parameters."""
        width = 2 if self.job.config.model.arithmetic == "bfloat16" else 4
        return self.job.model.num_parameters * width / setting.sampler_tensor

    def may_fit(self, setting: Setting) -> bool:
        """False if the resident memory alone is over the budget."""
        return self.least_bytes(setting) <= BUDGET * self.chip.hbm_bytes

    def update_fits(self, setting: Setting) -> bool | None:
        """True if the update and `setting`'s share of the sampler's weights are within the budget.

        No sampler is compiled. Returns None if the setting is impossible.
        """
        try:
            made, accumulate, apply = self._once(
                ("update", setting.mesh, setting.rows), self._update, setting
            )
        except ValueError:
            return None
        if accumulate.refusal or apply.refusal:
            return False
        applied = apply.total + made.reference_bytes
        needed = max(accumulate.total + made.moments_bytes, applied)
        needed += self._weight_bytes(setting)
        return needed <= BUDGET * self.chip.hbm_bytes

    def slots(self, setting: Setting) -> int:
        """Slots of one data shard; `rollout.slots` counts the slots of one sampler."""
        return max(1, self._per_shard(self.job.config.rollout.slots, setting))

    def _per_shard(self, of_a_sampler: int, setting: Setting) -> int:
        local = sampler_device_count(self.devices, self.job.config)
        return -(-of_a_sampler // max(1, local // setting.sampler_tensor))

    def _once(self, key: Any, make: Callable[[Setting], Any], setting: Setting) -> Any:
        if key not in self._done:
            self._done[key] = make(setting)
        return self._done[key]

    def _compile(self, program: AbstractProgram, dynamic_trips: float) -> tuple[Compiled, str]:
        done, text = compile_program(
            program,
            devices=len(self.devices),
            platform=self.topology.platform,
            dynamic_trips=dynamic_trips,
            host_devices=self.chip.near,
        )
        what = "refused" if done.refusal else f"{done.total / (1 << 30):.2f} GiB a device"
        self.say(f"compiled {program.name} in {done.compile_s:.1f} s: {what}")
        return done, text

    def _update(self, setting: Setting) -> Any:
        self.say(f"{self.topology.name}, {setting}")
        made = update_set(self.job, setting, self.devices)
        blocks = self.job.row_len / ATTENTION_BLOCK_TOKENS / 2
        accumulate, _ = self._compile(made.accumulate, max(1.0, blocks))
        return made, accumulate, self._compile(made.apply, 1.0)[0]

    def _sync(self, setting: Setting) -> list[Compiled]:
        update = self._once(("update", setting.mesh, setting.rows), self._update, setting)[0]
        steps = sync_programs(self.job, update.params, setting)
        return [self._compile(step, 1.0)[0] for step in steps]

    def _sampler(self, setting: Setting) -> Any:
        """(programs, the compiled ones, bytes a page, bytes beside the pool, bytes of a step).

        The compiler pads pages to its tiles. So a page's bytes are computed from the difference
        between two compiled pools.
        """
        few = self._few_pages()
        less = few // 2
        context = live_context(self._lengths(), self.job.mean_prompt_tokens)
        trips = max(1.0, context / DECODE_BLOCK_TOKENS)
        made = self._sampler_set(setting, pages=few)
        decode, text = self._compile(made.decode, trips)
        prefill, _ = self._compile(made.prefill, 1.0)
        smaller, _ = self._compile(self._sampler_set(setting, pages=less).decode, trips)
        verify = [] if made.verify is None else [self._compile(made.verify, 1.0)[0]]
        calls = (prefill, *verify, decode)
        page = max(float(made.page_bytes), (decode.total - smaller.total) / (few - less))
        beside = max(0, int(max(call.total for call in calls) - few * page))
        return made, calls, page, beside, _decode_step(text, made, round(context))

    def _few_pages(self) -> int:
        """The pages of a small pool that holds one sequence of full length."""
        return max(4, -(-self.job.max_len // self.job.config.rollout.page_size) + 1)

    def _sampler_set(self, setting: Setting, *, pages: int) -> SamplerSet:
        slots = self.slots(setting)
        return sampler_set(self.job, setting, self.devices, slots=slots, pages=pages)

    def _lengths(self) -> Any:
        return cut_lognormal(self.job.mean_response_tokens, self.job.max_response_tokens)

    def _flops(self, setting: Setting, sampler: SamplerSet, slots: int) -> dict[str, float]:
        """FLOPs of each program on a device, counted from shapes.

        XLA's cost analysis counts a loop's body once and a Pallas kernel as nothing. The rows of a
        microbatch count as full, with one segment each. A prefill call runs no head.
        """
        model, config, count = self.job.model, self.job.config, len(self.devices)
        rollout, row_len, shared = config.rollout, self.job.row_len, setting.sampler_tensor
        context = live_context(self._lengths(), self.job.mean_prompt_tokens)
        head = 2.0 * model.vocab_size * model.hidden_size
        per_token = train_flops_per_token(
            model, (row_len + 1) / 2, remat=config.model.remat != "none"
        )
        prefill = forward_flops_per_token(model, rollout.prefill_chunk / 2) - head
        decode = slots * rollout.decode_steps * forward_flops_per_token(model, context)
        drafted = 0
        if sampler.verify is not None:
            rows, drafts = sampler.verify.args[3].shape
            drafted = rows // sampler.mesh.shape["data"] * (drafts + 1)
        return {
            "update: gradients": setting.rows * row_len * per_token / count,
            "update: optimizer": 16.0 * model.num_parameters / count,  # clip and AdamW, a weight
            "prefill": sampler.prefill_tokens * prefill / shared,
            "verify": drafted * forward_flops_per_token(model, context) / shared,
            "decode": decode / shared,
        }

    def _estimate(
        self,
        setting: Setting,
        fit: Fit,
        update: UpdateSet,
        sampler: SamplerSet,
        compiled: tuple[Compiled, ...],
        sizes: Sizes,
        slots: int,
    ) -> Estimate:
        job, count = self.job, len(self.devices)
        config, page_size = job.config, job.config.rollout.page_size
        lengths = self._lengths()
        accumulate, apply, decode = *compiled[:2], compiled[-1]
        sync = [program for program in compiled if program.name.startswith("weight_sync/")]
        row_tokens = job.row_len * (1 - self.efficiency.padding)
        sharing = job.prompt_sharing(row_tokens) if update.shares_prompts else 1.0
        batch_tokens = job.responses * (job.mean_prompt_tokens / sharing + lengths.mean)
        rows = batch_tokens / row_tokens
        if not packs_rows(config.model.attention):
            rows = max(rows, job.responses)
        microbatches = max(1.0, rows / setting.rows)
        hbm = microbatches * _hbm(accumulate) + _hbm(apply)
        links = microbatches * _link_s(accumulate, self.chip) + _link_s(apply, self.chip)
        of_a_sampler = sampler_device_count(self.devices, config)
        return estimate_step(
            job.model,
            self.chip,
            lengths,
            devices=count,
            responses=job.responses,
            prompts=config.rollout.prompts_per_step,
            prompt_tokens=job.mean_prompt_tokens,
            update=UpdateWork(hbm, links, further_forwards(config.objective), sharing),
            weights_bytes=sizes.weights,
            kv_token_bytes=sampler.page_bytes / page_size * setting.sampler_tensor,
            samplers=count // of_a_sampler,
            sampler=Shards(
                shards=of_a_sampler // setting.sampler_tensor,
                slots=slots,
                pool_tokens=(fit.pages - 1) * page_size,
                page_size=page_size,
                decode_steps=config.rollout.decode_steps,
                prefill_budget=config.rollout.prefill_budget,
                draft_tokens=config.rollout.draft_tokens,
            ),
            by_sample=config.rollout.partial_rollouts == "wait",
            step_collective_s=_link_s(decode, self.chip) / config.rollout.decode_steps,
            sync_s=sum(
                max(_link_s(c, self.chip), _hbm(c) / self.chip.hbm_bytes_per_s) for c in sync
            ),
            efficiency=self.efficiency,
        )


def _link_s(compiled: Compiled, chip: Chip) -> float:
    return link_s(compiled.traffic, chip) if compiled.traffic else 0.0


def _decode_step(text: str, made: SamplerSet, context_tokens: int) -> DecodeBytes | None:
    """The bytes of a decode step; None without an attention kernel, or if there is no text.

    Only the reads of an attention kernel are known from shapes.
    """
    args, sizes, mesh = made.decode.args, made.sizes, made.mesh
    if not text or not program_spec(args[0].config, sizes, mesh).layout.block_tokens:
        return None
    return decode_bytes(text, args, config=sizes, mesh=mesh, context_tokens=context_tokens)


def _hbm(compiled: Compiled) -> float:
    traffic: Traffic | None = compiled.traffic
    return traffic.hbm_bytes + traffic.kernel_bytes if traffic else 0.0
