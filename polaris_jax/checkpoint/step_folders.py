"""The step folders of a checkpoint directory, and the manifest that marks one as complete.

A step is committed by writing its `MANIFEST.json` in a single put; nothing is renamed. The manifest
lists sizes and checksums of all files. Orbax alone does not protect: a flipped bit in one of its
data files silently restores as wrong weights, and an empty step directory counts as the latest
step. The checksum is CRC-32 (zlib). It protects from damage, not from an attacker: every single
flipped bit and every burst of up to 32 bits is found, and other damage except one case in 4e9.
CRC-32 ran at 4 GB/s a core (SHA-256: 1.7, BLAKE2b: 0.9), which matters for checkpoints of tens of
GB. It needs no further package.

If a step is saved again, its new data go to a separate folder inside, `data-TOKEN/`. Then a new
manifest replaces the old one: before that the old data are valid, after that the new data. In an
object store all data are in such folders, so a run that has been taken over never writes to its
successor's folders.

`STEP.unfinished` exists beside a step's folder while the step is written or deleted. The file
distinguishes what a kill has left from damage. What a kill has left is skipped without a warning
and deleted by the next save.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from polaris_jax.system.files import (
    AnyPath,
    delete,
    entries,
    files_below,
    first_line,
    is_folder,
    is_gone,
    is_remote,
    is_there,
    sync_directory,
    write_bytes,
)
from polaris_jax.system.foreign import (
    MANIFEST_BYTES,
    parse_json,
    printable,
    read_bytes,
    require_regular,
)

MANIFEST = "MANIFEST.json"
FORMAT = 1
DATA = "data"  # manifest key: the data's folder inside the step's folder; "": that folder
ROPE_SCALING = "rope_scaling"  # manifest key: the rotary scaling of the weights, or null
TOKEN = "data-"
_DATA = re.compile(rf"{TOKEN}[0-9a-f]+/")
READ_BYTES = 1 << 23
NO_OTHERS = r"(?!)"  # matches no name
THREADS = 4  # zlib releases the GIL; more threads only compete for the disk

FileEntry = dict[str, int]  # {"size": bytes, "crc32": checksum}

_STEP = re.compile(r"0|[1-9][0-9]{0,17}")  # as saved; str.isdigit also takes 07 and a raised 2


def step_number(name: str) -> int | None:
    """The step of a folder's name; None if no step has that name."""
    return int(name) if _STEP.fullmatch(name) else None


def list_files(directory: AnyPath) -> list[str]:
    """Every file below `directory` that a manifest must name, as sorted relative paths.

    The manifest itself and hidden files (made by a desktop or a network disk) are left out.
    """
    directory = epath.Path(directory)
    found = files_below(directory, links=False)  # or a clean-up would delete what lies elsewhere
    names = [str(path.relative_to(directory)) for path in found]
    return sorted(
        name
        for name in names
        if name != MANIFEST and not any(part.startswith(".") for part in name.split("/"))
    )


def sync_and_sum(directory: AnyPath, names: Iterable[str]) -> dict[str, FileEntry]:
    """Size and checksum of each named file, read back after a sync to the disk."""
    directory = epath.Path(directory)

    def entry(name: str) -> FileEntry:
        path = directory / name
        if not is_remote(path):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        return {"size": path.stat().length, "crc32": _crc32(path)}

    names = list(names)
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(entry, names), strict=True))


def sync_folders(directory: AnyPath) -> None:
    """Makes every name below `directory` durable."""
    for root, _, _ in () if is_remote(directory) else os.walk(directory):
        sync_directory(root)


def write_manifest(directory: AnyPath, facts: dict[str, Any], files: dict[str, FileEntry]) -> None:
    """Writes a manifest that names `files`; it replaces an earlier manifest.

    Args:
        directory: directory of the files.
        facts: further JSON-able facts for the reader.
        files: the entries of all files, from `sync_and_sum`.
    """
    body = {"format": FORMAT, **facts, "files": files}
    body["self"] = zlib.crc32(_canonical(body))
    text = json.dumps(body, sort_keys=True, indent=1)
    write_bytes(epath.Path(directory) / MANIFEST, text.encode() + b"\n")


def seal(directory: AnyPath) -> None:
    """Writes a manifest of all files that lie in a directory; `fault` then finds damage to them."""
    write_manifest(directory, {}, sync_and_sum(directory, list_files(directory)))


def read_manifest(directory: AnyPath) -> dict[str, Any]:
    """The manifest of a directory.

    Raises:
        ValueError: there is no manifest, or it is damaged or has another format. The text is the
            reason.
    """
    directory = epath.Path(directory)
    try:
        data = read_bytes(directory / MANIFEST, most_bytes=MANIFEST_BYTES)
        body = parse_json(data, where="it", remedy="")
    except FileNotFoundError:
        empty = directory.is_dir() and not any(directory.iterdir())
        raise ValueError("the directory is empty" if empty else f"{MANIFEST} is missing") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({error})") from error
    if "self" not in body:
        raise ValueError(f"{MANIFEST} is incomplete")
    if body.pop("self") != zlib.crc32(_canonical(body)):
        raise ValueError(f"{MANIFEST} does not match its own checksum")
    if body.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} has format {body.get('format')}, this version reads {FORMAT}")
    for name, fits in _FIELDS.items():
        if not fits(body.get(name)):
            raise ValueError(f"{MANIFEST} has no valid {name!r}")
    return body


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, dict) and _is_count(value.get("size")) and _is_count(value.get("crc32"))
    )


def _is_array(value: Any) -> bool:
    """Whether a value is [dtype, shape]."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], list)
        and all(map(_is_count, value[1]))
    )


# The types of a manifest's fields: its own checksum says nothing of what wrote it. The fields of a
# step may be absent, since other folders have manifests, too.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "files": lambda v: isinstance(v, dict) and all(map(_is_entry, v.values())),
    "step": lambda v: v is None or _is_count(v),
    "config_hash": lambda v: v is None or isinstance(v, str),
    "architecture": lambda v: v is None or isinstance(v, dict),
    "arrays": lambda v: v is None or (isinstance(v, dict) and all(map(_is_array, v.values()))),
    ROPE_SCALING: lambda v: v is None or isinstance(v, dict),
    DATA: lambda v: v in (None, "") or (isinstance(v, str) and bool(_DATA.fullmatch(v))),
}


def fault(directory: AnyPath, *, checksums: bool = True, others: str = NO_OTHERS) -> str | None:
    """A phrase that says why a directory is not complete; None if it is complete.

    Args:
        directory: the directory to check.
        checksums: True: read every byte and compare checksums; False: only names and sizes.
        others: pattern of names that are allowed although the manifest does not name them.

    Raises:
        OSError: the disk or store does not answer, which says nothing of what lies there. An older
            step in its place would lose the steps behind it.
    """
    directory = epath.Path(directory)
    try:
        files = read_manifest(directory)["files"]
        present = list_files(directory)
        if missing := sorted(files.keys() - set(present)):
            return f"{printable(missing[0])} is missing"
        foreign = sorted(set(present) - files.keys())
        if foreign := [name for name in foreign if not re.fullmatch(others, name)]:
            return f"{printable(foreign[0])} does not belong to it"
        for name, entry in files.items():
            require_regular(directory / name)
            size = (directory / name).stat().length
            if size != entry["size"]:
                return f"{name} has {size} bytes, expected {entry['size']}"
        if not checksums:
            return None
        with ThreadPoolExecutor(THREADS) as pool:
            sums = pool.map(lambda name: _crc32(directory / name), files)
            for (name, entry), crc32 in zip(files.items(), sums, strict=True):
                if crc32 != entry["crc32"]:
                    return f"{name} does not match its checksum"
    except (OSError, ValueError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and not is_gone(cause):
            raise _no_answer(cause, directory) from error
        return str(error) if isinstance(error, ValueError) else f"it cannot be read ({error})"
    return None


def _no_answer(error: OSError, directory: epath.Path) -> OSError:
    name = os.fspath(error.filename or "").removeprefix(f"{directory}/")
    where = f"{name}: " if name else ""
    remedy = "start again once it can be read, or move the folder away to do without it"
    text = f"{where}{error.strerror or first_line(error)}; {remedy}"
    return OSError(error.errno or errno.EIO, text, str(directory))


def delete_others(directory: AnyPath) -> None:
    """Deletes what the manifest does not name; if there is no manifest, the directory.

    Complete folders are deleted before single files: a store deletes a folder in few requests.

    Raises:
        OSError: the manifest exists and cannot be read. Nothing is deleted, because the directory
            may be complete.
    """
    directory = epath.Path(directory)
    manifest = directory / MANIFEST
    if not is_remote(manifest) and manifest.exists() and not manifest.is_file():
        raise OSError(errno.EINVAL, "a directory or a pipe, expected a file", str(manifest))
    try:
        named = set(read_manifest(directory)["files"]) | {MANIFEST}
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        delete(directory)
        return
    kept = {name.split("/")[0] for name in named}
    for path in directory.iterdir():
        if path.name not in kept and not path.name.startswith("."):
            delete(path)
    for name in list_files(directory):
        if name not in named:
            delete(directory / name)


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _crc32(path: epath.Path) -> int:
    value = 0
    with path.open("rb") if is_remote(path) else open(path, "rb", buffering=0) as file:
        while block := file.read(READ_BYTES):
            value = zlib.crc32(block, value)
    return value


UNFINISHED = ".unfinished"
_EARLIER_LEFT = (".partial", ".replaced", ".deleted")  # left by a kill of version 0.1


class StepFolders:
    """The steps in `directory`, which need not exist yet."""

    def __init__(self, directory: epath.Path) -> None:
        self.directory = directory

    # ---- reading

    def steps(self) -> list[int]:
        """Every step that has a folder, ascending, complete or not."""
        if not is_folder(self.directory):
            return []
        named = ((step_number(path.name), path) for path in self.directory.iterdir())
        return sorted(step for step, path in named if step is not None and is_folder(path))

    def path(self, step: int) -> epath.Path:
        """The path of a step's folder."""
        return self.directory / str(step)

    def data(self, step: int) -> epath.Path:
        """The data folder of a complete step."""
        return self.path(step) / read_manifest(self.path(step)).get(DATA, "")

    def begun(self, step: int) -> bool:
        """True if a killed save left the step unfinished."""
        return is_there(self._mark(step)) and self.lacks_manifest(step)

    def lacks_manifest(self, step: int) -> bool:
        """True if a step has no manifest: its save, or a copy of it, ended before the last file."""
        return not is_there(self.path(step) / MANIFEST)

    def fault(self, step: int, *, checksums: bool = True) -> str | None:
        """A phrase that says why a step is not complete; None if it is complete. See `fault`."""
        if not is_folder(self.path(step)):
            return "there is no such directory"
        others = ".*" if is_there(self._mark(step)) else f"{TOKEN}.*"
        reason = fault(self.path(step), checksums=checksums, others=others)
        if reason is None and (own := read_manifest(self.path(step)).get("step", step)) != step:
            return f"its {MANIFEST} is that of step {own}"
        return reason

    def seems_whole(self, step: int) -> bool:
        """True if a step is complete by names and sizes; False if its disk does not answer."""
        with contextlib.suppress(OSError):
            return self.fault(step, checksums=False) is None
        return False

    # ---- writing

    def begin(self, step: int, *, keep: bool) -> str:
        """Makes room for a step's data.

        Args:
            step: number of the step to save.
            keep: True: the step exists and is complete, and must stay so until `clear`.

        Returns:
            The folder for the data, inside the step's folder: "", or a name and a slash.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self.sweep()
        path = self.path(step)
        write_bytes(self._mark(step), b"")
        if not keep:
            delete(path)
        folder = f"{TOKEN}{secrets.token_hex(4)}/" if keep or is_remote(path) else ""
        (path / folder).mkdir(parents=True, exist_ok=True)
        return folder

    def clear(self, step: int) -> None:
        """Ends what `begin` started: deletes all files that the step's manifest does not name."""
        delete_others(self.path(step))
        self._mark(step).unlink(missing_ok=True)
        sync_directory(self.directory)

    def delete(self, step: int) -> None:
        """Deletes a complete step, in an order in which a partial step never looks complete."""
        with contextlib.suppress(OSError):  # the disk may be too full for one more name
            write_bytes(self._mark(step), b"")
        (self.path(step) / MANIFEST).unlink()
        self.clear(step)

    def sweep(self) -> None:
        """Deletes what kills have left. Call only if this run owns the directory."""
        for path in entries(self.directory):
            step = step_number(path.name.split(".")[0])
            if step is None:
                continue
            if path.suffix == UNFINISHED:
                with contextlib.suppress(OSError):  # unreadable now: a later save tries again
                    self.clear(step)
            elif path.suffix in _EARLIER_LEFT:
                delete(path)

    def _mark(self, step: int) -> epath.Path:
        return self.directory / f"{step}{UNFINISHED}"
