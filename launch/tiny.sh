#!/usr/bin/env bash
# The whole recipe on this machine: prepare, calibrate, probe, evaluate, train, evaluate, report.
#
#   launch/tiny.sh [WORKDIR] [--config.a.b=value ...]      (default workdirs/tiny)
#
# Every command resumes: after Ctrl-C the same line goes on where it stopped. POLARIS_PYTHON names
# another interpreter than this checkout's .venv/bin/python.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_workdir workdirs/tiny "${BASH_SOURCE[0]}" "$@"
polaris() {
  local command=$1
  shift
  "$launch_python" -m polaris_jax "$command" --config=configs/tiny_cpu.py --workdir="$workdir" "$@"
}
began=$SECONDS
polaris prepare ${overrides[@]+"${overrides[@]}"}
polaris calibrate ${overrides[@]+"${overrides[@]}"}
polaris probe ${overrides[@]+"${overrides[@]}"}
polaris evaluate --tag=before ${overrides[@]+"${overrides[@]}"}
polaris train ${overrides[@]+"${overrides[@]}"}
polaris evaluate --checkpoint=latest ${overrides[@]+"${overrides[@]}"}
polaris report ${overrides[@]+"${overrides[@]}"}
echo "tiny: $((SECONDS - began)) s"
