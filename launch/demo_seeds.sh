#!/usr/bin/env bash
# Three seeds, fixed beforehand, each in three arms from the same warm start:
#   polaris  the recipe as `make demo` runs it
#   plain    GRPO without rescue, substitution, probe, stages and curation, at equal sampled tokens
#   control  the recipe with rewards permuted inside each group
# usage: launch/demo_seeds.sh [WORKDIR]      (default workdirs/seeds); resumes after an interruption
# Writes docs/results/demo_seeds.json and .md through launch/demo_seeds.py.
set -euo pipefail
cd "$(dirname "$0")/.."
root=${1:-workdirs/seeds}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
run() {
  local command=$1 workdir=$2 seed=$3
  shift 3
  .venv/bin/python -m polaris_jax "$command" --config=configs/tiny_cpu.py --workdir="$workdir" \
    --config.seed="$seed" --config.warmstart.seed="$seed" "$@"
}
# What a rerun finds in place stays as it is.
take() {
  [[ -e $2/$(basename "$1") ]] || cp -r "$1" "$2/"
}
for seed in 0 1 2; do
  polaris=$root/polaris-$seed
  plain=$root/plain-$seed
  control=$root/control-$seed
  launch/demo.sh "$polaris" --config.seed="$seed" --config.warmstart.seed="$seed"

  tokens=$(.venv/bin/python launch/demo_seeds.py tokens "$polaris")
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
  run train "$plain" "$seed" "${off[@]}"
  run evaluate "$plain" "$seed" --checkpoint=latest "${off[@]}"

  run train "$control" "$seed" --config.reward.control=permute
  run evaluate "$control" "$seed" --checkpoint=latest
done
.venv/bin/python launch/demo_seeds.py report "$root" docs/results
