"""An object store in a local folder: `gs://` paths that know no rename, for tests of storage."""

from pathlib import Path

import pytest
from etils.epath import backend, gpath

from polaris_jax.system import files


def mount(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Lets `gs://NAME` mean `root/NAME` for the length of a test."""

    def local(path):
        return str(root / str(path).removeprefix("gs://"))

    class Store(backend._OsPathBackend):
        def open(self, path, mode):
            Path(local(path)).parent.mkdir(parents=True, exist_ok=True)
            return super().open(local(path), mode)

        def exists(self, path):
            return super().exists(local(path))

        def isdir(self, path):
            return super().isdir(local(path))

        def listdir(self, path):
            return super().listdir(local(path))

        def glob(self, path):
            return ["gs:/" + found.removeprefix(str(root)) for found in super().glob(local(path))]

        def makedirs(self, path, *, exist_ok=False, mode=None):
            super().makedirs(local(path), exist_ok=exist_ok)

        def mkdir(self, path, *, exist_ok=False, mode=None):
            super().mkdir(local(path), exist_ok=exist_ok)

        def rmtree(self, path):
            super().rmtree(local(path))

        def remove(self, path):
            super().remove(local(path))

        def stat(self, path):
            return super().stat(local(path))

        def rename(self, path, dst):
            pytest.fail(f"{path} is renamed")

        replace = rename

    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", Store())
    monkeypatch.setitem(files._STORES, "gs", ("json", "gcs"))  # gcsfs need not be installed
