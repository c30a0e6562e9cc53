"""How a command ends: exit codes, one line an error, and the settings of the process."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable

from polaris_jax.commands.flags import Command, HelpRequested, check_tag, print_error
from polaris_jax.config import ConfigError
from polaris_jax.system import signals
from polaris_jax.system.progress import say

PROCESSES = "polaris_jax.system.processes"
GPU_SHARE = 0.9  # the rest is for CUDA, NCCL and what fragments
GPU_SHARE_NAMES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
MIN_COMPILE_S = 0.3  # programs that compile faster are not kept
# What to do about an error of the system that names a file.
_REMEDIES = {
    errno.EISDIR: "a file belongs there; move the directory away",
    errno.ENXIO: "a regular file belongs there; delete the pipe or socket",
    errno.ENOTDIR: "a directory belongs there; move the file away",
    errno.ELOOP: "the link leads to itself; restore the file",
    errno.EACCES: "give this user the right to it, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "free some space and rerun",
    errno.EDQUOT: "free some space and rerun",
    errno.EPIPE: "a program or connection that the command used has ended; rerun the same command",
    errno.EMFILE: "raise the limit, as with `ulimit -n`, and rerun",
}


def run_command(command: Callable[[], int]) -> int:
    """Runs `command` and turns how it ends into an exit code.

    2: a bad argument, config or input. 1: a failure at run time; under a launcher that repeats its
    line (POLARIS_LAUNCH) also a workdir that cannot be used right now, since 2 tells a scheduler
    that no restart can mend it. 130: Ctrl-C. With POLARIS_TRACEBACK=1 errors keep their traceback.
    """
    keep_traceback = bool(os.environ.get("POLARIS_TRACEBACK"))
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("EPATH_USE_TF", "0")  # gs:// by gcsfs, also where TensorFlow is installed
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("orbax").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(orbax|flax|grain|tensorboardX|transformers)\b")
    try:
        return command()
    except HelpRequested as help_text:
        print(help_text)
        return 0
    except KeyboardInterrupt:
        say(signals.INTERRUPTED, sys.stderr)
        return _failed(signals.INTERRUPTED_STATUS)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return _failed(1)
        if keep_traceback:
            raise
        if started := sys.modules.get(PROCESSES):
            started.end_after_peer_loss(error)
        print_error(_describe(error))
        if isinstance(error, ConfigError):
            return _failed(1 if error.may_pass and os.environ.get(signals.LAUNCH) else 2)
        return _failed(2 if isinstance(error, FileNotFoundError | ValueError) else 1)


def _output_is_closed() -> bool:
    """True if nobody reads stdout or stderr any more, as with `| head`."""
    asked = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a stream without a file, or a closed one
            asked.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))


def _failed(status: int) -> int:
    """`status`; one of several processes ends right here, without waiting for the others."""
    if started := sys.modules.get(PROCESSES):  # else there are no others; it brings in jax
        started.leave(status)
    return status


def _describe(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ConfigError) or (isinstance(error, ValueError | RuntimeError) and text):
        return text
    if isinstance(error, ModuleNotFoundError) and (name := (error.name or "").split(".")[0]):
        return f"{name} is not installed; `polaris doctor` lists what is missing and how to get it"
    if isinstance(error, OSError):
        remedy = f"; {_REMEDIES[number]}" if (number := error.errno or 0) in _REMEDIES else ""
        return f"{error.filename or ''}: {error.strerror or text}".lstrip(": ") + remedy
    return f"{type(error).__name__}: {text} (POLARIS_TRACEBACK=1 shows where)"


def start_jax(command: Command) -> None:
    """Process-wide settings of jax, then the other processes of this run, if there are any.

    Raises:
        ConfigError: they were given another command, config or version.
    """
    from polaris_jax.system import processes

    take_gpu_memory()
    processes.initialize(heartbeat_timeout_s=command.config.distributed.heartbeat_timeout_s)
    keep_programs()
    processes.agree(processes.run_facts(command.config, command.identity()))


def compute_dtype(name: str) -> str:
    """The type that `--dtype` names; jax has been started.

    auto is bfloat16, in which checkpoints are published, but float32 on a CPU: few CPUs have
    bfloat16 in hardware, and answers should not depend on which.
    """
    import jax

    if name != "auto":
        return name
    return "float32" if jax.local_devices()[0].platform == "cpu" else "bfloat16"


def take_gpu_memory() -> None:
    """Lets jax take `GPU_SHARE` of each GPU's memory, which plans count on; its own default is 75%.

    Has no effect once a device has been used, nor if one of jax's variables is set.
    """
    if not any(os.environ.get(name) for name in GPU_SHARE_NAMES):
        os.environ[GPU_SHARE_NAMES[0]] = str(GPU_SHARE)


def run_measurement(command: Command) -> int:
    """Runs `calibrate`, `probe` or `evaluate`, each a function of that name in `measure`.

    Returns:
        The exit code.

    Raises:
        ConfigError: --tag may not begin the name of a file; or see `start_jax`.
    """
    check_tag(command)
    start_jax(command)
    from polaris_jax.commands.forecast import machine_forecast
    from polaris_jax.system.console import open_console

    module = importlib.import_module(f"polaris_jax.measure.{command.name}")
    signals.begin_work()
    getattr(module, command.name)(
        command.config,
        command.workdir,
        progress=open_console(),
        checkpoint=command.flags["checkpoint"],
        tag=command.flags["tag"],
        forecast=machine_forecast(command.config),
    )
    return 0


def keep_programs() -> None:
    """Keeps compiled programs for later processes: jax's compilation cache.

    `POLARIS_COMPILE_CACHE` names a directory, or 0 for none. Without it a run of one process takes
    the user's cache folder, unless jax's own variable names one. Several processes compile for
    themselves: only the first would write, and the others must not wait for each other.
    """
    import jax
    import jaxlib

    asked = os.environ.get("POLARIS_COMPILE_CACHE", "")
    if asked == "0":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not asked:
        if os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.process_count() > 1:
            return
        from polaris_jax.system.cache import MOST_BYTES, program_cache

        try:
            asked = str(program_cache(jax.__version__, jaxlib.__version__))
        except OSError:  # no home, a full disk, a folder of others: compile anew
            return
        jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_compilation_cache_dir", asked)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)
