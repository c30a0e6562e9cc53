"""`--compare A B`: sets measurements side by side in place of making one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from absl import flags
from etils import epath

from polaris_jax.commands.flags import parse
from polaris_jax.config import ConfigError
from polaris_jax.system.files import as_place
from polaris_jax.system.foreign import printable

_FLAG = re.compile(r"--?compare(?:=(.*))?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Compared:
    """What is compared, and where the result goes.

    Attributes:
        sources: paths as given, each of which exists.
        names: a name for each, all different.
        out: an existing or new directory.
    """

    sources: tuple[epath.Path, ...]
    names: tuple[str, ...]
    out: epath.Path


def compare_command(
    name: str, argv: Sequence[str], *, doc: str, most: int, least: int = 2
) -> Compared | None:
    """What `--compare A B ...` names; None if the flag is not there.

    Args:
        name: name of the command.
        argv: arguments after the command's name.
        doc: what --help prints.
        most: largest number of things to compare.
        least: smallest number; 1 if one path may hold several things.

    Raises:
        ConfigError: any mistake in the arguments.
        HelpRequested: for --help.
    """
    paths, rest = _split(argv)
    if paths is None:
        return None

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("out", ".", "directory of the result", flag_values=values)
        flags.DEFINE_list("names", [], "a name for each, as in 1.5B,7B", flag_values=values)

    own = parse(name, rest, doc=doc, define=define, takes_config=False).flags
    wanted = "two paths" if most == 2 else f"{least} to {most} paths"
    if not least <= len(paths) <= most:
        raise ConfigError(
            f"--compare={' '.join(paths)}: needs {wanted}, as in polaris {name} --compare runs/a "
            "runs/b"
        )
    sources = tuple(map(as_place, paths))
    for given, place in zip(paths, sources, strict=True):
        if not place.exists():
            raise ConfigError(f"--compare={given}: there is no such file or directory")
    names = tuple(own["names"]) or tuple(map(short_name, sources))
    if len(names) != len(sources):
        raise ConfigError(
            f"--names={','.join(names)}: {len(names)} names for {len(sources)} paths; give one each"
        )
    if len(set(names)) < len(names):
        names = tuple(f"{short} ({place})" for short, place in zip(names, sources, strict=True))
    out = as_place(own["out"])
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out={own['out']}: a file is there; name a directory")
    return Compared(sources, tuple(map(printable, names)), out)


def short_name(path: epath.Path) -> str:
    """A name for people: a workdir's own, with the tag of its file, or the file's name."""
    files = r"difficulty\.parquet|probe\.json|eval\.json|responses(?:_yarn.*)?\.jsonl"
    found = re.fullmatch(rf"(?:(.+)_)?(?:{files})", path.name)
    if found is None:
        return path.stem or str(path)
    return f"{path.parent.name or '.'}{f' {found[1]}' if found[1] else ''}"


def _split(argv: Sequence[str]) -> tuple[list[str] | None, list[str]]:
    """The words of --compare, None without it, and the other words."""
    paths, rest, words = None, [], list(argv)
    while words:
        word = words.pop(0)
        found = _FLAG.fullmatch(word)
        if found is None:
            rest.append(word)
            continue
        paths = [] if paths is None else paths
        paths += [path for path in (found[1] or "").split(",") if path]
        while words and not words[0].startswith("-"):
            paths.append(words.pop(0))
    return paths, rest
