"""Which process owns the files that a command writes.

Two commands may run in one workdir at once unless they write the same files: each command locks
what it writes, `train` with `.lock`, the others with a lock of their own (`.calibrate.lock`).

On a disk the kernel holds a lock for the process and releases it when the process ends, so a second
command is refused. An object store has no locks: a command writes its token to the lock file, and
the newest command wins. The reason: the older one may have been preempted, or be about to be,
without a chance to release anything. A command whose token is gone ends before it writes again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, TextIO

from polaris_jax.config import ConfigError
from polaris_jax.system.files import delete_partials, is_remote, write_json
from polaris_jax.system.foreign import CONFIG_BYTES, read_json, require_regular
from polaris_jax.system.progress import Progress

if TYPE_CHECKING:
    from etils import epath

RETRY_S = 0.1


class InUse(ConfigError):
    """Another process owns the files. The text is one line for the user.

    A scheduler may try again: some file servers hold the lock of a lost host for a while.
    """

    may_pass = True


class TakenOver(RuntimeError):
    """Another command owns the files now. The text is one line for the user."""


class Ownership:
    """The ownership of a command's files until `release`.

    This class is that of a process that writes nothing: all methods do nothing.
    """

    def announce(self) -> None:
        """Takes the files over from other commands, in a store. Call after checking the config."""

    def check(self) -> None:
        """Raises TakenOver if the files are no longer ours. Call before every write.

        Raises:
            TakenOver: another command has claimed the files since.
        """

    def release(self) -> None:
        """Lets other commands claim the files. Any end of the process has this effect, too."""


class _DiskLock(Ownership):
    def __init__(self, lock: epath.Path, *, busy: str, remedy: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            require_regular(lock, remedy="delete it")
        self._file = open(lock, "a+", encoding="utf-8")  # noqa: SIM115
        try:  # the kernel releases the lock when the process ends, so a kill leaves no lock
            _lock(self._file)
        except OSError as error:
            owner = _read_owner(self._file)
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise InUse(f"{busy} ({owner}); wait for it, end it, or {remedy}") from None
            raise ConfigError(
                f"{lock.parent}: its disk knows no file locks ({error.strerror}); choose a "
                "directory on another disk"
            ) from None
        _write_owner(self._file)

    def release(self) -> None:
        self._file.close()


class _StoreToken(Ownership):
    def __init__(self, lock: epath.Path) -> None:
        self._path, self._token = lock, secrets.token_hex(8)

    def announce(self) -> None:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": self._token}
        write_json(self._path, owner)

    def check(self) -> None:
        try:
            owner = read_json(self._path, most_bytes=CONFIG_BYTES, remedy="delete it")
        except FileNotFoundError:
            owner = {}
        if owner.get("token") != self._token:
            by = f"pid {owner.get('pid')} on {owner.get('host')}"
            by = by if owner else "a run that has ended since"
            raise TakenOver(
                f"workdir={self._path.parent}: another run has taken it over ({by}); this one ends "
                "and leaves it alone"
            )

    def release(self) -> None:
        with contextlib.suppress(TakenOver, OSError):
            self.check()
            self._path.unlink(missing_ok=True)


def own(lock: epath.Path, *, busy: str, remedy: str, writes: Collection[str]) -> Ownership:
    """Claims the files that a command writes. Does not announce it in a store.

    Args:
        lock: path of the lock file; its directory must exist.
        busy: begins the error if another process has the lock: who does what.
        remedy: ends that error: what to do beside waiting for the other or ending it.
        writes: names of the files, beside the lock, whose partial copies a kill may have left;
            these are deleted.

    Raises:
        InUse: another process owns them.
        ConfigError: the disk knows no locks.
        OSError: the lock file cannot be written.
    """
    if is_remote(lock):
        return _StoreToken(lock)
    ownership = _DiskLock(lock, busy=busy, remedy=remedy)
    delete_partials(lock.parent, writes)
    return ownership


def lock_name(name: str) -> str:
    """The name of the lock file of `owned`."""
    return f".{name}.lock"


@contextlib.contextmanager
def owned(
    directory: epath.Path,
    name: str,
    *,
    busy: str,
    remedy: str,
    writes: Collection[str] = (),
    primary: bool = True,
) -> Iterator[Ownership]:
    """A context manager that owns what a command writes.

    Args:
        directory: where the command writes.
        name: what is written, in the lock's name: `.NAME.lock`.
        busy: begins the error if another process writes the same: who does what.
        remedy: ends that error: what to do beside waiting for the other or ending it.
        writes: names of files in `directory` whose partial copies are deleted.
        primary: True in the first process of a command; the others own nothing.

    Raises:
        InUse: another process owns it.
        ConfigError: the lock file cannot be written.
    """
    if not primary:
        yield Ownership()
        return
    lock = directory / lock_name(name)
    try:
        ownership = own(lock, busy=busy, remedy=remedy, writes=writes)
        ownership.announce()
    except OSError as error:
        raise ConfigError(
            f"{lock}: cannot be written ({error.strerror}); choose another directory"
        ) from None
    try:
        yield ownership
    finally:
        ownership.release()


def command_owns(
    workdir: epath.Path,
    command: str,
    *,
    writes: Collection[str],
    primary: bool = True,
    tag: str | None = None,
) -> contextlib.AbstractContextManager[Ownership]:
    """A context manager that owns what a command writes into a workdir.

    Args:
        workdir: the workdir, which exists.
        command: name of the command.
        writes: names of its files without the tag; partial copies of them are deleted.
        primary: see `owned`.
        tag: the command's --tag, with which several may run at once; it stands before the names
            of the files. None if the command has no such flag.

    Raises:
        InUse: the same command already runs there.
        ConfigError: the lock file cannot be written.
    """
    which = "" if tag is None else f" with --tag={tag}"
    return owned(
        workdir,
        f"{tag_prefix(tag)}{command}",
        busy=f"workdir={workdir}: `polaris {command}`{which} already runs in it",
        remedy="choose another --workdir" if tag is None else "choose another --tag",
        writes=[f"{tag_prefix(tag)}{name}" for name in writes],
        primary=primary,
    )


def tag_prefix(tag: str | None) -> str:
    """What stands before the names of a command's files."""
    return f"{tag}_" if tag else ""


@contextlib.contextmanager
def alone(directory: epath.Path, name: str, progress: Progress) -> Iterator[None]:
    """A context manager that waits until no other process is inside one of the same name.

    Several commands may need what the first of them makes. In a store nothing is locked: each makes
    it, with the same bytes.
    """
    if is_remote(directory):
        yield
        return
    with open(directory / lock_name(name), "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(RETRY_S)  # who has just taken the lock has still to write its name
            progress.line(f"waiting for {name}, which {_read_owner(file)} makes")
            fcntl.flock(file, fcntl.LOCK_EX)  # ends when the other process ends, also by a kill
        except OSError:
            pass  # a disk without locks; `train` refuses it by name
        _write_owner(file)
        yield


def is_free(directory: epath.Path, name: str) -> bool:
    """Whether no other process is inside `alone` of that name right now. True without locks."""
    if is_remote(directory):
        return True
    try:
        return holder(directory / lock_name(name)) is None
    except OSError:  # nobody has asked for the lock yet, or the disk knows none
        return True


def holder(lock: epath.Path) -> str | None:
    """Which process of this disk holds a lock file right now; None: none does.

    It is asked for without waiting, shared, and given back at once. Nothing is written.

    Raises:
        OSError: the file cannot be read, or the disk knows no locks.
        ForeignFileError: it is no regular file.
    """
    require_regular(lock, remedy="delete it")
    with open(lock, encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_owner(file)
    return None


def _lock(file: TextIO) -> None:
    """Takes the lock, at the second try if `polaris status` holds it for an instant.

    Raises:
        OSError: another process owns it (BlockingIOError), or the disk knows no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(RETRY_S)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _read_owner(file: TextIO) -> str:
    file.seek(0)
    return file.read(200).strip() or "another process"


def _write_owner(file: TextIO) -> None:
    with contextlib.suppress(OSError):  # on a full disk the lock holds without the owner's name
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
