r"""A commented config for your model and your data, or what does not fit and what would.

Looks at the model (size, context, tags, chat template), at the data (rows, columns, kinds of
answers, prompt lengths), at 64 responses that the model samples to 8 of the problems, and at the
memory of the hardware; writes FILE. Exit status 1 if no run on them could learn or fit. FILE is
never overwritten. Without --evaluate a tenth of the problems, at most 100, is held out for scores:
then FILE_train.parquet and FILE_held_out.parquet are written beside it.

Example:
  polaris init my.py --model=Qwen/Qwen3-1.7B --data=problems.jsonl --hardware=h100:8
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from polaris_jax.commands.config_file import load_config
from polaris_jax.commands.doctor import core_count, total_memory
from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import start_jax
from polaris_jax.config import (
    PROMPT_SUFFIX,
    ConfigError,
    DataSection,
    EvaluateSection,
    RunConfig,
    build_config,
)
from polaris_jax.data.source_text import parse_source
from polaris_jax.system.files import is_remote
from polaris_jax.system.foreign import printable
from polaris_jax.system.signals import begin_work

if TYPE_CHECKING:
    from polaris_jax.guide.choices import Choices, Sampled
    from polaris_jax.guide.model_facts import ModelFacts
    from polaris_jax.records import Problem

GIB = 1 << 30
HOST_BYTES = 3 * GIB // 2  # of Python, jax and the grading workers, beside the arrays of a CPU run
DEFAULT_BYTES = 16 * GIB  # where a machine does not say how much memory it has
SAMPLE_S = 120.0  # that the 64 responses may take on a CPU
FLOPS_PER_CORE = 1e10  # assumed, of a slow core that samples
LEAST_SAMPLED, MOST_CPU_SAMPLED, MOST_SAMPLED = 24, 256, 2048  # tokens of a response
RESPONSES = 64


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", "", "HF directory, Hub id or GGUF file", flag_values=values)
    flags.DEFINE_string(
        "data", "", "file, directory, Hub name or function, as data.problems", flag_values=values
    )
    flags.DEFINE_string(
        "hardware", "cpu", "cpu, or a pod such as h100:8, v6e:8x8, v5p:2x2x4", flag_values=values
    )
    flags.DEFINE_float(
        "hbm_gib",
        0.0,
        "memory of a device, GiB, for a GPU that --hardware does not know; 0: the named one's",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "evaluate", "", "problems for held-out scores; then none is held out", flag_values=values
    )
    flags.DEFINE_integer(
        "hold_out",
        None,
        "problems to hold out; default: a tenth, at most 100; 0: none",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "reward", "", "a reward function, as reward.function; empty: math", flag_values=values
    )
    flags.DEFINE_bool(
        "sample",
        True,
        "sample 64 responses on this machine; --nosample: do not",
        flag_values=values,
    )


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse(
        "init", argv, doc=__doc__ or "", define=_define, takes_config=False, operand="FILE"
    )
    own, file = command.flags, Path(str(command.workdir))
    for name, remedy in (
        ("model", "name a Hugging Face directory, a Hub id or a GGUF file"),
        ("data", "name a file of problems, a directory or a Hub name"),
    ):
        if not own[name].strip():
            raise ConfigError(f"--{name}: needed; {remedy}")
    places = _places(file)
    start_jax(command)
    begin_work()
    from polaris_jax.data.problems import write_problems
    from polaris_jax.evaluate.benchmarks import find_held_out_problems
    from polaris_jax.guide.choices import choose, held_out_count, misfits, split
    from polaris_jax.guide.config_text import Names, about_lines, config_text
    from polaris_jax.guide.model_facts import look_at_model
    from polaris_jax.guide.problem_facts import look_at_problems
    from polaris_jax.plan.hardware import memory_for, misfit, named_hardware

    hardware = named_hardware(own["hardware"], cpu_bytes=_room(), hbm_gib=own["hbm_gib"])
    model = look_at_model(own["model"])
    _say("model", model.lines())
    data = look_at_problems(own["data"], model.tokenizer, suffix=PROMPT_SUFFIX)
    _say("data", data.lines())
    if found := misfits(model, data, own_reward=bool(own["reward"])):
        return _does_not_fit(found)
    if own["evaluate"]:
        try:
            find_held_out_problems(
                EvaluateSection(problems=own["evaluate"]), DataSection(), lambda _: None, make=list
            )
        except ConfigError as error:
            raise ConfigError(str(error).replace("evaluate.problems=", "--evaluate=", 1)) from None
    held_out = 0 if own["evaluate"] else held_out_count(len(data.problems), own["hold_out"])
    train, kept = split(len(data.problems), held_out)
    choices = choose(
        model,
        data,
        train_problems=len(train),
        cpu=hardware.is_cpu,
        memory_for=lambda length: memory_for(hardware, model.config, length),
    )
    if choices is None:
        return _does_not_fit([misfit(hardware, model.config)])
    train_file, held_out_file = (str(places[name].resolve()) for name in ("train", "held_out"))
    names = Names(
        file=_short(file),
        workdir=f"runs/{file.stem}",
        model=_absolute(own["model"]),
        problems=train_file if kept else _absolute_source(own["data"]),
        evaluate=held_out_file if kept else _absolute_source(own["evaluate"]),
        reward=_absolute(own["reward"]),
        hardware=hardware.name,
        about=(),
    )
    said = ["none (--nosample)"]
    if own["sample"]:
        config = _config(config_text(names, choices), "")
        choices, said = _sampled(config, choices, model, [data.problems[i] for i in train])
    _say("responses", said)
    _say("memory", [choices.memory.why])
    about = about_lines(
        ("model", model.lines()),
        ("data", data.lines()),
        ("responses", said),
        ("memory", [choices.memory.why]),
    )
    text = config_text(dataclasses.replace(names, about=about), choices)
    for target in ("", "quick"):
        _config(text, target)
    _places(file)  # sampling takes minutes, and others may have written there
    made: list[Path] = []
    try:
        for name, indices in {"train": train, "held_out": kept}.items() if kept else ():
            made.append(places[name])
            write_problems([data.problems[i] for i in indices], places[name])
            print(f"wrote {printable(str(places[name]))}: {len(indices)} problems")
        with file.open("x", encoding="utf-8") as out:
            made.append(file)
            out.write(text)
    except BaseException:  # a full disk, Ctrl-C: files that stay would stop the next call
        for place in made:
            place.unlink(missing_ok=True)
        raise
    print(f"wrote {printable(str(file))}; its first lines are the commands to run")
    return 0


def _room() -> int:
    """Bytes that the arrays of a run on this machine's CPU may take."""
    return (total_memory() or DEFAULT_BYTES) - HOST_BYTES


def _sampled(
    config: RunConfig, choices: Choices, model: ModelFacts, problems: Sequence[Problem]
) -> tuple[Choices, list[str]]:
    """The choices in the light of 64 responses, and what these showed or why there are none."""
    from polaris_jax.guide.choices import after_sampling

    found = _sample(config, model, problems, choices.budgets[-1])
    if isinstance(found, str):
        return choices, [found]
    _say("responses", found.lines[1:])  # examples; the first line says what they show
    return after_sampling(choices, found), [found.lines[0], found.summary()]


def _sample(
    config: RunConfig, model: ModelFacts, problems: Sequence[Problem], budget: int
) -> Sampled | str:
    """64 responses, or why there are none.

    Args:
        config: the config that is about to be written.
        model: the model.
        problems: the training problems.
        budget: longest response of the run, in tokens.
    """
    import jax

    from polaris_jax.measure.first_look import sample_some
    from polaris_jax.system.console import open_console

    count = model.config.num_parameters
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")  # None on a CPU
    needed = 6 * count  # float32 as they are read, and the sampler's own
    if limit is not None and needed > limit:
        return (
            f"none: the model's weights need about {needed / GIB:.1f} GiB here, and this device "
            f"has {limit / GIB:.1f} GiB"
        )
    if jax.default_backend() == "cpu":
        here, needed = total_memory(), 8 * count + HOST_BYTES
        if here is not None and needed > here:
            return (
                f"none: the model's weights need about {needed / GIB:.1f} GiB here, and this "
                f"machine has {here / GIB:.1f} GiB"
            )
        allowed = SAMPLE_S * FLOPS_PER_CORE * core_count() / (2 * count) / RESPONSES
        if allowed < LEAST_SAMPLED:
            minutes = LEAST_SAMPLED * SAMPLE_S / allowed / 60
            return (
                f"none: {RESPONSES} of {LEAST_SAMPLED} tokens would take about {minutes:.0f} "
                "minutes on these cores"
            )
        budget = min(budget, MOST_CPU_SAMPLED, int(allowed))
    budget = min(budget, MOST_SAMPLED)
    here = jax.local_device_count()  # the config's sampler is that of the run's hardware
    rollout = dataclasses.replace(
        config.rollout, tensor=1, data=0, num_pages=0, slots=-(-RESPONSES // here) * here
    )
    config = dataclasses.replace(config, rollout=rollout)
    return sample_some(config, problems, model.tokenizer, budget=budget, progress=open_console())


def _config(text: str, target: str) -> RunConfig:
    """The checked config that the text of a file gives: before the file is written.

    Raises:
        ConfigError: a setting that `polaris init` chose breaks a rule.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.py"
        file.write_text(text, encoding="utf-8")
        return build_config(load_config(f"{file}:{target}" if target else str(file)))


def _places(file: Path) -> dict[str, Path]:
    """The files that may be written, none of which is there.

    Raises:
        ConfigError: one exists, or the name or its directory is of no use.
    """
    if is_remote(str(file)) or file.suffix != ".py":
        raise ConfigError(f"{file}: a config is a local file whose name ends in .py, like my.py")
    if not file.parent.is_dir():
        raise ConfigError(f"{file}: there is no directory {file.parent}; make it first")
    places = {
        "config": file,
        **{name: file.with_name(f"{file.stem}_{name}.parquet") for name in ("train", "held_out")},
    }
    for place in places.values():
        if place.exists() or place.is_symlink():
            raise ConfigError(f"{place}: exists, and is never overwritten; name another file")
    return places


def _absolute(name: str) -> str:
    """A local file's or directory's absolute path, so that a run may start anywhere."""
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py") and os.path.isfile(path):
        return f"{os.path.abspath(path)}:{function}"
    return os.path.abspath(name) if name and os.path.exists(name) else name


def _absolute_source(name: str) -> str:
    """A source of problems whose file or directory has its absolute path; see `_absolute`."""
    where = parse_source(name).where if name else ""
    return _absolute(where) + name[len(where) :]


def _short(file: Path) -> str:
    """The path of a file from here, or its absolute path if it does not lie below."""
    path = os.path.relpath(file)
    return str(file) if path.startswith("..") else path


def _does_not_fit(reasons: Sequence[str]) -> int:
    for reason in reasons:
        print(f"does not fit: {printable(reason)}", file=sys.stderr)
    return 1


def _say(name: str, lines: Sequence[str]) -> None:
    for line in lines:
        print(f"{name}: {printable(line)}", flush=True)
