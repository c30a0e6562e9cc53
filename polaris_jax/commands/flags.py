"""Flags of every command: absl and ml_collections, with one clear line for each mistake."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polaris_jax.commands.config_file import check_overrides, load_config
from polaris_jax.config import ConfigError, RunConfig, build_config
from polaris_jax.config.listing import fields_text, sections_text
from polaris_jax.system.files import as_place, is_remote
from polaris_jax.system.progress import say

if TYPE_CHECKING:
    from absl import flags
    from etils import epath
else:
    try:
        from absl import flags
    except ModuleNotFoundError:
        from polaris_jax.commands import plain_flags as flags

_HELP = re.compile(r"-h|--?help(?:full)?(?:=(.+))?")
# An argument without a name, and how to give it.
OPERANDS = {
    "DIR": ("directory", "name a run's directory, as in polaris {} runs/4b"),
    "FILE": ("file", "name a file, as in polaris {} my.py"),
    "DIRS": ("directory", "name a run's directory, or several, as in polaris {} runs/a runs/b"),
}
Define = Callable[[flags.FlagValues], None]


class HelpRequested(Exception):
    """--help was given; carries the text, and the flags in `values`."""

    def __init__(self, text: str, values: flags.FlagValues) -> None:
        super().__init__(text)
        self.values = values


@dataclasses.dataclass(frozen=True)
class Command:
    """A parsed command line.

    Attributes:
        name: name of the command.
        config: the checked config; the defaults if the command takes no --config.
        workdir: directory of the command's files; the present one if it takes no --workdir. Of a
            command with a FILE, that file.
        flags: the command's own flags, by name.
        places: the directories of a command with DIRS, as given.
    """

    name: str
    config: RunConfig
    workdir: epath.Path
    flags: dict[str, Any]
    places: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Name, workdir and own flags: with the config, all that a process was asked to do."""
        own = {name: v for name, v in self.flags.items() if name.split(".")[0] != "config"}
        return {"name": self.name} | own | {"workdir": str(self.workdir)}


def parse(
    name: str,
    argv: list[str],
    *,
    doc: str,
    define: Define | None = None,
    takes_config: bool = True,
    takes_workdir: bool = True,
    operand: str = "",
) -> Command:
    """The parsed, checked command line.

    Args:
        name: name of the command.
        argv: arguments after the command's name.
        doc: what --help prints, with an example.
        define: declares the command's own flags.
        takes_config: whether --config and --workdir belong to it.
        takes_workdir: False: --config alone belongs to it.
        operand: what the one argument of a command without --config is: DIR, the workdir, as in
            `polaris status DIR` (--workdir=DIR says the same), or FILE, as in `polaris init FILE`.
            DIRS: one workdir or several, and --config may be left out. Empty: the command takes no
            such argument.

    Raises:
        ConfigError: any mistake in the arguments or in the config.
        HelpRequested: for --help.
    """
    values, directory, several = flags.FlagValues(), operand in ("DIR", "DIRS"), operand == "DIRS"
    words, path = _without_config(argv) if takes_config else (argv, "")
    asked = [found[1] for word in argv if (found := _HELP.fullmatch(word))]
    if takes_config:
        if path and not asked:
            from ml_collections import config_flags

            config = load_config(path)
            words = check_overrides(config, words)
            config_flags.DEFINE_config_dict(
                "config", config, flag_values=values, sys_argv=["", *words]
            )
        else:
            flags.DEFINE_string("config", None, "config file (configs/*.py)", flag_values=values)
    if directory or (takes_config and takes_workdir):
        flags.DEFINE_string("workdir", "", "where the run's files lie", flag_values=values)
    values.set_gnu_getopt(bool(operand))  # flags may follow the directory or file
    if define is not None:
        define(values)
    if asked:
        raise HelpRequested(_help(doc, values, asked[0] if takes_config else None), values)
    if takes_config and not path and not several:
        _require_known(name, words, values)
        raise ConfigError("--config: needed; name a file like configs/tiny_cpu.py")
    try:
        rest = values([f"polaris {name}", *words])
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown_flag(name, error.flagname, values)) from None
    except flags.IllegalFlagValueError as error:
        raise ConfigError(_illegal_value(error)) from None
    except (flags.Error, AttributeError, LookupError, ValueError, TypeError) as error:
        raise ConfigError(_one_line(error)) from None
    own = {flag: values[flag].value for flag in values}
    words = [*rest[1:], *([own["workdir"]] if directory and own["workdir"] else [])]
    if len(words) > bool(operand) and not several:
        what = "unexpected argument; flags look like --name=value"
        raise ConfigError(
            f"{words[-1]!r}: {f'name one {OPERANDS[operand][0]}' if operand else what}"
        )
    if operand and not words:
        raise ConfigError(f"{operand}: needed; {OPERANDS[operand][1].format(name)}")
    if several:
        if path:
            build_config(values["config"].value or {})  # a mistake in it is named, as everywhere
        return Command(name, RunConfig(), as_place(words[0]), own, tuple(words))
    if not takes_config:
        return Command(name, RunConfig(), as_place(words[0] if words else "."), own)
    config = build_config(values["config"].value or {})
    for path in (config.model.path, config.data.problems, config.evaluate.problems):
        if is_remote(path):
            as_place(path)  # what it needs is installed: said before any device is touched
    if not takes_workdir:
        return Command(name, config, as_place("."), own)
    if not own["workdir"]:
        raise ConfigError("--workdir: needed; name a directory for the run's files")
    return Command(name, config, as_place(own["workdir"]), own)


def define_policy(values: flags.FlagValues) -> None:
    """Declares --checkpoint and --tag, the flags of commands that measure a policy."""
    flags.DEFINE_string(
        "checkpoint",
        "",
        "path of a checkpoint, or latest; empty: the base model",
        flag_values=values,
    )
    flags.DEFINE_string("tag", "", "text put before the file names", flag_values=values)


def define_dtype(values: flags.FlagValues) -> None:
    """Declares --dtype of commands that take a model without a config; see `run.compute_dtype`."""
    flags.DEFINE_enum(
        "dtype",
        "auto",
        ["auto", "float32", "bfloat16"],
        "compute type; auto: bfloat16, but float32 on a CPU",
        flag_values=values,
    )


def check_tag(command: Command) -> None:
    """Raises ConfigError unless --tag may begin the name of a file; evaluate takes several."""
    tag = command.flags["tag"]
    tags = tag.split(",") if command.name == "evaluate" else [tag]
    if not all(re.fullmatch(r"[A-Za-z0-9_-]*", each) for each in tags):
        raise ConfigError(
            f"--tag={command.flags['tag']}: it begins the names of files; take letters, digits, - "
            "and _ only, like --tag=before"
        )


def _help(doc: str, values: flags.FlagValues, section: str | None) -> str:
    """The command's help, or the fields of one section of the config."""
    if section:
        return f"--config.FIELD=VALUE overrides a field.\n\n{fields_text(section)}"
    text = doc.strip()
    if lines := _flag_lines(values):
        text += f"\n\nFlags:\n{lines}"
    if "config" not in values:
        return text
    return "\n".join(
        [
            text,
            "",
            "Sections of the config. --help=SECTION prints the fields of one, with defaults;",
            "--help=all prints every field. docs/config.md has them too.",
            sections_text(),
        ]
    )


def _flag_lines(values: flags.FlagValues) -> str:
    """One line a flag, in the order of declaration."""
    texts = {}
    for name in values:
        flag = values[name]
        if name == flag.name and not name.startswith("config."):
            default = "" if flag.default in (None, "", False) else f" (default {flag.default})"
            texts[name] = f"{' '.join(flag.help.split())}{default}"
            if name == "config":
                texts["config.A.B=V"] = "overrides a field, --config.stages[0].A=V one of a stage"
    width = max(map(len, texts), default=0)
    return "\n".join(f"  --{name:<{width}}  {text}" for name, text in texts.items())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _illegal_value(error: flags.IllegalFlagValueError) -> str:
    text = _one_line(error)
    for found, rule in (
        (r"invalid literal for int\(\).*", "must be a whole number, like 3"),
        (r"could not convert string to float.*", "must be a number, like 0.5"),
    ):
        text = re.sub(rf"^flag (--\w+=.*): {found}", rf"\1: {rule}", text)
    return text


def _without_config(argv: list[str]) -> tuple[list[str], str]:
    """The words without --config and its value, and the value; the last one counts."""
    words, path, rest = [], "", list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*words, word, *rest], path
        if found := re.fullmatch(r"--?config(=(.*))?", word, re.DOTALL):
            path = found[2] if found[1] else (rest.pop(0) if rest else "")
        else:
            words.append(word)
    return words, path


def _require_known(name: str, words: list[str], values: flags.FlagValues) -> None:
    """Raises ConfigError for a flag that the command does not take, before one that is missing."""
    for word in words:
        found = re.match(r"--?(?:no)?([A-Za-z_]+)(?:=|$)", word)
        if found and found[1] not in values and f"no{found[1]}" not in values:
            raise ConfigError(_unknown_flag(name, found[1], values))


def _unknown_flag(name: str, flag: str, values: flags.FlagValues) -> str:
    known = [n for n in values if not n.startswith("config.")]
    near = difflib.get_close_matches(flag, known, n=1, cutoff=0.6)
    remedy = f"did you mean --{near[0]}?" if near else f"see polaris {name} --help"
    return f"--{flag}: polaris {name} takes no --{flag}; {remedy}"


def print_error(text: str) -> None:
    """One line on stderr, if somebody reads it: what follows must happen anyway."""
    say(f"error: {' '.join(text.split())}", sys.stderr)
