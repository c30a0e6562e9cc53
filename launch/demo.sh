#!/usr/bin/env bash
# The demo: plain GRPO and the complete recipe from one small base model, for one seed.
#
#   launch/demo.sh [WORKDIR] [--config.a.b=value ...]      (default workdirs/demo)
#
# Makes the base (WORKDIR/base) and trains it both ways: the complete recipe in WORKDIR/polaris, and
# plain GRPO in WORKDIR/plain until it has sampled as many tokens, calibration and probe included.
# Scores both and prints what the gains consist of. Every command resumes: after Ctrl-C the same line
# goes on where it stopped. POLARIS_PYTHON names another interpreter than .venv/bin/python.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_workdir workdirs/demo "${BASH_SOURCE[0]}" "$@"
began=$SECONDS
polaris() {
  local command=$1 target=$2 name=$3
  shift 3
  "$launch_python" -m polaris_jax "$command" --config="configs/demo.py$target" \
    --workdir="$workdir/$name" ${overrides[@]+"${overrides[@]}"} "$@"
}
base=(--config.model.path="$workdir/base/base_model" --config.warmstart.steps=0)
polaris evaluate "" base
polaris calibrate :recipe polaris "${base[@]}"
polaris probe :recipe polaris "${base[@]}"
polaris train :recipe polaris "${base[@]}"
polaris evaluate :recipe polaris "${base[@]}" --checkpoint=latest
polaris report :recipe polaris "${base[@]}"
tokens=$("$launch_python" launch/demo_result.py tokens "$workdir/polaris")
equal=(--config.rollout.total_tokens="$tokens" "--config.stages[0].steps=1000")
polaris train :plain plain "${base[@]}" "${equal[@]}"
polaris evaluate :plain plain "${base[@]}" "${equal[@]}" --checkpoint=latest
"$launch_python" launch/demo_result.py "$workdir"
echo "demo: $((SECONDS - began)) s"
