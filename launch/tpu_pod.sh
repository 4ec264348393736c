#!/usr/bin/env bash
# Creates or reuses a queued resource of Cloud TPU, starts the checked-out commit on every worker,
# follows the log of worker 0, restarts after a preemption, and deletes what it created. Ctrl-C does
# so too, except with --keep: then the run continues, and the same command follows it again.
#
#   bash launch/tpu_pod.sh --name=pomp --zone=ZONE --type=v4-32 -- --config=.. --workdir=gs://..
#
# --name, --zone, --type           of the queued resource and its only node; needed
# --runtime=VERSION, --project=ID  default: that of --type (README.md), gcloud's own
# --spot, --keep, --dry-run        preemptible; delete nothing at the end; print commands, run none
# --mount=COMMAND                  run on each worker first; mounts a --workdir that is no bucket
set -euo pipefail
[[ "${1:-}" != --help ]] || exec sed -nE '/^#!/d;/^(# shellcheck|#?[^# ]|$)/q;s/^# ?//p' "$0"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { echo "error: $1" >&2 && exit "${2:-2}"; }

case "${1:-}" in # on a worker; the processes of a run hold `lock`, and `run` has its arguments
  worker-install)
    source launch/venv.sh # Ubuntu 22.04 has Python 3.10, and may run its own updates at first
    (find_python) || timeout 900 bash -c 'until sudo apt-get -q update &&
      sudo apt-get -q install -y python3.11-venv; do sleep 10; done'
    prepare_venv requirements.txt
    exec .venv/bin/pip install -q "jax[tpu]" gcsfs s3fs ;;
  worker-start)
    exec 9>> lock
    flock --nonblock 9 || fail "a run is under way here" 3
    rm -f status && printf '%q ' "${@:2}" > run
    exec setsid --fork bash -c ".venv/bin/python -m pomp_jax.main \"\$@\"; echo \$? > status" "$@" \
      >> log.txt 2>&1 < /dev/null ;;
  worker-follow) # $2: 1 if started from here. Status 10: nothing runs; 11: another run
    flock --nonblock lock true || [[ "$(cat run)" == "$(printf '%q ' "${@:3}")" ]] || exit 11
    (($2)) || ! flock --nonblock lock true || exit 10
    tail --pid=$$ --lines=100 -F log.txt &
    until [[ -s status ]] || flock --nonblock lock true; do sleep 3; done
    status="$(cat status || echo 137)" # none: killed with its shell
    exit $((status == 1 || status == 2 ? status + 100 : status)) ;; # 1 and 2 are gcloud's own
esac

name='' zone='' type='' runtime='' project='' mount='' spot='' keep='' dryrun='' # the options
while (($#)) && [[ "$1" != -- ]]; do
  case "$1" in
    --name=* | --zone=* | --type=* | --runtime=* | --project=* | --mount=*) declare "${1#--}" ;;
    --spot | --keep | --dry-run) declare "${1//-/}=$1" ;;
    *) fail "$1: unknown option; the run's own arguments follow --" ;;
  esac
  shift
done
for option in name zone type; do
  [[ "${!option}" =~ ^[a-z][a-z0-9-]*$ ]] || fail "--$option: got '${!option}', takes a-z, 0-9, -"
done
[[ -n "$runtime" ]] || case "$type" in
  v[234]-*) runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) fail "--type: got '$type', takes v4-8, v5litepod-16, v6e-8, ..; others need --runtime" ;;
esac
(($# > 1)) || fail "nothing behind --; takes --config=.. --workdir=.."
[[ " $*" =~ ' --workdir'[=\ ](gs|s3):// || -n "$mount$keep" ]] ||
  fail "--workdir: is deleted with the machines; takes gs://.., s3://.., or --mount before --"
hash gcloud 2>&- || [[ -n "$dryrun" ]] || fail "no gcloud on this machine: cloud.google.com/sdk"
tpus=(${dryrun:+tell} gcloud compute tpus) where=("--zone=$zone" ${project:+"--project=$project"})
tell() { printf '%q ' "$@" && echo; }
on_workers() { "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"; }
awaited='' since='' told=0
pause() { # $1: what is waited for; a line when that changes, and every five minutes
  [[ -z "$dryrun" ]] || return 0
  if [[ "$1" != "$awaited" ]]; then awaited="$1" since="$(date +%T)" told=-300; fi
  if ((SECONDS - told >= 300)); then
    echo "$(date +%T)  waiting since $since: $1" >&2
    told=$SECONDS
  fi
  sleep "${POLL_SECONDS:-30}"
}
queue() { "${tpus[@]}" queued-resources "$1" "$name" "${where[@]}" "${@:2}" 2> "$errors"; }
# Answers that asking again does not change: rights, sign-in, the command itself.
final='PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|[Rr]eauthentication|active account'
final+='|required property|unrecognized arguments'
insist() { # for ten minutes, until the cloud answers; status 2 if it refuses
  for _ in {1..20}; do
    if queue "$@" || grep NOT_FOUND "$errors"; then return 0; fi
    cat "$errors" >&2
    ! grep -qE "$final" "$errors" || return 2
    pause "the cloud does not answer a question about $name"
  done
  return 1
}
made='' new='' started=0 folder="$(mktemp -d)" errors="$folder/errors"
leave() { # the exit status stays
  trap '' INT TERM HUP
  [[ -z "$made" || -n "$keep" ]] || insist delete --force --quiet ||
    echo "error: $name may still be there; delete it" >&2
  rm -r "$folder"
}
trap leave EXIT && trap 'exit 130' INT TERM HUP
git archive --format=tar.gz --output="$folder/pomp.tar.gz" HEAD
worker='bash pomp/launch/tpu_pod.sh worker' run="$(printf '%q ' "${@:2}")"
prepare="mkdir -p pomp && ( ${mount:-true} ) || exit 4
flock --verbose --timeout=600 --conflict-exit-code=3 pomp/lock tar -xzf pomp.tar.gz -C pomp || exit
flock pomp/installing $worker-install || exit 4"
for ((attempts = 0; attempts < 100; )); do
  asked=0
  event="$(insist describe --format='value(state.state)')" || asked=$? event=UNKNOWN
  ((asked != 2)) || event=REFUSED
  [[ -z "$dryrun" || -z "$made" ]] || event=ACTIVE
  if [[ "$event" == ACTIVE ]]; then
    new='' event=0
    on_workers 0 "test -e pomp/lock || exit 10; $worker-follow $started $run" || event=$?
    [[ -z "$dryrun" ]] || ((started)) || event=10
    if ((event == 10)); then # nothing runs; all are prepared before the first starts
      "${tpus[@]}" tpu-vm scp "$folder/pomp.tar.gz" "$name:pomp.tar.gz" "${where[@]}" \
        --worker=all && on_workers all "$prepare" &&
        on_workers all "$worker-start $run" && started=1 && continue || event=$?
    fi
    attempts=$((attempts + 1))
  fi
  case "$event" in
    *NOT_FOUND* | gcloud*) # in a dry run the command
      made=1 new=1 started=0 # the answer may get lost, and machines cost money
      queue create "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" \
        ${spot:+"$spot"} && continue
      ! grep -q ALREADY_EXISTS "$errors" || made='' # by somebody else
      fail "$name was not made: $(< "$errors")" 1 ;;
    SUSPENDED | FAILED) # has no machines and never gets any
      [[ -n "$made" ]] || fail "$name is $event and was not made here; delete it"
      [[ -z "$new" ]] || fail "$name is $event and gets no machines" 1
      insist delete --force --quiet && made='' || exit 1 ;;
    REFUSED) # what was made stays, for it can't be deleted either
      keep=1
      fail "the cloud refuses to show $name (above)${made:+; nothing is deleted}" ;;
    UNKNOWN) keep=1 && fail "the state of $name is unknown; nothing is deleted" 75 ;;
    11) fail "$name is busy with another run; stop that first" ;;
    75 | 134 | 137 | 143) started=0 awaited='' && pause "the run ended with status $event, and restarts" ;;
    1 | 2 | 255) pause "no worker of $name was reached" ;;
    '' | [!0-9]*) pause "$name is ${event:-without a state}, not ACTIVE" ;;
    *) exit $((event == 101 || event == 102 ? event - 100 : event)) ;;
  esac
done
((started == 0)) || keep=1 # the run may continue
fail "gave up after 100 attempts to reach or run $name${keep:+; nothing is deleted}" 75
