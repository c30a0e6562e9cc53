"""Makes `peers` importable as it is for a script in benchmarks/.

JetStream installs a package of the name `benchmarks`, which hides our folder of that name.
"""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))
