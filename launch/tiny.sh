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
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  usage "${BASH_SOURCE[0]}"
  exit 0
fi
need_python
workdir=workdirs/tiny
if [[ $# -gt 0 && $1 != -* ]]; then
  workdir=$1
  shift
fi
for flag in "$@"; do
  [[ $flag == --config.* ]] || die "$flag: expected --config.a.b=value (see --help)"
done
cd "$launch_root"
polaris() {
  local command=$1
  shift
  "$launch_python" -m polaris_jax "$command" --config=configs/tiny_cpu.py --workdir="$workdir" "$@"
}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
began=$SECONDS
polaris prepare "$@"
polaris calibrate "$@"
polaris probe "$@"
polaris evaluate --tag=before "$@"
polaris train "$@"
polaris evaluate --checkpoint=latest "$@"
polaris report "$@"
echo "tiny: $((SECONDS - began)) s"
