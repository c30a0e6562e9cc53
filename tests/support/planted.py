"""The changes of benchmarks/prepare.py, a script that is no package, for tests."""

import importlib.util
import pathlib

_PATH = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "prepare.py"
_SPEC = importlib.util.spec_from_file_location("prepare_benchmark", _PATH)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)

PLANTED = _MODULE.PLANTED
other_macros, respaced, synthetic_rows = (
    _MODULE.other_macros,
    _MODULE.respaced,
    _MODULE.synthetic_rows,
)
