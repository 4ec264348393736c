#!/usr/bin/env bash
# A run on a Cloud TPU pod: makes or reuses a queued resource, copies the commit that is checked out,
# runs it on every worker, follows the first one's log, and deletes what it made. Preempted, it starts
# again with new machines. Interrupted (Ctrl-C) it deletes as well, unless --keep is given.
#
#   bash launch/tpu_pod.sh --name=pomp --zone=us-central2-b --type=v4-32 -- \
#     --config=configs/demo.py --workdir=runs/a
#
# --name, --zone, --type  of the queued resource and its only node; needed
# --runtime=VERSION       of the TPU's software; default tpu-ubuntu2204-base
# --project=ID            default: gcloud's own
# --spot                  preemptible
# --mount=COMMAND         on each worker first, see launch/README.md: --workdir has to outlive them
# --keep                  delete nothing at the end
# --dry-run               print the commands, run none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $1" >&2; exit 2; }
name='' zone='' type='' runtime=tpu-ubuntu2204-base mount=true keep='' dry='' made=''
create=() project=()
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
  [[ "${!option}" =~ ^[a-z][a-z0-9-]*$ ]] ||
    fail "--$option: got '${!option}', takes lower-case letters, digits and -"
done
(($#)) || fail "nothing behind --; takes --config=.. --workdir=.."
where=("--zone=$zone" ${project[@]+"${project[@]}"})

tpus() { # runs `gcloud compute tpus`, or prints it as a shell would read it
  if [[ -n "$dry" ]]; then printf '%q ' gcloud compute tpus "$@"; echo; else gcloud compute tpus "$@"; fi
}
state() { # nothing where it does not exist, and in a dry run
  [[ -n "$dry" ]] ||
    tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || true
}
on_workers() { tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"; }
delete() { tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }
archive="$(mktemp --suffix=.tar.gz)"
trap 'rm -f "$archive"; if [[ -n "$made" && -z "$keep" ]]; then delete; fi' EXIT

provision() {
  local found
  found="$(state)"
  if [[ "$found" == SUSPENDED || "$found" == FAILED ]]; then # it has no machines and gets none again
    [[ -n "$made" ]] || fail "$name is $found and was not made here; delete it"
    delete
    found=''
  fi
  if [[ -z "$found" ]]; then
    tpus queued-resources create "$name" "${where[@]}" "--node-id=$name" "--accelerator-type=$type" \
      "--runtime-version=$runtime" ${create[@]+"${create[@]}"}
    made=1
  fi
  until [[ -n "$dry" || "$found" == ACTIVE ]]; do
    [[ "$found" != FAILED && "$found" != SUSPENDED ]] || fail "$name is $found, and gets no machines"
    sleep "${POLL_SECONDS:-30}"
    found="$(state)"
  done
}

# %q, twice: each argument reaches Python as it is here, whatever is in it.
printf -v run '%q ' .venv/bin/python -m pomp_jax.main "$@"
printf -v run '%q' "$run; echo \$? > status"
# shellcheck disable=SC2016  # for the worker's shell
follow='tail -n 100 -F pomp/log.txt & until test -s pomp/status; do sleep 3; done; kill $!; exit $(cat pomp/status)'
# Ubuntu 22.04 comes with Python 3.10, and may be busy with its own updates at first.
install='cd pomp && source launch/venv.sh && { (find_python) || {
  sudo apt-get -q update && sudo apt-get -q -o DPkg::Lock::Timeout=600 install -y python3.11-venv; }; } &&
  prepare_venv requirements.txt && .venv/bin/pip install -q "jax[tpu]"'
git archive --format=tar.gz --output="$archive" HEAD
for ((attempt = 0; attempt < 100; attempt++)); do
  provision
  tpus tpu-vm scp "$archive" "$name:pomp.tar.gz" "${where[@]}" --worker=all
  on_workers all "mkdir -p pomp && tar -xzf pomp.tar.gz -C pomp && rm -f pomp/status && $mount"
  on_workers all "$install"
  # Apart from the connection, which may break; then the log is taken up again.
  on_workers all "cd pomp && { setsid nohup bash -c $run >> log.txt 2>&1 < /dev/null & }"
  while status=0; on_workers 0 "$follow" || status=$?; ((status == 255)); do
    [[ "$(state)" == ACTIVE ]] || break
  done
  if ((status < 75)) || [[ -z "$made" ]]; then exit "$status"; fi
done
exit "$status"
