#!/usr/bin/env bash
# One or several processes of one polaris command on this machine.
#
#   launch/local.sh [--processes N] [--devices D] [--port P] [--grace S] [--dry-run] -- COMMAND ...
#   launch/local.sh --processes 2 -- train --config=configs/tiny_cpu.py --workdir=workdirs/two
#
#   --processes N   how many (default 1); they find one another by jax.distributed
#   --devices D     virtual CPU devices of each (default: as XLA_FLAGS says)
#   --port P        of the coordinator, which is process 0 (default: a free one)
#   --grace S       seconds that the others get to end after one has failed (default 30)
#   --dry-run       print what would run
#
# The first process that fails is named, the others are stopped, and its status is the script's.
# Ctrl-C is passed on to all, a second one kills them. SIGTERM is passed on whenever it comes, and so,
# as SIGTERM, are a lost terminal, SIGUSR1, SIGUSR2, SIGQUIT and SIGXCPU. NVIDIA GPUs, if any, are
# dealt evenly to the processes.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=1 devices="" port="" grace=30
while [[ $# -gt 0 ]]; do
  case $1 in
    --processes) need_value --processes "$@"; need_number --processes "$2"; processes=$2; shift 2 ;;
    --devices) need_value --devices "$@"; need_number --devices "$2"; devices=$2; shift 2 ;;
    --port) need_value --port "$@"; need_number --port "$2"; port=$2; shift 2 ;;
    --grace) need_value --grace "$@"; need_number --grace "$2"; grace=$2; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    -h | --help) usage "${BASH_SOURCE[0]}"; exit 0 ;;
    --) shift; break ;;
    -*) die "$1: there is no such option (see --help); the polaris command follows --" ;;
    *) break ;;
  esac
done
if ((${#port} > 5 || ${port:-0} > 65535)); then
  die "--port=$port: expected a port, 1 to 65535"
fi
need_command "$@"
need_python

if [[ -n $devices ]]; then
  flags="$(sed -E 's/--xla_force_host_platform_device_count=[0-9]+ ?//' <<<"${XLA_FLAGS:-}")"
  export XLA_FLAGS="$flags${flags:+ }--xla_force_host_platform_device_count=$devices"
fi
command=("$launch_python" -m polaris_jax "$@")

if [[ $processes == 1 ]]; then
  if [[ $dry_run == 1 ]]; then
    shown ${devices:+env "XLA_FLAGS=$XLA_FLAGS"} "${command[@]}"
    exit 0
  fi
  exec "${command[@]}"
fi

if [[ -z $port ]]; then
  port="$("$launch_python" -c '
import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])')"
fi

gpus=0
if [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null; then
  listed="$(nvidia-smi --list-gpus 2>/dev/null)" || listed="" # there is no driver
  gpus="$(grep -c '^GPU ' <<<"$listed")" || gpus=0            # under a GPU its parts are listed
  if ((gpus)) && [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    # jax numbers these from 0. CUDA takes those before the first that is none, like -1.
    gpus="$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | sed -E '/^ *(-|NoDev)/,$d' | grep -c .)" || gpus=0
  fi
  if ((gpus > 0 && gpus % processes)); then
    die "--processes=$processes: does not divide the $gpus visible GPUs"
  fi
fi

# rank_environment RANK: the variables that make a process this rank, in `environment`.
rank_environment() {
  local rank=$1 each=$((gpus / processes))
  environment=(
    "POLARIS_COORDINATOR=127.0.0.1:$port"
    "POLARIS_NUM_PROCESSES=$processes"
    "POLARIS_PROCESS_ID=$rank"
  )
  if [[ -n $devices ]]; then
    environment+=("XLA_FLAGS=$XLA_FLAGS")
  fi
  if ((gpus > 0)); then
    environment+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, $((rank * each)) $((rank * each + each - 1)))")
  fi
}

if [[ $dry_run == 1 ]]; then
  for ((rank = 0; rank < processes; rank++)); do
    rank_environment "$rank"
    shown env "${environment[@]}" "${command[@]}"
  done
  exit 0
fi

state="$(mktemp -d)"
trap 'rm -rf "$state"' EXIT
touch "$state/ended"

like_term=(TERM HUP USR1 USR2 QUIT XCPU) # each asks a run to leave a checkpoint

# One rank: its output is marked (rank 0's is not), its end is noted as "RANK STATUS". Both this
# shell and awk outlive the signals that go to the whole group: the one to note the status, the other
# to pass on the last lines. The inner redirection keeps bash's own "Killed" line quiet.
run_rank() {
  local rank=$1 status=0
  trap : INT "${like_term[@]}"
  rank_environment "$rank"
  if [[ $rank == 0 ]]; then
    { env "${environment[@]}" "${command[@]}" </dev/null 2>&3 || status=$?; } 3>&2 2>/dev/null
  else
    {
      env "${environment[@]}" "${command[@]}" </dev/null \
        > >(trap '' INT "${like_term[@]}"; exec awk -v mark="[$rank] " '{print mark $0; fflush()}') 2>&1 ||
        status=$?
    } 2>/dev/null
  fi
  echo "$rank $status" >>"$state/ended"
}

pids=() signalled=0 interrupts=0
signal_all() {
  local name=$1 pid
  for pid in "${pids[@]}"; do
    kill "-$name" -- "-$pid" 2>/dev/null || true
  done
}
# pass_on INT|TERM: to every rank. Only a second Ctrl-C kills: the ranks may be saving, and any other
# later signal changes nothing for them.
# shellcheck disable=SC2329  # the traps below call it
pass_on() {
  signalled=1
  if [[ $1 == INT ]] && ((interrupts++ > 0)); then
    signal_all KILL
  else
    signal_all "$1"
  fi
}
trap 'pass_on INT' INT
trap 'pass_on TERM' "${like_term[@]}" # the ranks have groups of their own, and get none by themselves

set -m # each rank leads a process group of its own, with default signal handling
for ((rank = 0; rank < processes; rank++)); do
  run_rank "$rank" &
  pids+=("$!")
done
set +m # what follows stays in this group, so that Ctrl-C reaches the traps

# Sets `ended`, the number of ranks that have ended, and `failure`, the first that failed: "RANK STATUS".
# A rank whose shell was killed could not note its end. Builtins only: a signal to this script's group
# would end anything that is forked here, and its answer would be missing.
ended=0 failure=""
look() {
  local rank status gone=() noted=()
  for ((rank = 0; rank < processes; rank++)); do
    kill -0 "${pids[rank]}" 2>/dev/null || gone+=("$rank")
  done
  failure=""
  while read -r rank status; do
    noted[rank]=1
    [[ $status == 0 || -n $failure ]] || failure="$rank $status"
  done <"$state/ended"
  for rank in ${gone[@]+"${gone[@]}"}; do
    if [[ -z ${noted[rank]:-} ]]; then
      noted[rank]=1
      failure="${failure:-$rank 137}"
      echo "$rank 137" >>"$state/ended"
    fi
  done
  ended=${#noted[@]}
}

look
while ((ended < processes)) && [[ -z $failure ]]; do
  sleep 0.2 || true
  look
done
if [[ -z $failure ]]; then
  exit 0
fi
read -r rank status <<<"$failure"
if ((signalled == 0)); then
  echo "process $rank of $processes ended first, with status $status; stopping the others" >&2
  signal_all TERM
fi
deadline=$((SECONDS + grace))
while ((ended < processes && SECONDS < deadline)); do
  sleep 0.2 || true
  look
done
if ((ended < processes)); then
  signal_all KILL
fi
exit "$status"
