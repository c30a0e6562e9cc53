"""Whose a workdir is: one run at a time writes into it.

On a disk the kernel keeps a lock for the run and drops it with the process, so a second run is
refused. An object store knows no locks: there a run leaves its token in `.lock`, and the newest
run wins, because the older one may have been preempted, or be about to be, without a chance to
say so. A run whose token is gone ends before it writes again.
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

from polaris_jax.config.sections import ConfigError
from polaris_jax.system.files import is_remote, write_json

LOCK = ".lock"


class TakenOver(RuntimeError):
    """Another run owns the workdir now; its text is one line for the user."""


class Ownership(Protocol):
    """A workdir that is ours until `release`."""

    def announce(self) -> None:
        """Puts others out, where that is the way; called once this run is known to fit."""
        ...

    def check(self) -> None:
        """Returns while the workdir is ours; asked before every write of a step.

        Raises:
            TakenOver: another run has claimed it since.
        """
        ...

    def release(self) -> None:
        """Lets others in. The end of the process, by whatever means, does it too."""
        ...


def take(workdir: epath.Path, command: str) -> Ownership:
    """Makes the workdir, which exists, ours; in a store from `announce` on.

    Raises:
        ConfigError: another process holds its lock, or its disk knows no locks.
        OSError: it cannot be written.
    """
    return _StoreToken(workdir) if is_remote(workdir) else _DiskLock(workdir, command)


class NoOwnership:
    """Of a process that writes nothing."""

    def announce(self) -> None:
        """Returns."""

    def check(self) -> None:
        """Returns."""

    def release(self) -> None:
        """Returns."""


class _DiskLock:
    def __init__(self, workdir: epath.Path, command: str) -> None:
        self._file: TextIO | None = open(workdir / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            _lock(self._file, workdir, command)
        except ConfigError:
            self._file.close()
            raise

    def announce(self) -> None:
        """Returns: the lock is held."""

    def check(self) -> None:
        """Returns: the kernel keeps others out."""

    def release(self) -> None:
        """Drops the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _StoreToken:
    def __init__(self, workdir: epath.Path) -> None:
        self._path, self._token = workdir / LOCK, secrets.token_hex(8)

    def announce(self) -> None:
        """Leaves the token: whoever had one there finds it gone."""
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": self._token}
        write_json(self._path, owner)

    def check(self) -> None:
        """Reads the token back."""
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
    # The kernel drops the lock with the process: none is left over after a kill.
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
    with contextlib.suppress(OSError):  # a full disk: the lock holds without its owner's name
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
