# Sourced by tpu_pod.sh, whose options it reads: finds, creates and deletes the queued resource.
#
# made       not empty from when this script may have created it until it is known to be gone
# found      its state, set by `look`
# unfetched  not empty while --workdir on worker 0 is newer than its copy
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # name, followed and others are set by tpu_pod.sh
[[ "${1:-}" != --help ]] || exec sed -nE '/^#!/d;/^(# shellcheck|#?[^# ]|$)/q;s/^# ?//p' "$0"
made='' found='' unfetched='' temporary="$(mktemp -d)"
errors="$temporary/errors"

# Sets `found`; empty if there is no such resource, and in a dry run. A resource whose state is
# unknown is never deleted.
look() {
  local tries=0
  [[ -z "$dry" ]] || return 0
  until found="$(tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2> "$errors")" || grep -q NOT_FOUND "$errors"; do
    cat "$errors" >&2
    if ((++tries == 20)); then
      keep=1
      fail "the state of $name is unknown; nothing is deleted" 75
    fi
    pause
  done
}

make() {
  # Set first: after an interrupt or a lost answer it may exist and cost money.
  made=1
  local code=0
  tpus queued-resources create "$name" "${where[@]}" "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$runtime" ${create[@]+"${create[@]}"} 2> "$errors" || code=$?
  cat "$errors" >&2
  if ((code)); then
    ! grep -q ALREADY_EXISTS "$errors" || made='' # created by somebody else
    fail "$name was not made" 1
  fi
}

delete() {
  local tries=0
  until tpus queued-resources delete "$name" "${where[@]}" --force --quiet 2> "$errors" ||
    grep -q NOT_FOUND "$errors"; do
    cat "$errors" >&2
    ((++tries < 5)) || return 1
    pause
  done
  made=''
}

# Returns when the machines are ready.
provision() {
  local new=''
  while look; [[ "$found" != ACTIVE ]]; do
    case "$found" in
      '')
        make
        new=1 followed=0
        [[ -z "$dry" ]] || return 0
        ;;
      SUSPENDED | FAILED) # has no machines and never gets any
        [[ -n "$made" ]] || fail "$name is $found and was not made here; delete it"
        [[ -z "$new" ]] || fail "$name is $found, and gets no machines" 1
        delete || fail "$name is $found and can't be deleted" 1
        ;;
      *) pause ;;
    esac
  done
}

# On every exit. Further signals are ignored, and the status is preserved.
leave() {
  local status=$?
  trap '' INT TERM HUP
  # With --keep an interrupted run continues.
  if [[ -n "$unfetched" && "$status$keep" != 1301 ]] && ! fetch; then
    echo "error: --workdir can't be copied to $fetch; $name is kept" >&2
    ((status)) || status=75
  elif [[ -n "$made" && -z "$keep" ]]; then
    delete || echo "error: $name may still be there; delete it" >&2
  fi
  rm -r "$temporary"
  exit "$status"
}
trap leave EXIT
trap 'exit 130' INT TERM HUP
