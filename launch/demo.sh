#!/usr/bin/env bash
# The whole recipe on this machine: prepare, calibrate, probe, evaluate, train, evaluate, report.
# usage: launch/demo.sh [WORKDIR] [--config.a.b=value ...]      (default workdirs/demo)
# Every command resumes: after Ctrl-C the same line goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
workdir=workdirs/demo
if [[ $# -gt 0 && $1 != --* ]]; then
  workdir=$1
  shift
fi
polaris() {
  local command=$1
  shift
  .venv/bin/python -m polaris_jax "$command" --config=configs/tiny_cpu.py --workdir="$workdir" "$@"
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
echo "demo: $((SECONDS - began)) s"
