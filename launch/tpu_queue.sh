# Sourced by tpu_pod.sh, whose options it reads: the queued resource, found, made and deleted.
#
# made   not empty from the moment this script may have made it, until it is known to be gone
# found  its state, after `look`
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # name, followed and so on are tpu_pod.sh's
made='' found='' temporary="$(mktemp -d)"
errors="$temporary/errors"

fail() {
  echo "error: $1" >&2
  exit "${2:-2}"
}

# Runs `gcloud compute tpus`, or prints it as a shell would read it.
tpus() {
  if [[ -n "$dry" ]]; then
    printf '%q ' gcloud compute tpus "$@"
    echo
  else
    gcloud compute tpus "$@"
  fi
}

pause() { [[ -n "$dry" ]] || sleep "${POLL_SECONDS:-30}"; }

# Sets `found`: to nothing where there is no such resource, and in a dry run. What can't be seen is
# not deleted, either.
look() {
  local tries=0
  [[ -z "$dry" ]] || return 0
  until found="$(tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2> "$errors")" || grep -q NOT_FOUND "$errors"; do
    cat "$errors" >&2
    if ((++tries == 20)); then
      keep=1
      fail "the state of $name can't be had; what is there stays" 75
    fi
    pause
  done
}

make() {
  # Before it is made: interrupted, or with its answer lost, it may be there and cost money.
  made=1
  local code=0
  tpus queued-resources create "$name" "${where[@]}" "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$runtime" ${create[@]+"${create[@]}"} 2> "$errors" || code=$?
  cat "$errors" >&2
  if ((code)); then
    ! grep -q ALREADY_EXISTS "$errors" || made='' # somebody else was faster
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

# Returns once the machines are there.
provision() {
  local new=''
  while look; [[ "$found" != ACTIVE ]]; do
    case "$found" in
      '')
        make
        new=1 followed=0
        [[ -z "$dry" ]] || return 0
        ;;
      SUSPENDED | FAILED) # it has no machines and gets none again
        [[ -n "$made" ]] || fail "$name is $found and was not made here; delete it"
        [[ -z "$new" ]] || fail "$name is $found, and gets no machines" 1
        delete || fail "$name is $found and can't be deleted" 1
        ;;
      *) pause ;;
    esac
  done
}

# At the end, whatever ended it: no second signal keeps the machines, and the status stays the same.
leave() {
  local status=$?
  trap '' INT TERM HUP
  if [[ -n "$made" && -z "$keep" ]]; then
    delete || echo "error: $name may still be there; delete it" >&2
  fi
  rm -r "$temporary"
  exit "$status"
}
trap leave EXIT
trap 'exit 130' INT TERM HUP
