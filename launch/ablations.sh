#!/usr/bin/env bash
# The small ablations: every table of configs/ablations, one after the other.
#
#   launch/ablations.sh [--all] [--out DIR]     (default workdirs/ablations); resumes after any stop
#
# Without --all: parts, the headline in three regimes, controls, rescue by difficulty, temperature,
# difficulty, YaRN. With --all also resets, budgets, dropping of easy problems, the objective. Writes
# docs/results/ablations.md, .json and a figure a table through launch/ablations.py. POLARIS_PYTHON
# names another interpreter than this checkout's .venv/bin/python.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
tables=(parts headline headline_mastered headline_sure controls rescue_by_difficulty temperature difficulty yarn)
out=workdirs/ablations
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help)
      usage "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --all) tables+=(reset length easy_drop objective) ;;
    --out)
      need_value --out "$@"
      out=$2
      shift
      ;;
    *) die "$1: expected --all or --out DIR (see --help)" ;;
  esac
  shift
done
need_python
cd "$launch_root"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
for table in "${tables[@]}"; do
  case $table in # the bases of four tables differ from the others'
    yarn | length | headline_sure | headline_mastered) bases=$out/$table/bases ;;
    *) bases=$out/bases ;;
  esac
  "$launch_python" -m polaris_jax ablate "configs/ablations/$table.py" --out="$out/$table" \
    --bases="$bases"
done
"$launch_python" launch/ablations.py "$out" docs/results
