"""Compiles one program for devices that are absent, and returns what the compiler reports."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from polaris_jax.plan.hlo import Traffic, program_traffic

HOST_MEMORY = "pinned_host"
FINAL_TEXT = ".after_codegen.txt"
LOCK_NAME = "polaris_plan_libtpu.lock"
# The lock's descriptor. Only the kernel closes it: Python ends before libtpu releases its own lock
# file, and libtpu would refuse the next process in between.
_held: list[int] = []


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of the product and the arguments that the product calls it with.

    Attributes:
        name: name in tables.
        fn: jitted function, with donation and output shardings set.
        args: ShapeDtypeStructs with shardings; nothing is allocated.
        kwargs: static keyword arguments.
    """

    name: str
    fn: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


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
    program: Program,
    *,
    devices: int,
    platform: str,
    dynamic_trips: float = 1.0,
    host_devices: int = 0,
    read: Callable[[str], None] = lambda text: None,
) -> Compiled:
    """Compiles `program` for its arguments' devices.

    A refusal for lack of memory is a result and not an error, because a plan asks for it.

    Args:
        program: the program to compile.
        devices: number of devices in the program's mesh.
        platform: the devices' platform: tpu, gpu or cpu.
        dynamic_trips, host_devices: see `hlo.program_traffic`.
        read: called with the compiled text.
    """
    began = time.perf_counter()
    lowered = program.fn.lower(*program.args, **program.kwargs)
    try:
        compiled, text = compile_with_text(lowered, on_tpu=platform == "tpu")
    except jax.errors.JaxRuntimeError as error:
        message = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in message and "xceed" not in message:
            raise
        return Compiled(program.name, refusal=message[:300], compile_s=time.perf_counter() - began)
    seconds = time.perf_counter() - began
    read(text)
    memory: Any = compiled.memory_analysis()
    return Compiled(
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
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
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
        size = leaf.dtype.itemsize
        for dim in shape:
            size *= dim
        total += size
    return total
