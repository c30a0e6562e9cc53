"""Saves and restores everything that a resume needs.

A checkpoint is a directory named by its step. It holds `arrays/` (orbax, written by all processes),
`host.json`, `host.bin` (the arrays that `host.json` refers to) and, written last, `MANIFEST.json`.
`step_folders` describes how a checkpoint is written, replaced and deleted on a
disk or in an object store. `latest` reads every byte of a checkpoint before it returns the step.

All processes of a run call `save`, `latest` and `restore` together, on a shared disk or store.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from polaris_jax.checkpoint import step_folders
from polaris_jax.checkpoint.arrays import (
    StreamedArray,
    as_committed_as,
    differing_arrays,
    differing_fields,
    has_streamed,
    named_leaves,
    open_arrays,
    save_args,
    shape_and_dtype,
    within_reach,
)
from polaris_jax.checkpoint.arrays import orbax as _orbax
from polaris_jax.checkpoint.snapshots import canonical_json, plain, read_host
from polaris_jax.checkpoint.step_folders import DATA, StepFolders, step_number
from polaris_jax.config.settings import ConfigError
from polaris_jax.run.owner import TakenOver
from polaris_jax.system import processes
from polaris_jax.system.files import AnyPath, as_place, cause_of, sync_directory, write_bytes
from polaris_jax.system.foreign import HOST_BYTES, open_regular, read_bytes
from polaris_jax.system.progress import say

T = TypeVar("T")
Host = tuple[bytes, list[np.ndarray]]  # as `canonical_json` makes it

ARRAYS = "arrays"
HOST = "host.json"
HOST_ARRAYS = "host.bin"
TOKENIZER = "tokenizer"  # folder beside the steps
_REMEDIES = {
    errno.ENOSPC: "free some space and rerun",
    errno.EDQUOT: "free some space and rerun",
    errno.EMFILE: "raise the limit, as with `ulimit -n`, and rerun",
}


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read. The text is one line for the user."""


class Checkpointer:
    """The checkpoints of one directory.

    Args:
        directory: holds one directory for each step; created by the first save.
        keep_last: number of complete checkpoints to keep. Older ones are deleted when the new one
            is complete.
        config_hash: hash that is recorded in the manifest.
        architecture: JSON-able dict of what makes two models' weights incompatible; recorded on
            save and compared on restore. None records and compares nothing.
        only: the one step to use, ignoring all others; None: all steps.
        may_write: function that the first process calls before it writes and before it commits. It
            raises TakenOver if another run owns the directory; then nothing is written.
        warn: function that gets a warning for every skipped checkpoint; default: print to stderr.
    """

    def __init__(
        self,
        directory: AnyPath,
        *,
        keep_last: int = 2,
        config_hash: str = "",
        architecture: dict[str, Any] | None = None,
        only: int | None = None,
        may_write: Callable[[], None] = lambda: None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        if keep_last < 1:
            raise ConfigError(f"checkpoint.keep_last={keep_last}: must be at least 1")
        self.directory = as_place(directory)
        if str(self.directory).startswith("s3://") and jax.process_count() > 1:
            raise ConfigError(
                f"checkpoint {self.directory}: one process alone reads and writes s3://; use gs:// "
                "or a disk that all processes share"
            )
        self._folders = StepFolders(self.directory)
        self._keep_last, self._only, self._may_write = keep_last, only, may_write
        self._config_hash, self._architecture = config_hash, plain(architecture)
        self._warn = warn or (lambda text: say(f"warning: {text}", sys.stderr))
        self._verified: set[int] = set()
        self._torn: set[int] = set()
        #: The step that this object last saved, verified or restored; None before that.
        self.newest_saved: int | None = None

    @classmethod
    def of(cls, path: AnyPath, **options: Any) -> Checkpointer:
        """The checkpointer of a path from the user: a workdir, its checkpoints/, or one step.

        Raises:
            ConfigError: the directory does not exist.
        """
        path = as_place(path)
        if not path.is_dir():
            raise ConfigError(f"checkpoint {path}: no such directory")
        if (path / "checkpoints").is_dir():  # checked first: a workdir may be called 7 too
            return cls(path / "checkpoints", **options)
        if (step := step_number(path.name)) is not None:
            return cls(path.parent, only=step, **options)
        return cls(path, **options)

    def steps(self) -> list[int]:
        """Steps that are complete by manifest, names and sizes, ascending, without checksums."""
        found = [s for s in self._candidates() if s not in self._torn]
        return [s for s in found if self._folders.seems_whole(s)]

    def latest(self) -> int | None:
        """The newest complete step, with every byte verified; None if there is none.

        Warns of each newer step that is not complete, with the reason. Raises OSError if the disk
        or store of one does not answer.
        """
        return processes.from_first(self._latest)

    def damaged(self) -> list[int]:
        """Steps whose folders are not whole, without those that a kill has left; ascending."""
        whole = set(self.steps())
        return [s for s in self._candidates() if s not in whole and not self._folders.begun(s)]

    def latest_or_error(self) -> int:
        """`latest`, for a user who has asked for a checkpoint.

        Raises:
            ConfigError: there is no complete checkpoint.
        """
        step = self.latest()
        if step is None:
            which = "" if self._only is None else f" {self._only}"
            torn = [s for s in self._candidates() if self._folders.lacks_manifest(s)]
            why = f"; step {torn[-1]} is torn: {step_folders.MANIFEST} is missing" if torn else ""
            raise ConfigError(f"checkpoint {self.directory}: no whole checkpoint{which} in it{why}")
        return step

    def _latest(self) -> int | None:
        for step in reversed(self._candidates()):
            if self._folders.begun(step):
                continue
            reason = self._fault(step)
            if reason is None:
                self.newest_saved = step
                return step
            older = "; falling back to an older one" if self._only is None else ""
            self._warn(f"checkpoint {step} in {self.directory} is not whole: {reason}{older}")
        return None

    def save(
        self, step: int, arrays: Any, host: dict[str, Any], *, facts: dict[str, Any] | None = None
    ) -> None:
        """Writes a complete checkpoint of `step`, then deletes the oldest beyond `keep_last`.

        A checkpoint of the same step is replaced. The old one stays complete until the new one is.

        Args:
            step: number of the step, at least 0; names the directory.
            arrays: pytree of jax.Array with any sharding; every process passes its own view. In a
                single process also of `StreamedArray`, which is in memory one part at a time.
            host: JSON-able state, equal in all processes. It may hold numpy arrays; numpy scalars
                become plain numbers, and tuples are restored as lists.
            facts: JSON-able facts about the weights for the manifest, which `facts` returns.

        Raises:
            ValueError: a leaf is not a jax.Array, or the host state is not JSON-able.
            CheckpointError: the write failed, for example on a full disk. Older checkpoints stay
                unchanged, and nothing is left that blocks another save.
            TakenOver: another run owns the directory.
        """
        leaves = named_leaves(arrays)
        streamed = has_streamed(leaves)
        for path, leaf in leaves.items():
            if not isinstance(leaf, StreamedArray if streamed else jax.Array):
                raise ValueError(
                    f"checkpoint {step}: {path} is a {type(leaf).__name__}; arrays hold jax.Array "
                    "alone, other state goes into host"
                )
        encoded = canonical_json(host, f"checkpoint {step}")
        try:
            self._write(step, leaves, encoded, facts or {})
        except TakenOver:
            raise  # the files there belong to the other run
        except (OSError, ValueError, RuntimeError) as error:
            # The other processes of the run wait for this process, and end when it ends.
            if processes.is_first():
                with contextlib.suppress(OSError):
                    self._folders.clear(step)
            raise CheckpointError(self._save_failure(step, error)) from error
        self._torn.discard(step)
        self._verified.add(step)
        self.newest_saved = step

    def _write(self, step: int, leaves: dict[str, Any], host: Host, facts: dict[str, Any]) -> None:
        folders, path = self._folders, self._folders.path(step)

        def begin() -> str:
            self._may_write()
            whole = step not in self._torn and folders.fault(step, checksums=False) is None
            return folders.begin(step, keep=whole)

        def commit() -> None:
            body = {
                **facts,
                "step": step,
                "config_hash": self._config_hash,
                "architecture": self._architecture,
                "arrays": {path: shape_and_dtype(leaf) for path, leaf in leaves.items()},
                DATA: folder,
            }
            step_folders.sync_folders(path)
            self._may_write()
            step_folders.write_manifest(path, body, files)
            sync_directory(self.directory)
            reason = folders.fault(step, checksums=False)
            if reason is not None:
                raise CheckpointError(f"checkpoint {step} does not read back: {reason}")
            with contextlib.suppress(OSError):  # complete already: the next save cleans up
                folders.clear(step)
            self._prune(step)

        folder = processes.from_first(begin)
        data = path / folder
        streamed = has_streamed(leaves)
        with _orbax(saving=True, streamed=streamed) as orbax:
            args = ocp.args.PyTreeSave(leaves, save_args=save_args(leaves))
            with within_reach(data / ARRAYS, saving=True) as place:
                orbax.save(place, args=args)
        if processes.is_first():
            text, host_arrays = host
            write_bytes(data / HOST, text)
            if host_arrays:
                with (data / HOST_ARRAYS).open("wb") as file:
                    for array in host_arrays:
                        file.write(array.data)
        names = processes.from_first(
            lambda: [f"{folder}{name}" for name in step_folders.list_files(data)]
        )
        mine = names[jax.process_index() :: jax.process_count()]
        shares = processes.gather_objects(step_folders.sync_and_sum(path, mine))
        files = {name: entry for share in shares for name, entry in share.items()}
        processes.first_does(commit, f"checkpoint {step} committed")

    def restore(self, step: int, abstract: T, *, partial: bool = False) -> tuple[T, dict[str, Any]]:
        """The arrays and the host state of `step`, bit for bit as saved.

        Args:
            step: number of a complete step.
            abstract: pytree like the saved one. Its leaves (jax.ShapeDtypeStruct or jax.Array) give
                shape, dtype and sharding. The sharding may differ from the saved one.
            partial: True: `abstract` may lack leaves (parameters without optimizer).

        Raises:
            ConfigError: the checkpoint has another architecture. The text names the fields that
                differ; no array has been read.
            CheckpointError: the checkpoint is not complete, or cannot be read.
            OSError: its disk or store does not answer.
        """
        reason = processes.from_first(lambda: None if step in self._verified else self._fault(step))
        if reason is not None:
            raise CheckpointError(f"checkpoint {step} in {self.directory} is not whole: {reason}")
        leaves = named_leaves(abstract)
        self._check_architecture(step, leaves, partial=partial)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        restore_args = {
            path: ocp.ArrayRestoreArgs(
                sharding=getattr(leaf, "sharding", None) or here,
                global_shape=leaf.shape,
                dtype=leaf.dtype,
            )
            for path, leaf in leaves.items()
        }
        args = ocp.args.PyTreeRestore(
            item={
                path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()
            },
            restore_args=restore_args,
            partial_restore=partial,
        )
        try:
            arrays = self._folders.data(step) / ARRAYS
            with _orbax() as orbax, within_reach(arrays, saving=False) as place:
                restored = orbax.restore(place, args=args)
            host = self.host(step)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} cannot be read: {cause_of(error)[0]}"
            ) from error
        self.newest_saved = step
        ordered = [as_committed_as(leaf, restored[path]) for path, leaf in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract), ordered), host

    def facts(self, step: int) -> dict[str, Any]:
        """The manifest of `step`: config_hash, architecture, arrays by name, the saved facts.

        Raises:
            CheckpointError: the step is not complete.
        """
        try:
            return step_folders.read_manifest(self._folders.path(step))
        except ValueError as error:
            where = f"checkpoint {step} in {self.directory}"
            raise CheckpointError(f"{where} is not whole: {error}") from error

    def host(self, step: int) -> dict[str, Any]:
        """The host state of `step`, without the device arrays."""
        data = self._folders.data(step)
        text = read_bytes(data / HOST, most_bytes=HOST_BYTES)
        return read_host(text, lambda: open_regular(data / HOST_ARRAYS))

    def open_arrays(self, step: int, names: list[str]) -> dict[str, Any]:
        """Arrays of `step` by name, as opened tensorstores, which are read part by part.

        Raises:
            CheckpointError: an array cannot be opened.
        """
        try:
            return open_arrays(self._folders.data(step) / ARRAYS, names)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} cannot be read: {cause_of(error)[0]}"
            ) from error

    def _check_architecture(self, step: int, leaves: dict[str, Any], *, partial: bool) -> None:
        facts = step_folders.read_manifest(self._folders.path(step))
        saved, present = facts["architecture"], self._architecture
        told = differing_fields(saved, present) if saved is not None and present is not None else ""
        told = told or differing_arrays(facts["arrays"], leaves, partial=partial)
        if told:
            raise ConfigError(
                f"checkpoint {step} in {self.directory} is of another architecture: {told}; use "
                "the model it was made from, or another workdir"
            )

    # ---- the directory

    def _candidates(self) -> list[int]:
        return [s for s in self._folders.steps() if self._only in (None, s)]

    def _fault(self, step: int) -> str | None:
        reason = self._folders.fault(step)
        if reason is None:
            self._verified.add(step)
        else:
            self._torn.add(step)
        return reason

    def tidy(self) -> None:
        """Deletes what kills have left, and complete steps beyond `keep_last`.

        A save does the same. A resume calls this, because a run that has nothing left to do saves
        nothing. All processes call it.

        Raises:
            TakenOver: another run owns the directory.
        """

        def clean() -> None:
            self._may_write()
            with contextlib.suppress(OSError):  # a read-only disk: nothing of ours is in the way
                self._folders.sweep()
            if newest := self.steps():
                self._prune(newest[-1])

        processes.first_does(clean, "checkpoints tidied")

    def _prune(self, newest: int) -> None:
        # The new checkpoint is complete by now: if this fails, the next save tries again.
        with contextlib.suppress(OSError):
            older = [s for s in self.steps() if s < newest]
            for step in older[: max(0, len(older) + 1 - self._keep_last)]:
                self._folders.delete(step)

    def _save_failure(self, step: int, error: BaseException) -> str:
        text, number = cause_of(error)
        remedy = _REMEDIES.get(number, "mend this and rerun")
        kept = "there is no older one"
        with contextlib.suppress(OSError, IndexError):
            kept = f"checkpoint {self.steps()[-1]} is kept"
        return (
            f"checkpoint {step} could not be saved in {self.directory}: {text}; {remedy} ({kept})"
        )
