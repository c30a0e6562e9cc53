"""Data sets of the Hub: a plain one by huggingface_hub alone, configs and splits by `datasets`."""

import sys
import types

import pyarrow as pa
import pytest

from polaris_jax.data import hub, sources
from polaris_jax.data.problems import read_problems
from polaris_jax.data.sources import DataError
from polaris_jax.system.files import as_place


class Table:
    def __init__(self, path):
        self.cache_files = [{"filename": str(path)}]


@pytest.fixture
def arrow(tmp_path):
    table = pa.Table.from_pylist([{"question": "Q", "answer": "worked\n#### 42"}])
    path = tmp_path / "gsm8k-train.arrow"
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)
    return path


def with_datasets(monkeypatch, load):
    module = types.ModuleType("datasets")
    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"config and split of a data set.*polaris_jax\[hub\]"):
        read_problems("openai/gsm8k,config=main,split=train")


def test_config_split_and_revision_reach_the_package(monkeypatch, arrow):
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return Table(arrow)

    with_datasets(monkeypatch, load)
    problems, _ = read_problems("openai/gsm8k,config=main,split=test,revision=abc")
    assert [(p.problem, p.answer) for p in problems] == [("Q", "42")]
    assert asked == [(("openai/gsm8k", "main"), {"split": "test", "revision": "abc"})]


def test_the_training_split_is_taken_of_several(monkeypatch, arrow):
    with_datasets(monkeypatch, lambda *_, **__: {"test": None, "train": Table(arrow)})
    assert len(read_problems("o/n,config=main")[0]) == 1
    with_datasets(monkeypatch, lambda *_, **__: {"dev": None, "test": None})
    with pytest.raises(DataError, match="has the splits dev, test; choose one with split="):
        read_problems("o/n,config=main")


def test_a_failure_of_the_package_is_one_line(monkeypatch):
    def load(*_, **__):
        raise RuntimeError("no such\nconfig")

    with_datasets(monkeypatch, load)
    with pytest.raises(DataError, match=r"`datasets` cannot load it \(.*no such config.*\)"):
        read_problems("o/n,config=other")


def test_a_revision_alone_needs_no_further_package(monkeypatch, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"problem": "Q", "answer": "1"}\n')
    asked = {}

    def download(name, suffixes, **kwargs):
        asked.update(kwargs, name=name)
        return as_place(tmp_path)

    monkeypatch.setattr(sources, "download_dataset", download)
    monkeypatch.setattr(hub, "dataset_files", lambda _: pytest.fail("not needed"))
    assert len(read_problems("o/n,revision=v1.0")[0]) == 1
    assert (asked["name"], asked["revision"]) == ("o/n", "v1.0")
