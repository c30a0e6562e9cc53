"""Ownership of a workdir: one run at a time writes into it.

On a disk the kernel holds a lock for the run and releases it when the process ends, so a second run
is refused. An object store has no locks: a run writes its token to `.lock`, and the newest run
wins. The reason: the older run may have been preempted, or be about to be, without a chance to
release the workdir. A run whose token is gone ends before it writes again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
from typing import Protocol, TextIO

from etils import epath

from polaris_jax.config.settings import ConfigError
from polaris_jax.system.files import is_remote, write_json

LOCK = ".lock"


class TakenOver(RuntimeError):
    """Another run owns the workdir now. The text is one line for the user."""


class Ownership(Protocol):
    """The ownership of a workdir until `release`."""

    def announce(self) -> None:
        """Takes the workdir over from other runs, in a store. Call after checking the config."""
        ...

    def check(self) -> None:
        """Raises TakenOver if the workdir is no longer ours. Call before every write of a step.

        Raises:
            TakenOver: another run has claimed the workdir since.
        """
        ...

    def release(self) -> None:
        """Lets other runs claim the workdir. Any end of the process has this effect, too."""
        ...


def take(workdir: epath.Path, command: str) -> Ownership:
    """Takes ownership of an existing workdir; in a store only `announce` takes effect.

    Raises:
        ConfigError: another process holds the lock, or the disk does not support locks.
        OSError: the workdir cannot be written.
    """
    return _StoreToken(workdir) if is_remote(workdir) else _DiskLock(workdir, command)


class NoOwnership:
    """The `Ownership` of a process that writes nothing. All methods do nothing."""

    def announce(self) -> None:
        """Does nothing."""

    def check(self) -> None:
        """Does nothing."""

    def release(self) -> None:
        """Does nothing."""


class _DiskLock:
    def __init__(self, workdir: epath.Path, command: str) -> None:
        self._file: TextIO | None = open(workdir / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            _lock(self._file, workdir, command)
        except ConfigError:
            self._file.close()
            raise

    def announce(self) -> None:
        """Does nothing: the lock is held already."""

    def check(self) -> None:
        """Does nothing: the kernel keeps other runs out."""

    def release(self) -> None:
        """Releases the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _StoreToken:
    def __init__(self, workdir: epath.Path) -> None:
        self._path, self._token = workdir / LOCK, secrets.token_hex(8)

    def announce(self) -> None:
        """Writes the token, which replaces the token of any other run."""
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": self._token}
        write_json(self._path, owner)

    def check(self) -> None:
        """Raises TakenOver if the token in the store is not ours."""
        try:
            owner = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            owner = {}
        if owner.get("token") != self._token:
            by = f"pid {owner['pid']} on {owner['host']}" if owner else "a run that has ended since"
            raise TakenOver(
                f"workdir={self._path.parent}: another run has taken it over ({by}); this one ends "
                "and leaves it alone"
            )

    def release(self) -> None:
        """Removes the token if it is still ours."""
        with contextlib.suppress(TakenOver, OSError):
            self.check()
            self._path.unlink(missing_ok=True)


def _lock(file: TextIO, workdir: epath.Path, command: str) -> None:
    # The kernel releases the lock when the process ends, so a kill leaves no lock.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        raise ConfigError(
            f"workdir={workdir}: `polaris {command}` already runs in it ({owner}); "
            "wait for it, end it, or choose another --workdir"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"workdir={workdir}: its disk knows no file locks ({error.strerror}); "
            "choose a --workdir on another disk"
        ) from None
    with contextlib.suppress(OSError):  # on a full disk the lock holds without the owner's name
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
