#!/usr/bin/env bash
# One run of a sweep of Weights & Biases, as its agent starts it; see launch/wandb_sweep.yaml.
#
#   WANDB_RUN_ID=ID launch/wandb_sweep.sh --config=... [--config.a.b=value ...]
#
# Trains in workdirs/sweep/ID under that id, so that a run that was stopped continues there.
# POLARIS_PYTHON names another interpreter than this checkout's .venv/bin/python.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  usage "${BASH_SOURCE[0]}"
  exit 0
fi
[[ ${WANDB_RUN_ID:-} =~ ^[A-Za-z0-9_-]+$ ]] || die "WANDB_RUN_ID: needed; start it by \`wandb agent\`"
need_python
cd "$launch_root"
exec "$launch_python" -m polaris_jax train "$@" --workdir="workdirs/sweep/$WANDB_RUN_ID" \
  --config.metrics.wandb=True --config.metrics.wandb_group="${WANDB_SWEEP_ID:-}"
