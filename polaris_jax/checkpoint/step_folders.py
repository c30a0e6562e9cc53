"""The step folders in a checkpoint directory: complete, unfinished, damaged or being deleted.

A step is committed by writing its manifest in a single put; nothing is renamed. If a step is saved
again, its new data go to a separate folder inside, `data-TOKEN/`. Then a new manifest replaces the
old one: before that the old data are valid, after that the new data. In an object store all data
are in such folders, so a run that has been taken over never writes to its successor's folders.

`STEP.unfinished` exists beside a step's folder while the step is written or deleted. The file
distinguishes what a kill has left from damage. What a kill has left is skipped without a warning
and deleted by the next save.
"""

from __future__ import annotations

import contextlib
import secrets

from etils import epath

from polaris_jax.checkpoint import manifest
from polaris_jax.system.files import delete, is_remote, sync_directory, write_bytes

DATA = "data"  # manifest key: the data's folder inside the step's folder; "": that folder
TOKEN = "data-"
UNFINISHED = ".unfinished"
_EARLIER_LEFT = (".partial", ".replaced", ".deleted")  # left by a kill of version 0.1


class StepFolders:
    """The steps in `directory`, which need not exist yet."""

    def __init__(self, directory: epath.Path) -> None:
        self.directory = directory

    # ---- reading

    def steps(self) -> list[int]:
        """Every step that has a folder, ascending, complete or not."""
        if not self.directory.is_dir():
            return []
        return sorted(
            int(p.name) for p in self.directory.iterdir() if p.name.isdigit() and p.is_dir()
        )

    def path(self, step: int) -> epath.Path:
        """The path of a step's folder."""
        return self.directory / str(step)

    def data(self, step: int) -> epath.Path:
        """The data folder of a complete step."""
        return self.path(step) / manifest.read_manifest(self.path(step)).get(DATA, "")

    def begun(self, step: int) -> bool:
        """True if a killed save left the step unfinished."""
        return self._mark(step).exists() and self.lacks_manifest(step)

    def lacks_manifest(self, step: int) -> bool:
        """True if a step has no manifest: its save, or a copy of it, ended before the last file."""
        return not (self.path(step) / manifest.MANIFEST).exists()

    def fault(self, step: int, *, checksums: bool = True) -> str | None:
        """A phrase that says why a step is not complete (see `manifest.fault`); None if it is."""
        if not self.path(step).is_dir():
            return "there is no such directory"
        others = ".*" if self._mark(step).exists() else f"{TOKEN}.*"
        return manifest.fault(self.path(step), checksums=checksums, others=others)

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
        manifest.delete_others(self.path(step))
        self._mark(step).unlink(missing_ok=True)
        sync_directory(self.directory)

    def delete(self, step: int) -> None:
        """Deletes a complete step, in an order in which a partial step never looks complete."""
        with contextlib.suppress(OSError):  # the disk may be too full for one more name
            write_bytes(self._mark(step), b"")
        (self.path(step) / manifest.MANIFEST).unlink()
        self.clear(step)

    def sweep(self) -> None:
        """Deletes what kills have left. Call only in a save, if this run owns the directory."""
        for path in list(self.directory.iterdir()):
            step = path.name.split(".")[0]
            if not step.isdigit():
                continue
            if path.suffix == UNFINISHED:
                with contextlib.suppress(OSError):  # unreadable now: a later save tries again
                    self.clear(int(step))
            elif path.suffix in _EARLIER_LEFT:
                delete(path)

    def _mark(self, step: int) -> epath.Path:
        return self.directory / f"{step}{UNFINISHED}"
