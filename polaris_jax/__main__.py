"""`polaris COMMAND` and `python -m polaris_jax COMMAND`."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from polaris_jax import __version__
from polaris_jax.system import signals

COMMANDS = {
    "prepare": "problems from files or data sets: validate, deduplicate, filter",
    "calibrate": "how hard each problem is for this model; the curated set",
    "probe": "temperature sweep, zones, the temperature to begin with",
    "train": "all stages of the recipe; resumes by itself",
    "evaluate": "avg@k, pass@k, accuracy by length and by token budget",
    "grade": "responses against gold answers, with the reason of each verdict",
    "plan": "does a config fit a pod; compiles without one",
    "status": "where a run stands: step, time left, last score, hosts, warnings",
    "show": "a run's responses, readable: question, gold, rewards, reasons",
    "ablate": "arms x seeds of whole runs, and what their differences are worth",
    "report": "every figure of a run and one report.html",
    "convert": "Hugging Face, GGUF and Orbax checkpoints into one another",
    "generate": "complete one prompt on the terminal",
    "doctor": "what this machine has and lacks: versions, devices, memory, a self test",
    "completion": "a script that lets bash, zsh or fish complete commands and flags",
}

MORE = """More: polaris COMMAND --help; polaris --version.
Config fields (--config.SECTION.FIELD=VALUE): polaris train --help=SECTION prints those of a
section, with defaults, --help=all every one; docs/config.md has them too. configs/*.py set them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 on success, 2 on a bad argument, 1 on a failure, 130 on Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
        print(f"usage: polaris COMMAND [--flags]\n\n{lines}\n\n{MORE}")
        return 0 if args else 2
    if args[0] == "--version":
        print(f"polaris_jax {__version__}")
        return 0
    name, rest = args[0].replace("_", "-"), args[1:]
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.6)
        remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: {args[0]!r}: no such command; {remedy}", file=sys.stderr)
        return 2
    from polaris_jax.commands.run import run_command

    return run_command(lambda: importlib.import_module(f"polaris_jax.commands.{name}").main(rest))


def entry() -> NoReturn:
    """The console script and `python -m polaris_jax`: `main`, and an end without a traceback."""
    signals.end_at_once()
    with contextlib.suppress(AttributeError):  # a stream of its own kind, or none
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        code = main()
        signals.end_at_once()  # the exit has nothing to save either
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # as with `| head`: stdout is closed, and stays closed at exit
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        code = 1
    except KeyboardInterrupt:  # a second one, while the first unwound
        code = signals.INTERRUPTED_STATUS
    if code == signals.INTERRUPTED_STATUS:
        # XLA may be at work in a thread still: to take the interpreter down under it can crash.
        os._exit(code)
    if os.environ.get("POLARIS_NUM_PROCESSES", "1") != "1" and code:
        os._exit(code)  # peers may be waiting in a collective: do not wait for them at exit
    sys.exit(code)


if __name__ == "__main__":
    entry()
