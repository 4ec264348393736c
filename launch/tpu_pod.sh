#!/usr/bin/env bash
# A run on a Cloud TPU pod: creates or reuses a queued resource, copies the checked-out commit, runs
# it on every worker, follows the log of worker 0, and deletes what it created. After a preemption
# it restarts on new machines. Ctrl-C deletes the machines too, unless --keep is given: then the run
# continues, and the same command follows it again.
#
#   bash launch/tpu_pod.sh --name=pomp --zone=us-central2-b --type=v4-32 --mount=COMMAND -- \
#     --config=configs/demo.py --workdir=runs/a
#
# --name, --zone, --type           of the queued resource and its only node; needed
# --runtime=VERSION, --project=ID  default: tpu-ubuntu2204-base, gcloud's own
# --mount=COMMAND                  on each worker first: --workdir has to outlive them (README.md)
# --spot, --keep, --dry-run        preemptible; delete nothing at the end; print commands, run none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/tpu_queue.sh

name='' zone='' type='' keep='' dry=''
runtime=tpu-ubuntu2204-base mount='' create=() project=()
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
    --) shift && break ;;
    *) fail "$1: unknown option; the run's own arguments follow --" ;;
  esac
  shift
done
for option in name zone type; do
  [[ "${!option}" =~ ^[a-z][a-z0-9-]*$ ]] ||
    fail "--$option: got '${!option}', takes a-z, 0-9 and -"
done
lost='the machines are deleted at the end, and --workdir with them'
[[ -n "$mount$keep" ]] ||
  fail "--mount: nothing given: $lost; takes a command (launch/README.md), or --keep beside it"
(($#)) || fail "nothing behind --; takes --config=.. --workdir=.."
where=("--zone=$zone" ${project[@]+"${project[@]}"})

worker='bash pomp/launch/tpu_worker.sh'
printf -v run '%q ' "$@" # each argument reaches Python as it is here, quoted
# A worker that was started alone gives up after --start_timeout, five minutes.
unpack="mkdir -p pomp || exit 4
( ${mount:-true}
) || exit 4
exec flock --verbose --timeout=600 --conflict-exit-code=3 pomp/lock tar -xzf pomp.tar.gz -C pomp"

# Status 255: no worker was reached, for which gcloud also uses 1 and 2.
tpu_vm() {
  local code=0
  tpus tpu-vm "$@" || code=$?
  return $((code == 1 || code == 2 ? 255 : code))
}

on_workers() { tpu_vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"; }

start() {
  tpu_vm scp "$temporary/pomp.tar.gz" "$name:pomp.tar.gz" "${where[@]}" --worker=all &&
    on_workers all "$unpack" &&
    on_workers all "$worker install" &&
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
    on_workers 0 "$worker follow" || status=$?
    followed=$((status == 255))
  fi
  case "$status" in
    75 | 134 | 137 | 143 | 255) pause ;;
    101 | 102) exit $((status - 100)) ;; # `follow` returns the run's 1 and 2 this way
    *) exit "$status" ;;
  esac
done
exit "$status"
