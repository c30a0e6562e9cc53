#!/usr/bin/env bash
# What the launch scripts share. Source it; it changes nothing but the variables and functions below.
#
#   POLARIS_PYTHON   interpreter to use (default: .venv/bin/python of this checkout)

launch_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
launch_python="${POLARIS_PYTHON:-$launch_root/.venv/bin/python}"
dry_run="${dry_run:-0}"

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# need_value OPTION "$@": an error unless a value follows the option.
need_value() {
  [[ $# -ge 3 && $3 != -- ]] || die "$1 needs a value"
}

# need_number OPTION VALUE: an error unless VALUE is a whole number above 0.
need_number() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1=$2: expected a whole number above 0"
}

# need_command "$@": an error unless a polaris command follows.
need_command() {
  [[ $# -ge 1 ]] || die "which polaris command? e.g. -- train --config=... --workdir=..."
}

# need_python: an error unless the interpreter is there.
need_python() {
  [[ -x $launch_python ]] || die "$launch_python is missing: run \`make venv\`, or set POLARIS_PYTHON"
}

# shown COMMAND...: the command as one line that a shell would read back the same.
shown() {
  local word line=""
  for word in "$@"; do
    line+="${line:+ }$(printf '%q' "$word")"
  done
  printf '%s\n' "$line"
}

# run COMMAND...: runs it, or under --dry-run prints it.
run() {
  if [[ $dry_run == 1 ]]; then
    shown "$@"
  else
    "$@"
  fi
}

# usage FILE: its head comment, without the first line.
usage() {
  awk 'NR > 1 && !/^#/ {exit} NR > 1 && !/^#SBATCH/ {sub(/^# ?/, ""); print}' "$1"
}

# take_workdir DEFAULT FILE "$@": sets workdir and overrides from `[WORKDIR] [--config.a.b=value ...]` of
# the script FILE, whose usage it prints under --help; needs the interpreter.
# shellcheck disable=SC2034  # the scripts read both
take_workdir() {
  workdir=$1
  local script=$2 flag
  shift 2
  if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    usage "$script"
    exit 0
  fi
  need_python
  if [[ $# -gt 0 && $1 != -* ]]; then
    workdir=$1
    shift
  fi
  for flag in "$@"; do
    [[ $flag == --config.* ]] || die "$flag: expected --config.a.b=value (see --help)"
  done
  overrides=("$@")
  cd "$launch_root" || exit
  export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
}
