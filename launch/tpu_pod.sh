#!/usr/bin/env bash
# A run on a Cloud TPU pod: creates or reuses a queued resource, copies the checked-out commit, runs
# it on every worker, follows the log of worker 0, and deletes what it created. After a preemption
# it restarts on new machines. Ctrl-C deletes the machines too, except with --keep: then the run
# continues, and the same command follows it again.
#
#   bash launch/tpu_pod.sh --name=pomp --zone=us-central2-b --type=v4-32 -- \
#     --config=configs/demo.py --workdir=gs://BUCKET/runs/a
#
# --name, --zone, --type           of the queued resource and its only node; needed
# --runtime=VERSION, --project=ID  default: that of --type (README.md), gcloud's own
# --spot, --keep, --dry-run        preemptible; delete nothing at the end; print commands, run none
#
# A --workdir that is no bucket is deleted with the machines. It needs --keep, or one of:
# --fetch=DIR      copies it from worker 0 to DIR at the end, and from there to new machines
# --mount=COMMAND  mounts the folder that holds it; run on each worker first
set -euo pipefail
[[ "${1:-}" != --help ]] || exec sed -nE '/^#!/d;/^(# shellcheck|#?[^# ]|$)/q;s/^# ?//p' "$0"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/tpu_commands.sh
source launch/tpu_queue.sh
source launch/tpu_results.sh

name='' zone='' type='' runtime='' mount='' fetch='' keep='' dry='' create=() project=()
while (($#)); do
  case "$1" in
    --name=?*) name="${1#*=}" ;;
    --zone=?*) zone="${1#*=}" ;;
    --type=?*) type="${1#*=}" ;;
    --runtime=?*) runtime="${1#*=}" ;;
    --project=?*) project=("$1") ;;
    --mount=?*) mount="${1#*=}" ;;
    --fetch=?*) fetch="${1#*=}" ;;
    --spot) create=(--spot) ;;
    --keep) keep=1 ;;
    --dry-run) dry=1 ;;
    --) shift && break ;;
    *) fail "$1: unknown option; the run's own arguments follow --" ;;
  esac
  shift
done
for option in name zone type; do
  [[ "${!option}" =~ ^[a-z][a-z0-9-]*$ ]] ||
    fail "--$option: got '${!option}', takes a-z, 0-9 and -"
done
[[ -n "$runtime" ]] || choose_runtime
(($#)) || fail "nothing behind --; takes --config=.. --workdir=.."
check_workdir "$@"
[[ -n "$dry" ]] || type -P gcloud > /dev/null ||
  fail "no gcloud on this machine: cloud.google.com/sdk/docs/install; --dry-run needs none"
where=("--zone=$zone" ${project[@]+"${project[@]}"})

worker='bash pomp/launch/tpu_worker.sh'
printf -v run '%q ' "$@" # each argument reaches Python as it is here, quoted
# A worker that was started alone gives up after --start_timeout, five minutes.
unpack="mkdir -p pomp || exit 4
( ${mount:-true}
) || exit 4
exec flock --verbose --timeout=600 --conflict-exit-code=3 pomp/lock tar -xzf pomp.tar.gz -C pomp"

start() {
  tpu_vm scp "$temporary/pomp.tar.gz" "$name:pomp.tar.gz" "${where[@]}" --worker=all &&
    on_workers all "$unpack" &&
    on_workers all "$worker install$packages" &&
    restore &&
    on_workers all "$worker start $run"
}

git archive --format=tar.gz --output="$temporary/pomp.tar.gz" HEAD
followed=0 unreached=0
for ((starts = 0; starts < 100; )); do
  provision
  status=0
  if ((followed)); then # `follow` finds out what has happened meanwhile
    on_workers 0 true || status=$?
  else
    on_workers 0 "test -e ${worker#* } || exit 10; $worker running $run" || status=$?
    ((status != 11)) || fail "$name is busy with another run; stop that first"
  fi
  unreached=$((status == 255 ? unreached + 1 : 0))
  if ((unreached == 20)); then
    ((!followed)) || keep=1 # the run may continue
    fail "worker 0 of $name can't be reached${keep:+; what is there stays}" 75
  fi
  if [[ -n "$dry" ]] || ((status == 10)); then
    starts=$((starts + 1)) status=0
    start || status=$?
  fi
  if ((status == 0)); then
    unfetched="$fetch"
    on_workers 0 "$worker follow" || status=$?
    followed=$((status == 255))
    ((followed)) || fetch || true # `leave` tries again
  fi
  case "$status" in
    75 | 134 | 137 | 143 | 255) pause ;;
    101 | 102) exit $((status - 100)) ;; # `follow` returns the run's 1 and 2 this way
    *) exit "$status" ;;
  esac
done
exit "$status"
