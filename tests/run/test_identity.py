"""A run continues with the model that it began with, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polaris_jax.config import ConfigError, build_config, default_config
from polaris_jax.models.weights.sources import model_identity
from polaris_jax.run import workdir as workdir_lib
from tests.support import micro_run

ONE_STEP = ("--config.stages[0].steps=1", "--config.stages[1].steps=1")
PARTS = {
    "model.safetensors": "weights",
    "tokenizer.json": "tokenizer",
    "chat_template.jinja": "chat template",
}


def swap(file: Path) -> bytes:
    """Changes one byte in the middle of a file; returns the former content."""
    content = file.read_bytes()
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    return content


def kept(workdir: Path) -> dict[Path, bytes]:
    """Every file of a run but the record of its starts."""
    files = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    return {p: content for p, content in files.items() if p.name not in ("run.json", ".lock")}


def test_another_model_at_the_same_path_is_refused_and_nothing_is_lost(tmp_path):
    base, problems = micro_run.make_base(tmp_path)
    line, workdir = micro_run.flags(base, problems, *ONE_STEP), tmp_path / "run"
    micro_run.finish(micro_run.start_train(workdir, line))
    before = kept(workdir)
    for file, part in PARTS.items():
        former = swap(base / file)
        process = micro_run.start_train(workdir, line)
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 2, said
        assert f"another {part} than the run in workdir=" in said
        assert kept(workdir) == before
        (base / file).write_bytes(former)
    assert "already complete: 2 steps" in micro_run.finish(micro_run.start_train(workdir, line))


def test_each_part_of_a_model_is_known_by_its_bytes(tmp_path):
    base, _ = micro_run.make_base(tmp_path)
    before = model_identity(base)
    assert model_identity(base) == before
    for file, part in PARTS.items():
        former = swap(base / file)
        after = model_identity(base)
        assert [name for name in before if before[name] != after[name]] == [part]
        (base / file).write_bytes(former)
    (base / "README.md").write_text("not read")
    assert model_identity(base) == before


def test_a_run_of_an_earlier_version_takes_the_present_model_as_its_own(tmp_path):
    config = build_config(default_config())
    workdir_lib.claim(tmp_path, config).release()
    assert "identity" not in json.loads((tmp_path / "run.json").read_text())
    workdir_lib.keep_identity(tmp_path, {"weights": "a", "tokenizer": "b"}, path="m")
    workdir_lib.claim(tmp_path, config).release()
    workdir_lib.keep_identity(tmp_path, {"weights": "a", "tokenizer": "b"}, path="m")
    with pytest.raises(ConfigError, match=r"model\.path=m: another weights and tokenizer than"):
        workdir_lib.keep_identity(tmp_path, {"weights": "c", "tokenizer": "d"}, path="m")
    workdir_lib.claim(tmp_path, config, overwrite=True).release()
    workdir_lib.keep_identity(tmp_path, {"weights": "c", "tokenizer": "d"}, path="m")
