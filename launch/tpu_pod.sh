#!/usr/bin/env bash
# One polaris command on every host of a Cloud TPU VM or pod slice.
#
#   launch/tpu_pod.sh --name POD --zone ZONE [--project ID] [--dir DIR] --setup
#   launch/tpu_pod.sh --name POD --zone ZONE [--project ID] [--dir DIR] -- COMMAND ...
#
#   --name, --zone, --project   as for `gcloud compute tpus tpu-vm`
#   --dir DIR    where the checkout lies on the hosts, in the home directory (default polaris_jax)
#   --setup      copy this checkout's HEAD there and install it with libtpu; alone or before a command
#   --sparse-core   collectives run on the chips' SparseCores (v5p, v6e), with launch/sparse_core.args:
#                by what libtpu compiles, gradients are then reduce-scattered, beside the products;
#                not run on a chip yet
#   --stop       SIGTERM to a running command on all hosts: it saves and ends
#   --dry-run    print what would run
#
# The workdir must be a path that all hosts see: gs://BUCKET/PATH (what it needs is installed by
# --setup), or a shared disk (NFS, Filestore). jax finds the other hosts by itself. Rerun the same line
# after a preemption: the run resumes; with POLARIS_COMPILE_CACHE=DIR (a shared one too) set here it
# compiles nothing that it has compiled before. LIBTPU_INIT_ARGS, set here, goes to the hosts too.
# gcloud repeats the command on a host if its connection breaks: --overwrite counts once for each call
# of this script. A line that you rerun deletes the run if it has --overwrite.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" zone="" project="" folder=polaris_jax setup=0 stop=0 sparse_core=0
while [[ $# -gt 0 ]]; do
  case $1 in
    --name) need_value --name "$@"; name=$2; shift 2 ;;
    --zone) need_value --zone "$@"; zone=$2; shift 2 ;;
    --project) need_value --project "$@"; project=$2; shift 2 ;;
    --dir) need_value --dir "$@"; folder=$2; shift 2 ;;
    --setup) setup=1; shift ;;
    --stop) stop=1; shift ;;
    --sparse-core) sparse_core=1; shift ;;
    --dry-run) dry_run=1; shift ;;
    -h | --help) usage "${BASH_SOURCE[0]}"; exit 0 ;;
    --) shift; break ;;
    -*) die "$1: there is no such option (see --help); the polaris command follows --" ;;
    *) break ;;
  esac
done
[[ -n $name ]] || die "--name is missing: which TPU VM?"
[[ -n $zone ]] || die "--zone is missing: where is $name?"
if ((setup == 0 && stop == 0)); then
  need_command "$@"
fi
if [[ $dry_run == 0 ]] && ! command -v gcloud >/dev/null; then
  die "gcloud is not installed; use --dry-run to see the commands"
fi

folder="$(shown "$folder")" # as the hosts' shells read it
where=(--zone "$zone" ${project:+--project "$project"} --worker=all)
on_all_hosts() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command "$1"
}

if ((stop == 1)); then
  on_all_hosts "pkill -TERM -f '[p]ython -m polaris_jax' || true"
fi
if ((setup == 1)); then
  archive="$(mktemp -d)/polaris_jax.tar.gz"
  trap 'rm -rf "$(dirname "$archive")"' EXIT
  run git -C "$launch_root" archive --format=tar.gz --output "$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:polaris_jax.tar.gz" "${where[@]}"
  on_all_hosts "mkdir -p $folder && tar -xzf polaris_jax.tar.gz -C $folder && make -C $folder venv-tpu"
fi
if [[ $# -gt 0 ]]; then
  # The same when gcloud repeats the command: a run that this call began is not overwritten.
  variables="POLARIS_DISTRIBUTED=auto POLARIS_LAUNCH=tpu-$(date +%s)-$RANDOM "
  if [[ -n ${POLARIS_COMPILE_CACHE:-} ]]; then
    variables+="POLARIS_COMPILE_CACHE=$(shown "$POLARIS_COMPILE_CACHE") "
  fi
  libtpu_args=${LIBTPU_INIT_ARGS:-}
  if ((sparse_core == 1)); then
    # What is set here comes last, and so wins.
    libtpu_args="$(tr '\n' ' ' <"$launch_root/launch/sparse_core.args")$libtpu_args"
  fi
  if [[ -n $libtpu_args ]]; then
    variables+="LIBTPU_INIT_ARGS=$(shown "${libtpu_args% }") "
  fi
  on_all_hosts "cd $folder && $variables.venv/bin/python -m polaris_jax $(shown "$@")"
fi
