"""The third kernel comes from its package without that package's own imports."""

import importlib
import sys

import pytest

from polaris_jax.rollout.kv import ragged_v3

KERNEL = """
from tpu_inference.kernels.ragged_paged_attention.v3.util import NAME
def ragged_paged_attention():
    return NAME
"""


@pytest.fixture
def fresh():
    yield
    ragged_v3.load.cache_clear()
    ragged_v3.installed.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_the_kernel_is_imported_without_the_package_around_it(tmp_path, monkeypatch):
    folder = tmp_path / "tpu_inference" / "kernels" / "ragged_paged_attention" / "v3"
    folder.mkdir(parents=True)
    (tmp_path / "tpu_inference" / "__init__.py").write_text("import torch_that_is_not_here")
    (folder / "kernel.py").write_text(KERNEL)
    (folder / "util.py").write_text("NAME = 'the kernel'")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    ragged_v3.installed.cache_clear()
    assert ragged_v3.installed()
    assert ragged_v3.load()() == "the kernel"
    assert not [name for name in sys.modules if name.startswith("tpu_inference")]
    with pytest.raises(ModuleNotFoundError, match="torch_that_is_not_here"):
        importlib.import_module("tpu_inference")


@pytest.mark.usefixtures("fresh")
def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps tpu-inference"):
        ragged_v3.load()
