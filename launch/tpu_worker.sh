#!/usr/bin/env bash
# What launch/tpu_pod.sh has each worker of a pod do; of no use by itself.
#
#   bash launch/tpu_worker.sh install            4: it can't be done
#   bash launch/tpu_worker.sh start ARGUMENTS    the run, apart from the connection, which may break
#   bash launch/tpu_worker.sh running ARGUMENTS  0: it is; 10: nothing is; 11: something else is
#   bash launch/tpu_worker.sh follow             its log, to its end and with its status
#
# A run's processes hold `lock` as long as one of them lives; `run` has its arguments, and `status`
# how it ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command="$1"
shift
case "$command" in
  install)
    trap '(($? == 0)) || exit 4' EXIT
    # The one before may still be at it, its connection lost.
    exec 8>> installing
    flock 8
    source launch/venv.sh
    # Ubuntu 22.04 comes with Python 3.10, and may be busy with its own updates at first.
    if ! (find_python); then
      tries=0
      # The time-out for locks, below, is none for the lock of the lists.
      until sudo apt-get -q update; do
        ((++tries < 60))
        sleep 10
      done
      sudo apt-get -q -o DPkg::Lock::Timeout=600 install -y python3.11-venv
    fi
    prepare_venv requirements.txt
    .venv/bin/pip install -q "jax[tpu]"
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
    # Killed with its shell it leaves no status.
    until [[ -s status ]] || flock --nonblock lock true; do sleep 3; done
    status="$(cat status || echo 137)"
    # 1 and 2 are gcloud's own as well, where it does not get here.
    exit $((status < 3 && status > 0 ? 100 + status : status))
    ;;
esac
