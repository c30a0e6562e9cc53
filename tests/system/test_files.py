"""Places on a disk and in an object store, and writes that are whole or absent."""

import errno
import os
from pathlib import Path

import pytest

from polaris_jax.config import ConfigError
from polaris_jax.system import files


def test_a_local_place_is_absolute_and_a_store_stays_as_named(bucket, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert str(files.as_place("runs/a")) == str(tmp_path / "runs" / "a")
    assert str(files.as_place("~/a")) == str(tmp_path / "home" / "a")
    assert files.as_place(Path("/x/y")) == Path("/x/y")
    assert str(files.as_place("gs://bucket/a/b/")) == "gs://bucket/a/b"


@pytest.mark.parametrize(
    ("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")]
)
def test_a_missing_package_is_named_with_its_command(monkeypatch, scheme, package, extra):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        files.as_place(f"{scheme}://bucket/run")
    assert f"needs the package {package}" in str(caught.value)
    assert f"pip install 'polaris_jax[{extra}]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_scheme_is_refused():
    with pytest.raises(
        ConfigError, match=r"http:// is not known; name a directory, gs:// or s3://"
    ):
        files.as_place("http://host/run")


@pytest.mark.parametrize("remote", [False, True], ids=["disk", "store"])
def test_writes_and_appends_add_up(bucket, tmp_path, remote):
    folder = files.as_place("gs://bucket/run" if remote else tmp_path)
    files.write_bytes(folder / "a", b"1\n")
    files.append_bytes(folder / "a", b"2\n")
    files.append_bytes(folder / "new", b"3\n", durable=False)
    assert (folder / "a").read_bytes() == b"1\n2\n"
    assert sorted(p.name for p in files.files_below(folder)) == ["a", "new"]
    files.delete(folder / "a")
    files.delete(folder / "absent")
    assert [p.name for p in files.matching(folder, "*")] == ["new"]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(OSError) as caught:
        files.append_bytes(tmp_path / "a", b"1\n")
    assert caught.value.errno == errno.ENXIO and caught.value.filename == str(tmp_path / "a")


def test_a_refused_write_names_the_place_and_keeps_the_old(bucket, monkeypatch, tmp_path):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    for place in (files.as_place("gs://bucket/a"), files.as_place(tmp_path / "a")):
        files.write_bytes(place, b"old")
    bucket.on_change = refuse
    with pytest.raises(OSError) as caught:
        files.write_bytes("gs://bucket/a", b"new")
    assert caught.value.filename == "gs://bucket/a"
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        files.write_bytes(tmp_path / "a", b"new")
    assert bucket.read("bucket/a") == b"old"
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
