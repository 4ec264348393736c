#!/usr/bin/env bash
# Run by launch/tpu_pod.sh on each worker of a pod.
#
#   bash launch/tpu_worker.sh install PACKAGES   those, JAX and ours; status 4: failed
#   bash launch/tpu_worker.sh start ARGUMENTS    the run, detached from the connection
#   bash launch/tpu_worker.sh running ARGUMENTS  status 0: yes; 10: nothing runs; 11: another run
#   bash launch/tpu_worker.sh follow             prints its log; returns its status
#   bash launch/tpu_worker.sh pack DIR           results.tar.gz of its folder; status 10: none
#   bash launch/tpu_worker.sh unpack DIR         the folder from that, unless it exists
#
# The processes of a run hold `lock` until the last one has ended. The file `run` has its arguments,
# and `status` its exit status.
set -euo pipefail
[[ "${1:-}" != --help ]] || exec sed -nE '/^#!/d;/^(# shellcheck|#?[^# ]|$)/q;s/^# ?//p' "$0"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command="$1"
shift
case "$command" in
  install)
    trap '(($? == 0)) || exit 4' EXIT
    # An earlier install with a lost connection may still run.
    exec 8>> installing
    flock 8
    source launch/venv.sh
    # Ubuntu 22.04 comes with Python 3.10, and may run its own updates at first.
    if ! (find_python); then
      tries=0
      # The lock timeout below does not cover the lock of the package lists.
      until sudo apt-get -q update; do
        ((++tries < 60))
        sleep 10
      done
      sudo apt-get -q -o DPkg::Lock::Timeout=600 install -y python3.11-venv
    fi
    prepare_venv requirements.txt
    .venv/bin/pip install -q "jax[tpu]" "$@"
    ;;
  start)
    exec 9>> lock
    flock --nonblock 9 || { echo "error: a run is under way here" >&2; exit 3; }
    rm -f status
    printf '%q ' "$@" > run
    # shellcheck disable=SC2016  # for the inner shell
    setsid nohup bash -c '.venv/bin/python -m pomp_jax.main "$@"; echo $? > status' run "$@" \
      >> log.txt 2>&1 < /dev/null &
    ;;
  running)
    if [[ ! -e lock || -s status ]] || flock --nonblock lock true; then exit 10; fi
    [[ "$(cat run)" == "$(printf '%q ' "$@")" ]] || exit 11
    ;;
  follow)
    tail --pid=$$ --lines=100 -F log.txt &
    # A run that was killed with its shell leaves no status.
    until [[ -s status ]] || flock --nonblock lock true; do sleep 3; done
    status="$(cat status || echo 137)"
    # gcloud itself returns 1 and 2 when it can't connect.
    exit $((status < 3 && status > 0 ? 100 + status : status))
    ;;
  pack)
    [[ -d "$1" ]] || exit 10
    # 1: a file changed while it was read, in a run that was interrupted.
    tar -czf results.tar.gz -C "$1" . || (($? == 1))
    ;;
  unpack)
    [[ -e "$1" ]] || { mkdir -p "$1" && tar -xzf results.tar.gz -C "$1"; }
    ;;
esac
