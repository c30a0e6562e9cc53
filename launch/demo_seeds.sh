#!/usr/bin/env bash
# Three seeds, fixed beforehand, each in three arms from the same warm start:
#   polaris  the recipe as `launch/tiny.sh` runs it
#   plain    GRPO without rescue, substitution, probe, stages and curation, at equal tokens sampled in training
#   control  the recipe with rewards permuted inside each group
#
#   launch/demo_seeds.sh [WORKDIR]      (default workdirs/seeds); resumes after an interruption
#
# Writes docs/results/demo_seeds.json and .md through launch/demo_seeds.py. POLARIS_PYTHON names
# another interpreter than this checkout's .venv/bin/python.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  usage "${BASH_SOURCE[0]}"
  exit 0
fi
[[ $# -le 1 && ${1:-} != -* ]] || die "${*: -1}: expected one WORKDIR at most (see --help)"
need_python
cd "$launch_root"
root=${1:-workdirs/seeds}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
polaris_with() {
  local command=$1 workdir=$2 seed=$3
  shift 3
  "$launch_python" -m polaris_jax "$command" --config=configs/tiny_cpu.py --workdir="$workdir" \
    --config.seed="$seed" --config.warmstart.seed="$seed" "$@"
}
# take FILE FOLDER: what a rerun finds in place stays as it is. The last name is given to complete
# copies only, so that a kill in between leaves nothing that counts.
take() {
  local target
  target=$2/$(basename "$1")
  if [[ ! -e $target ]]; then
    rm -rf "$target.part"
    cp -r "$1" "$target.part"
    mv "$target.part" "$target"
  fi
}
for seed in 0 1 2; do
  polaris=$root/polaris-$seed
  plain=$root/plain-$seed
  control=$root/control-$seed
  launch/tiny.sh "$polaris" --config.seed="$seed" --config.warmstart.seed="$seed"

  tokens=$("$launch_python" launch/demo_seeds.py tokens "$polaris")
  mkdir -p "$plain" "$control"
  take "$polaris/base_model" "$plain"
  for name in base_model curated.parquet probe.json; do
    take "$polaris/$name" "$control"
  done

  off=(--config.batch.rescue=False --config.batch.substitute=False
    --config.stages[0].temperature_rule=fixed --config.stages[0].temperature=1.0
    --config.stages[1].temperature_rule=fixed --config.stages[1].temperature=1.0
    --config.stages[0].max_response_tokens=72 --config.stages[0].drop_above=1.0
    --config.stages[0].steps=1 --config.stages[1].steps=400 --config.stages[1].reset_optimizer=False
    --config.rollout.total_tokens="$tokens")
  polaris_with train "$plain" "$seed" "${off[@]}"
  polaris_with evaluate "$plain" "$seed" --checkpoint=latest "${off[@]}"

  polaris_with train "$control" "$seed" --config.reward.control=permute
  polaris_with evaluate "$control" "$seed" --checkpoint=latest
done
"$launch_python" launch/demo_seeds.py report "$root" docs/results
