"""The product's programs, compiled for devices that are absent, and what the compiler reports.

The arguments are shapes and shardings; nothing is allocated and no device is needed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from polaris_jax.plan.hlo import Traffic, program_traffic
from polaris_jax.plan.job import Job, Setting
from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.programs.abstract import (
    AbstractProgram,
    decode_program,
    prefill_program,
    verify_program,
    weight_sync_programs,
)
from polaris_jax.sharding import make_mesh, make_sampler_mesh
from polaris_jax.train.programs import (
    abstract_arguments,
    resolve_share_prompts,
    update_programs,
)

HOST_MEMORY = "pinned_host"
FINAL_TEXT = ".after_codegen.txt"
LOCK_NAME = "polaris_plan_libtpu.lock"
# The lock's descriptor. Only the kernel closes it: Python ends before libtpu releases its own lock
# file, and libtpu would refuse the next process in between.
_held: list[int] = []


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler reports for one device, in bytes.

    Attributes:
        name: the program's name.
        argument, output, temporary, alias, code: sizes from `memory_analysis()`. `alias` is the
            part of the output that takes a donated argument's place.
        host: arguments and outputs that lie in host memory.
        peak: the most that is live at once; None if the platform does not report it. A TPU's
            compiler refuses a program by its peak. The peak may be far below `total` (arguments
            that end early), and leaves out all else that is resident.
        compile_s: seconds that the compile took.
        traffic: bytes moved, loops counted in full.
        refusal: the compiler's message if the compiler refused the program; all other sizes are 0
            then.
    """

    name: str
    argument: int = 0
    output: int = 0
    temporary: int = 0
    alias: int = 0
    code: int = 0
    host: int = 0
    peak: int | None = None
    compile_s: float = 0.0
    traffic: Traffic | None = None
    refusal: str = ""

    @property
    def total(self) -> int:
        """The sum of all sizes: the pessimistic figure by which `fit` judges."""
        return self.argument + self.output - self.alias + self.temporary + self.code


def compile_program(
    program: AbstractProgram,
    *,
    devices: int,
    platform: str,
    dynamic_trips: float = 1.0,
    host_devices: int = 0,
) -> tuple[Compiled, str]:
    """Compiles `program` for its arguments' devices: what the compiler reports, and the HLO text.

    A refusal for lack of memory is a result and not an error, because a plan asks for it; the text
    is empty then.

    Args:
        program: the program to compile.
        devices: number of devices in the program's mesh.
        platform: the devices' platform: tpu, gpu or cpu.
        dynamic_trips, host_devices: see `hlo.program_traffic`.
    """
    began = time.perf_counter()
    lowered = program.lower()
    try:
        compiled, text = compile_with_text(lowered, on_tpu=platform == "tpu")
    except jax.errors.JaxRuntimeError as error:
        message = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in message and "xceed" not in message:
            raise
        seconds = time.perf_counter() - began
        return Compiled(program.name, refusal=message[:300], compile_s=seconds), ""
    seconds = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    report = Compiled(
        name=program.name,
        argument=memory.argument_size_in_bytes,
        output=memory.output_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        alias=memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        host=memory.host_argument_size_in_bytes
        + memory.host_output_size_in_bytes
        - memory.host_alias_size_in_bytes,
        peak=getattr(memory, "peak_memory_in_bytes", None) or None,
        compile_s=seconds,
        traffic=program_traffic(
            text, devices=devices, dynamic_trips=dynamic_trips, host_devices=host_devices
        ),
    )
    return report, text


def compile_with_text(lowered: Any, *, on_tpu: bool) -> tuple[Any, str]:
    """The executable and its HLO text.

    For a TPU the text is the dump that libtpu writes. `as_text()` would read libtpu's program with
    jaxlib's own XLA, which refuses some newer instructions (async-update with several operands).
    """
    if not on_tpu:
        compiled = lowered.compile()
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory() as directory:
        options = {"xla_dump_to": directory, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        found = sorted(Path(directory).glob(f"*{FINAL_TEXT}"))
        if not found:
            raise RuntimeError(f"libtpu wrote no *{FINAL_TEXT}: this plan needs another version")
        return compiled, max(found, key=lambda path: path.stat().st_size).read_text()


def hold_libtpu(say: Callable[[str], None]) -> None:
    """Waits until no other plan on this machine holds libtpu, then holds libtpu for this process.

    libtpu serves one process at a time, and a process keeps libtpu until it exits. So the lock is
    kept until the process exits.

    Args:
        say: called with one line if another process holds the lock.
    """
    if _held:
        return
    path = Path(os.environ.get("POLARIS_PLAN_LOCK", Path(tempfile.gettempdir()) / LOCK_NAME))
    try:
        file = os.open(path, os.O_RDONLY)  # another user's is not ours to write
    except FileNotFoundError:
        file = os.open(path, os.O_CREAT | os.O_RDONLY)
        os.fchmod(file, 0o644)  # whatever the umask: others open it to read
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"another plan holds libtpu, which serves one process at a time; waiting ({path})")
        fcntl.flock(file, fcntl.LOCK_EX)
    _held.append(file)


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of a pytree of ShapeDtypeStructs with shardings; leaves in host
    memory are left out."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if leaf.sharding is not None and leaf.sharding.memory_kind == HOST_MEMORY:
            continue
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        total += leaf.dtype.itemsize * math.prod(shape)
    return total


@dataclasses.dataclass(frozen=True)
class UpdateSet:
    """An update's programs, and the bytes a device of the state that they start from."""

    accumulate: AbstractProgram
    apply: AbstractProgram
    params_bytes: int
    moments_bytes: int
    reference_bytes: int  # the KL term's frozen model; 0 without one
    params: Any  # abstract, for the weight sync
    shares_prompts: bool = False  # batch.share_prompts, resolved


@dataclasses.dataclass(frozen=True)
class SamplerSet:
    """A sampler's programs for one pool.

    Attributes:
        decode, prefill: the programs.
        verify: the largest call that verifies drafts; None without `rollout.draft=history`.
        weights_bytes: bytes of the sampler's weights on a device.
        page_bytes: bytes of one page on a device, all layers, without the padding of tiles.
        prefill_tokens: tokens of a prefill call in one data shard.
        sizes: the sampler's sizes.
        mesh: the sampler's mesh.
    """

    decode: AbstractProgram
    prefill: AbstractProgram
    verify: AbstractProgram | None
    weights_bytes: int
    page_bytes: int
    prefill_tokens: int
    sizes: SamplerConfig
    mesh: Mesh


def update_set(job: Job, setting: Setting, devices: Sequence[Any]) -> UpdateSet:
    """The gradient and optimizer programs of an update."""
    mesh, config = make_mesh(setting.mesh, devices), job.config
    made = update_programs(
        job.model, config.objective, config.optimizer, config.model, mesh, row_len=job.row_len
    )
    shares = resolve_share_prompts(
        config.batch.share_prompts, made.sharded.attention, config.objective
    )
    state, accumulator, arrays = abstract_arguments(
        job.model,
        config.optimizer,
        mesh=mesh,
        rows=setting.rows,
        row_len=job.row_len,
        share_prompts=shares,
    )
    reference = state.params if config.objective.kl_coef > 0 else None
    return UpdateSet(
        accumulate=AbstractProgram(
            "update: gradients", made.accumulate, (state.params, accumulator, arrays, reference)
        ),
        apply=AbstractProgram("update: optimizer", made.apply, (state, accumulator)),
        params_bytes=device_bytes(state.params),
        moments_bytes=device_bytes(state.opt_state),
        reference_bytes=device_bytes(reference),
        params=state.params,
        shares_prompts=shares,
    )


def sync_programs(job: Job, params: Any, setting: Setting) -> list[AbstractProgram]:
    """The steps of the weight sync, run one after the other."""
    # The trainer's order of devices: one jitted function reshards from mesh to mesh.
    trainer = jax.tree.leaves(params)[0].sharding.mesh
    mesh = _sampler_mesh(setting, list(trainer.devices.flat))
    return weight_sync_programs(params, job.config.model.arithmetic, mesh)


def sampler_set(
    job: Job, setting: Setting, devices: Sequence[Any], *, slots: int, pages: int
) -> SamplerSet:
    """The sampler's programs with `slots` slots and `pages` pages in each data shard.

    The programs span the complete topology. No collective crosses data shards, so a sampler on
    one process's devices has the same bytes a device.
    """
    mesh = _sampler_mesh(setting, devices)
    shards = mesh.shape["data"]
    sizes = dataclasses.replace(
        SamplerConfig.of_run(job.config, max_len=job.sampler_len),
        slots=slots * shards,
        num_pages=pages * shards,
    )
    decode = decode_program(job.model, sizes, mesh)
    prefill = prefill_program(job.model, sizes, mesh)
    token_BT = prefill.args[2]
    return SamplerSet(
        decode=decode,
        prefill=prefill,
        verify=verify_program(job.model, sizes, mesh) if sizes.draft == "history" else None,
        weights_bytes=device_bytes(decode.args[0]),
        page_bytes=device_bytes(decode.args[1]) // pages,
        prefill_tokens=token_BT.shape[0] * token_BT.shape[1] // shards,
        sizes=sizes,
        mesh=mesh,
    )


def _sampler_mesh(setting: Setting, devices: Sequence[Any]) -> Mesh:
    tensor = setting.sampler_tensor
    return make_sampler_mesh(devices, data=len(devices) // tensor, tensor=tensor)
