"""Weights from one format to another: Hugging Face safetensors, GGUF, Orbax checkpoints.

`--from` is a Hugging Face directory or Hub id, a GGUF file, or a checkpoint of `polaris train`
(its checkpoints/ directory or one step in it). `--format` says what `--to` becomes: hf (default for
GGUF and Orbax sources) or orbax (default for Hugging Face sources).

Example:
  polaris convert --from runs/4b/checkpoints --to runs/4b/export
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from absl import flags

from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import start_jax
from polaris_jax.config import ConfigError
from polaris_jax.run.owner import lock_name, owned
from polaris_jax.system.files import as_place, is_remote
from polaris_jax.system.foreign import printable
from polaris_jax.system.signals import begin_work


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "from", "", "Hugging Face directory, Hub id, GGUF file or checkpoint", flag_values=values
    )
    flags.DEFINE_string("to", "", "target directory, new or empty", flag_values=values)
    flags.DEFINE_enum(
        "format", "auto", ["auto", "hf", "orbax"], "format of --to", flag_values=values
    )
    flags.DEFINE_enum(
        "dtype",
        "auto",
        ["auto", "float32", "bfloat16"],
        "type of the written weights",
        flag_values=values,
    )


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("convert", argv, doc=__doc__ or "", define=_define, takes_config=False)
    own = command.flags
    for name, remedy in (
        ("from", "name a Hugging Face directory, Hub id, GGUF file or checkpoint"),
        ("to", "name a new directory"),
    ):
        if not own[name]:
            raise ConfigError(f"--{name}: needed; {remedy}")
    start_jax(command)
    from polaris_jax.checkpoint.convert import convert

    begin_work()
    with _target_owned(own["to"]):
        line = convert(own["from"], own["to"], form=own["format"], dtype=own["dtype"])
    print(printable(line))
    return 0


@contextlib.contextmanager
def _target_owned(target: str) -> Iterator[None]:
    """A context manager that owns `--to`, by a lock in the nearest directory that is there."""
    out = as_place(target)
    there = next((path for path in out.parents if path.is_dir()), out.parent)
    if is_remote(out):  # a store has no locks, and its files are complete or absent
        yield
        return
    name = "_".join(out.relative_to(there).parts)
    busy = f"--to={target}: `polaris convert` already writes it"
    with owned(there, name, busy=busy, remedy="name another"):
        yield
        # `convert` refuses a target that is there, so nobody needs the lock any more.
        (there / lock_name(name)).unlink(missing_ok=True)
