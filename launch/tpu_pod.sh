#!/usr/bin/env bash
# A run on a Cloud TPU pod: makes or reuses a queued resource, copies the commit that is checked out,
# runs it on every worker, follows the first one's log, and deletes what it made. Preempted, it starts
# again with new machines. Interrupted (Ctrl-C) it deletes as well, unless --keep is given: then the
# run goes on, and the same command follows it again.
#
#   bash launch/tpu_pod.sh --name=pomp --zone=us-central2-b --type=v4-32 -- \
#     --config=configs/demo.py --workdir=runs/a
#
# --name, --zone, --type           of the queued resource and its only node; needed
# --runtime=VERSION, --project=ID  default: tpu-ubuntu2204-base, gcloud's own
# --mount=COMMAND                  on each worker first: --workdir has to outlive them (README.md)
# --spot, --keep, --dry-run        preemptible; delete nothing at the end; print commands, run none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $1" >&2; exit 2; }
name='' zone='' type='' keep='' dry='' made='' found='' followed=0
runtime=tpu-ubuntu2204-base mount=true create=() project=()
while (($#)); do
  case "$1" in
    --name=?*) name="${1#*=}" ;;
    --zone=?*) zone="${1#*=}" ;;
    --type=?*) type="${1#*=}" ;;
    --runtime=?*) runtime="${1#*=}" ;;
    --project=?*) project=("$1") ;;
    --mount=?*) mount="${1#*=}" ;;
    --spot) create=(--spot) ;;
    --keep) keep=1 ;;
    --dry-run) dry=1 ;;
    --) shift; break ;;
    *) fail "$1: unknown option; the run's own arguments stand behind --" ;;
  esac
  shift
done
for option in name zone type; do
  [[ "${!option}" =~ ^[a-z][a-z0-9-]*$ ]] || fail "--$option: got '${!option}', takes a-z, 0-9 and -"
done
(($#)) || fail "nothing behind --; takes --config=.. --workdir=.."
where=("--zone=$zone" ${project[@]+"${project[@]}"})

tpus() { # runs `gcloud compute tpus`, or prints it as a shell would read it
  if [[ -n "$dry" ]]; then printf '%q ' gcloud compute tpus "$@"; echo; else gcloud compute tpus "$@"; fi
}
pause() { [[ -n "$dry" ]] || sleep "${POLL_SECONDS:-30}"; }
look() { local looks=0 # found: the state; nothing where it does not exist, and in a dry run
  until [[ -n "$dry" ]] || found="$(tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2> "$temporary/errors")" || grep -q NOT_FOUND "$temporary/errors"; do
    cat "$temporary/errors" >&2
    ((++looks < 20)) || { keep=1 && fail "the state of $name can't be had; what is there stays"; }
    pause
  done
}
delete() { made='' && tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }
temporary="$(mktemp -d)"
trap 'rm -r "$temporary"; [[ -z "$made" || -n "$keep" ]] || delete' EXIT
trap 'exit 130' INT TERM
provision() {
  local new=''
  while look; [[ "$found" != ACTIVE ]]; do
    case "$found" in
      '')
        tpus queued-resources create "$name" "${where[@]}" "--node-id=$name" \
          "--accelerator-type=$type" "--runtime-version=$runtime" ${create[@]+"${create[@]}"}
        made=1 new=1 followed=0 && [[ -z "$dry" ]] || return 0 ;;
      SUSPENDED | FAILED) # it has no machines and gets none again
        [[ -n "$made" ]] || fail "$name is $found and was not made here; delete it"
        [[ -z "$new" ]] || fail "$name is $found, and gets no machines"
        delete ;;
      *) pause ;;
    esac
  done
}
on_workers() { tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"; }
ask() { # worker 0; status: its answer; 255 where it is not reached, for which gcloud has 1 and 2 too
  status=0 && on_workers 0 "$1" || status=$?
  ((status != 1 && status != 2)) || status=255
}
start() { # once no process of the run before has the chips
  tpus tpu-vm scp "$temporary/pomp.tar.gz" "$name:pomp.tar.gz" "${where[@]}" --worker=all &&
    on_workers all "mkdir -p pomp && $mount && $exclusively tar -xzf pomp.tar.gz -C pomp" &&
    on_workers all "$worker install" && on_workers all "$worker start $run"
}
git archive --format=tar.gz --output="$temporary/pomp.tar.gz" HEAD
exclusively='flock --verbose --timeout=300 --conflict-exit-code=3 pomp/lock'
worker='bash pomp/launch/tpu_worker.sh'
printf -v run '%q ' "$@" # each argument reaches Python as it is here, whatever is in it
for ((starts = 0; starts < 100; )); do
  provision
  status=0
  ((followed)) || ask "test -e ${worker#* } || exit 10; $worker running $run"
  ((status != 11)) || fail "$name is busy with another run; stop that first"
  if [[ -n "$dry" ]] || ((status == 10)); then starts=$((starts + 1)) status=0 && start || status=$?; fi
  if ((status == 0)); then ask "$worker follow" && followed=$((status == 255)); fi
  case "$status" in
    75 | 134 | 137 | 143 | 255) pause ;;
    *) exit $((status > 100 && status < 103 ? status - 100 : status)) ;;
  esac
done
exit "$status"
