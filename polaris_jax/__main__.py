"""`polaris COMMAND` and `python -m polaris_jax COMMAND`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "prepare": "problems from files or data sets: validate, deduplicate, filter",
    "calibrate": "how hard each problem is for this model; the curated set",
    "probe": "temperature sweep, zones, the temperature to begin with",
    "train": "all stages of the recipe; resumes by itself",
    "evaluate": "avg@k, pass@k, accuracy by length and by token budget",
    "grade": "responses against gold answers, with the reason of each verdict",
    "plan": "does a config fit a pod; compiles without one",
    "report": "every figure of a run and one report.html",
    "convert": "Hugging Face, GGUF and Orbax checkpoints into one another",
    "generate": "complete one prompt on the terminal",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 on success, 2 on a bad argument, 1 on a failure, 130 on Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
        print(f"usage: polaris COMMAND [--flags]\n\n{lines}\n\nMore: polaris COMMAND --help")
        return 0 if args else 2
    name, rest = args[0].replace("_", "-"), args[1:]
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)
        print(f"error: {args[0]!r}: no such command; did you mean {near[0]}?", file=sys.stderr)
        return 2
    from polaris_jax.cli.run import run_command

    return run_command(lambda: importlib.import_module(f"polaris_jax.cli.{name}").main(rest))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.environ.get("POLARIS_NUM_PROCESSES", "1") != "1" and code:
        os._exit(code)  # peers may be waiting in a collective: do not wait for them at exit
    sys.exit(code)
