#!/usr/bin/env bash
# A real model learns on this machine: SmolLM2-135M-Instruct adds numbers.
#
#   launch/demo_real.sh [WORKDIR] [--config.a.b=value ...]      (default workdirs/demo_real)
#
# Scores it, trains 10 steps, scores it again, and prints five responses before and after. Every
# command resumes: after Ctrl-C the same line goes on where it stopped. POLARIS_PYTHON names another
# interpreter than this checkout's .venv/bin/python; POLARIS_TARGET=two_digits a harder task.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_workdir workdirs/demo_real "${BASH_SOURCE[0]}" "$@"
config=configs/smollm2_sums.py${POLARIS_TARGET:+:$POLARIS_TARGET}
polaris() {
  local command=$1
  shift
  "$launch_python" -m polaris_jax "$command" --config="$config" --workdir="$workdir" "$@"
}
began=$SECONDS
polaris evaluate --tag=before ${overrides[@]+"${overrides[@]}"}
polaris train ${overrides[@]+"${overrides[@]}"}
polaris evaluate --checkpoint=latest ${overrides[@]+"${overrides[@]}"}
polaris report ${overrides[@]+"${overrides[@]}"}
for when in before_ ""; do
  echo "== ${when:-after_}responses"
  "$launch_python" -m polaris_jax show "$workdir/${when}responses.jsonl" --limit=5
done
echo "demo-real: $((SECONDS - began)) s"
