"""A script that lets a shell complete commands, flags, values and config fields.

It is made from the commands' own flags: write it anew after an update. bash needs to be 4 or later.

Example:
  polaris completion bash > ~/.local/share/bash-completion/completions/polaris
  polaris completion zsh > ~/.zfunc/_polaris           (a folder of zsh's fpath)
  polaris completion fish > ~/.config/fish/completions/polaris.fish
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import typing
from collections.abc import Callable, Sequence

from polaris_jax.commands import COMMANDS
from polaris_jax.commands.config_file import shipped_configs
from polaris_jax.commands.flags import HelpRequested, parse
from polaris_jax.config import SETTINGS, ConfigError

_ENUM = re.compile(r"<([^>]*)>: (.*)", re.DOTALL)  # how the help of an enum flag begins


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag as a shell completes it.

    Attributes:
        name: its name without dashes.
        text: its help in one line.
        takes_value: False for a flag that is on or off.
        values: the values to offer; () offers files.
    """

    name: str
    text: str
    takes_value: bool = True
    values: tuple[str, ...] = ()


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    words = [word for word in argv if not word.startswith("-")]
    parse("completion", [w for w in argv if w not in words], doc=__doc__ or "", takes_config=False)
    if len(words) != 1 or words[0] not in SHELLS:
        given = f"{' '.join(words)!r}: " if words else ""
        raise ConfigError(f"{given}name one shell: polaris completion {'|'.join(SHELLS)}")
    commands = {name: (text, flags_of(name)) for name, text in COMMANDS.items()}
    print(SHELLS[words[0]](commands), end="")
    return 0


def flags_of(name: str) -> tuple[Flag, ...]:
    """The flags of a command, as its own --help declares them."""
    try:
        importlib.import_module(f"polaris_jax.commands.{name}").main(["--help"])
    except HelpRequested as asked:
        values = asked.values
    else:
        raise AssertionError(f"polaris {name} --help asks for no help")
    found = []
    for own in values:
        flag = values[own]
        if own != flag.name or own.startswith("config."):
            continue
        enum = _ENUM.fullmatch(flag.help)
        options = tuple(enum[1].split("|")) if enum else ()
        options = tuple(shipped_configs()) if own == "config" else options
        text = " ".join((enum[2] if enum else flag.help).split())
        found.append(Flag(own, text, not flag.boolean, options))
    return tuple(found)


Commands = dict[str, tuple[str, tuple[Flag, ...]]]


def fields() -> tuple[Flag, ...]:
    """The overrides of the config's fields, with the values of those that take a few."""
    found = []
    for name, setting in SETTINGS.items():
        is_choice = typing.get_origin(setting.kind) is typing.Literal
        values = tuple(map(str, typing.get_args(setting.kind))) if is_choice else ()
        found.append(Flag(f"config.{name.replace('[i]', '[0]')}", setting.help, True, values))
    return tuple(found)


def _with_config(commands: Commands) -> list[str]:
    return [name for name, (_, own) in commands.items() if any(f.name == "config" for f in own)]


_BASH = r"""# bash completion of polaris, made by `polaris completion bash`
_polaris() {
  local line=${COMP_LINE:0:COMP_POINT} IFS=$' \t\n'
  local current=${line##*[[:space:]]} command=${COMP_WORDS[1]} flags="" values="" value=""
  COMPREPLY=()
  if [[ $COMP_CWORD -eq 1 ]]; then
    mapfile -t COMPREPLY < <(compgen -W "@COMMANDS@" -- "$current")
    return
  fi
  case $command in
@FLAGS@
  esac
  case $command in
    @WITH_CONFIG@) flags+=' @FIELDS@' ;;
  esac
  case $current in
    --*=*)
      value=${current#*=}
      case "$command ${current%%=*}" in
@VALUES@
      esac
      if [[ -n $values ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$values" -- "$value")
      fi
      if [[ -z $values || $current == --config=* ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$value")
      fi
      ;;
    -*)
      mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$current")
      [[ ${COMPREPLY[0]:-} == *= ]] && compopt -o nospace 2>/dev/null
      ;;
    *)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$current")
      ;;
  esac
  # A colon parts words: bash replaces what stands behind the last one alone.
  COMPREPLY=("${COMPREPLY[@]#"${value%"${value##*:}"}"}")
}
complete -F _polaris polaris
"""


_ZSH = r"""#compdef polaris
# zsh completion of polaris, made by `polaris completion zsh`
compdef _polaris polaris

_polaris_configs() {
  compadd -- @CONFIGS@
  _files
}

_polaris() {
  local -a commands fields
  if (( CURRENT == 2 )); then
    commands=(
@COMMANDS@
    )
    _describe command commands
    return
  fi
  fields=(
@FIELDS@
  )
  local name=$words[2]
  shift words
  (( CURRENT-- ))
  case $name in
@CASES@
  esac
}

# Found in fpath, the file is itself the body of the function.
if [ "$funcstack[1]" = "_polaris" ]; then _polaris "$@"; fi
"""


def _filled(template: str, parts: dict[str, str]) -> str:
    return re.sub("@([A-Z_]+)@", lambda found: parts[found[1]], template)


def bash(commands: Commands) -> str:
    """The script for bash."""

    def choices(head: str, flag: Flag) -> str:
        pattern = f"{head}{shlex.quote(f' --{flag.name}')}"  # quoted, so that brackets are plain
        return f"        {pattern}) values={shlex.quote(' '.join(flag.values))} ;;"

    flags, values = [], []
    for name, (_, own) in commands.items():
        flags.append(f"    {name}) flags={shlex.quote(_bash_words(own))} ;;")
        values += [choices(name, flag) for flag in own if flag.values]
    values += [choices("*", field) for field in fields() if field.values]
    parts = {
        "COMMANDS": " ".join(commands),
        "FLAGS": "\n".join(flags),
        "WITH_CONFIG": "|".join(_with_config(commands)),
        "FIELDS": _bash_words(fields()),
        "VALUES": "\n".join(values),
    }
    return _filled(_BASH, parts)


def _bash_words(flags: Sequence[Flag]) -> str:
    return " ".join(f"--{flag.name}{'=' if flag.takes_value else ''}" for flag in flags)


def zsh(commands: Commands) -> str:
    """The script for zsh."""

    def escaped(text: str) -> str:
        return re.sub(r"([\[\]:\\])", r"\\\1", text)

    def spec(flag: Flag) -> str:
        head = f"--{escaped(flag.name)}{'=-' if flag.takes_value else ''}[{escaped(flag.text)}]"
        action = f"({' '.join(flag.values)})" if flag.values else "_files"
        if flag.name == "config":
            action = "_polaris_configs"
        return shlex.quote(f"{head}:value:{action}" if flag.takes_value else head)

    names = [shlex.quote(f"{name}:{text}") for name, (text, _) in commands.items()]
    cases = []
    for name, (_, own) in commands.items():
        specs = [*map(spec, own), *(["$fields"] if name in _with_config(commands) else [])]
        cases += [f"    {name})", "      _arguments \\"]
        cases += [f"        {one} \\" for one in specs] + ["        '*:file:_files'", "      ;;"]
    parts = {
        "CONFIGS": " ".join(shipped_configs()),
        "COMMANDS": "\n".join(f"      {name}" for name in names),
        "FIELDS": "\n".join(f"    {spec(field)}" for field in fields()),
        "CASES": "\n".join(cases),
    }
    return _filled(_ZSH, parts)


def fish(commands: Commands) -> str:
    """The script for fish."""

    def lines_of(names: Sequence[str], flags: Sequence[Flag]) -> list[str]:
        made = []
        for flag in flags:
            words = ["-n", f"__fish_seen_subcommand_from {' '.join(names)}", "-l", flag.name]
            words += ["-d", flag.text]
            if flag.values:
                words += ["-r" if flag.name == "config" else "-x", "-a", " ".join(flag.values)]
            elif flag.takes_value:
                words += ["-r", "-F"]
            made.append(_fish_line(words))
        return made

    lines = ["# fish completion of polaris, made by `polaris completion fish`"]
    for name, (text, own) in commands.items():
        lines.append(_fish_line(["-f", "-n", "__fish_use_subcommand", "-a", name, "-d", text]))
        lines += lines_of([name], own)
    return "\n".join([*lines, *lines_of(_with_config(commands), fields()), ""])


def _fish_line(words: Sequence[str]) -> str:
    """A line of fish's `complete`. Inside quotes a backslash escapes a quote."""
    quoted = (word.replace("\\", "\\\\").replace("'", "\\'") for word in words)
    plain = re.compile(r"[\w./-]+")
    shown = (word if plain.fullmatch(word) else f"'{word}'" for word in quoted)
    return " ".join(["complete -c polaris", *shown])


SHELLS: dict[str, Callable[[Commands], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
