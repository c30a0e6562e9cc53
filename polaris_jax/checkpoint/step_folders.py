"""The folders of a directory of checkpoints, one a step: whole, begun, damaged, or on the way out.

A step counts by its manifest alone, whose single put is the commit: nothing is renamed. A step that
is saved again gets its new data into a folder of their own inside, `data-TOKEN/`, and then a new
manifest in the place of the old one: until that moment the old data count, from it on the new. In
an object store all data lie in such folders, so that a run that has been taken over never writes
where its successor does.

`STEP.unfinished` lies beside a step's folder while it is written or deleted. It tells what a kill
has left, which is passed over in silence and swept by the next save, from damage.
"""

from __future__ import annotations

import contextlib
import secrets

from etils import epath

from polaris_jax.checkpoint import manifest
from polaris_jax.system.files import delete, is_remote, sync_directory, write_bytes

DATA = "data"  # in the manifest: the folder inside the step's that holds the data; "": itself
TOKEN = "data-"
UNFINISHED = ".unfinished"
_EARLIER_LEFT = (".partial", ".replaced", ".deleted")  # by a kill of version 0.1


class StepFolders:
    """The steps in `directory`, which need not be there yet."""

    def __init__(self, directory: epath.Path) -> None:
        self.directory = directory

    # ---- reading

    def steps(self) -> list[int]:
        """Every step that has a folder, ascending, whatever is in it."""
        if not self.directory.is_dir():
            return []
        return sorted(
            int(p.name) for p in self.directory.iterdir() if p.name.isdigit() and p.is_dir()
        )

    def path(self, step: int) -> epath.Path:
        """A step's folder."""
        return self.directory / str(step)

    def data(self, step: int) -> epath.Path:
        """Where the data of a whole step lie."""
        return self.path(step) / manifest.read_manifest(self.path(step)).get(DATA, "")

    def begun(self, step: int) -> bool:
        """Whether a save that was killed has left no more of a step than a beginning."""
        return self._mark(step).exists() and self.lacks_manifest(step)

    def lacks_manifest(self, step: int) -> bool:
        """Whether a step is torn: its save, or a copy of it, was cut off before the last file."""
        return not (self.path(step) / manifest.MANIFEST).exists()

    def fault(self, step: int, *, checksums: bool = True) -> str | None:
        """Why a step is not whole, in one phrase, as `manifest.fault`; None when it is."""
        if not self.path(step).is_dir():
            return "there is no such directory"
        others = ".*" if self._mark(step).exists() else f"{TOKEN}.*"
        return manifest.fault(self.path(step), checksums=checksums, others=others)

    # ---- writing

    def begin(self, step: int, *, keep: bool) -> str:
        """Makes room for a step's data.

        Args:
            step: what is about to be saved.
            keep: it is there already, whole, and stays so until `clear`.

        Returns:
            The folder inside the step's that the data go into: "", or a name and a slash.
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
        """Ends what `begin` began: deletes all that the step's manifest does not name."""
        manifest.delete_others(self.path(step))
        self._mark(step).unlink(missing_ok=True)
        sync_directory(self.directory)

    def delete(self, step: int) -> None:
        """Deletes a whole step, in an order that never makes a half look whole."""
        with contextlib.suppress(OSError):  # a disk too full for one more name
            write_bytes(self._mark(step), b"")
        (self.path(step) / manifest.MANIFEST).unlink()
        self.clear(step)

    def sweep(self) -> None:
        """Removes what kills have left; only while saving, when this run owns the directory."""
        for path in list(self.directory.iterdir()):
            step = path.name.split(".")[0]
            if not step.isdigit():
                continue
            if path.suffix == UNFINISHED:
                with contextlib.suppress(OSError):  # unreadable now: another save tries again
                    self.clear(int(step))
            elif path.suffix in _EARLIER_LEFT:
                delete(path)

    def _mark(self, step: int) -> epath.Path:
        return self.directory / f"{step}{UNFINISHED}"
