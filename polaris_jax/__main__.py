"""`polaris COMMAND` and `python -m polaris_jax COMMAND`."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from polaris_jax import __version__
from polaris_jax.commands import COMMANDS
from polaris_jax.system import signals

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
    if code and (started := sys.modules.get("polaris_jax.system.processes")):
        started.leave(code)  # peers may be waiting in a collective: do not wait for them at exit
    sys.exit(code)


if __name__ == "__main__":
    entry()
