# Sourced by tpu_pod.sh, whose options it reads: where --workdir is, and its copy in --fetch.
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # fetch, worker and others are set by tpu_pod.sh
[[ "${1:-}" != --help ]] || exec sed -nE '/^#!/d;/^(# shellcheck|#?[^# ]|$)/q;s/^# ?//p' "$0"

# Sets `workdir`, which has to outlive the machines, and `packages` from the run's arguments.
check_workdir() {
  local argument previous='' lost='is deleted with the machines'
  workdir='' packages=''
  [[ "$*" != *gs://* ]] || packages+=' gcsfs'
  [[ "$*" != *s3://* ]] || packages+=' s3fs'
  for argument; do
    [[ "$previous" != --workdir ]] || workdir="$argument"
    [[ "$argument" != --workdir=* ]] || workdir="${argument#*=}"
    previous="$argument"
  done
  case "$workdir" in
    *://*)
      [[ -z "$fetch" ]] || fail "--fetch: got '$fetch', takes nothing beside --workdir=$workdir"
      ;;
    *)
      [[ -z "$fetch" || -n "$workdir" ]] || fail "--workdir: nothing given; --fetch copies it"
      [[ -n "$mount$keep$fetch" ]] ||
        fail "--workdir: got '$workdir', which $lost; takes gs://.., or --fetch=DIR before --"
      ;;
  esac
  printf -v workdir '%q' "$workdir"
}

# Copies --workdir from worker 0 into --fetch. A run that left none is no failure.
fetch() {
  [[ -n "$fetch" ]] || return 0
  local code=0 archive="$temporary/results.tar.gz"
  on_workers 0 "$worker pack $workdir" || code=$?
  if ((code == 0)); then
    tpu_vm scp "$name:pomp/results.tar.gz" "$archive" "${where[@]}" --worker=0 || return 1
    if [[ -z "$dry" ]]; then
      mkdir -p "$fetch" && tar -xzf "$archive" -C "$fetch" || return 1
    fi
  fi
  ((code == 0 || code == 10)) && unfetched=''
}

# Copies --fetch to a worker 0 without --workdir, so that the run resumes there.
restore() {
  [[ -n "$fetch" && -n "$(ls -A "$fetch" 2> /dev/null)" ]] || return 0
  local archive="$temporary/results.tar.gz"
  tar -czf "$archive" -C "$fetch" . &&
    tpu_vm scp "$archive" "$name:pomp/results.tar.gz" "${where[@]}" --worker=0 &&
    on_workers 0 "$worker unpack $workdir"
}
