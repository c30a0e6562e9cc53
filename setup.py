"""Copies configs/ into the wheel, so that `--config=tiny_cpu` works without a checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = Path(__file__).parent / "configs"


class BuildWithConfigs(build_py):
    """Builds the package as usual, and adds its configs."""

    def run(self):
        super().run()
        if self.editable_mode:  # a checkout has them beside the package
            return
        target = Path(self.build_lib) / "polaris_jax" / "shipped_configs"
        shutil.copytree(
            CONFIGS, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )


setup(cmdclass={"build_py": BuildWithConfigs})
