"""A directory is whole only while every byte of it is what the manifest says."""

import random

import pytest

from polaris_jax.checkpoint import manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "arrays" / "d").mkdir(parents=True)
    for name, size in (("arrays/d/data", 3000), ("arrays/empty", 0), ("host.json", 20)):
        (tmp_path / name).write_bytes(random.Random(size).randbytes(size))
    files = manifest.sync_and_sum(tmp_path, manifest.list_files(tmp_path))
    manifest.write_manifest(tmp_path, {"step": 4, "note": "é"}, files)
    manifest.sync_folders(tmp_path)
    return tmp_path


def test_a_fresh_directory_is_whole_and_its_facts_come_back(folder):
    assert manifest.fault(folder) is None
    facts = manifest.read_manifest(folder)
    assert (facts["step"], facts["note"]) == (4, "é")
    assert sorted(facts["files"]) == ["arrays/d/data", "arrays/empty", "host.json"]


def test_every_flipped_bit_is_found(folder):
    rng = random.Random(0)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        data = path.read_bytes()
        for _ in range(min(40, 8 * len(data))):
            bit = rng.randrange(8 * len(data))
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert manifest.fault(folder) is not None, (path, bit)
        path.write_bytes(data)
    assert manifest.fault(folder) is None


@pytest.mark.parametrize("name", ["arrays/d/data", "host.json", manifest.MANIFEST])
def test_every_truncation_is_found_without_reading_checksums(folder, name):
    data = (folder / name).read_bytes()
    for size in (0, 1, len(data) // 2, len(data) - 2):
        (folder / name).write_bytes(data[:size])
        assert manifest.fault(folder, checksums=False) is not None


def test_missing_and_foreign_files_are_named(folder):
    (folder / "arrays" / "extra").write_text("x")
    assert manifest.fault(folder) == "arrays/extra does not belong to it"
    (folder / "arrays" / "extra").unlink()
    (folder / "arrays" / "empty").unlink()
    assert manifest.fault(folder) == "arrays/empty is missing"


def test_hidden_files_of_a_desktop_or_a_network_disk_do_no_harm(folder):
    (folder / ".DS_Store").write_text("x")
    (folder / "arrays" / ".nfs000000001").write_text("x")
    assert manifest.fault(folder) is None


def test_a_manifest_of_another_format_is_not_trusted(folder, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", 2)
    assert manifest.fault(folder) == "MANIFEST.json has format 1, this version reads 2"


def test_nothing_is_deleted_while_the_manifest_cannot_be_read(folder):
    (folder / "left").write_bytes(b"by a kill")
    whole = (folder / manifest.MANIFEST).read_bytes()
    (folder / manifest.MANIFEST).unlink()
    (folder / manifest.MANIFEST).mkdir()  # any error of the disk or store
    with pytest.raises(OSError, match="directory"):
        manifest.delete_others(folder)
    (folder / manifest.MANIFEST).rmdir()
    (folder / manifest.MANIFEST).write_bytes(whole)
    manifest.delete_others(folder)
    assert manifest.fault(folder) is None
    assert not (folder / "left").exists()


def test_reasons_for_nothing_at_all(tmp_path):
    assert manifest.fault(tmp_path) == "the directory is empty"
    (tmp_path / "x").write_text("")
    assert manifest.fault(tmp_path) == "MANIFEST.json is missing"
