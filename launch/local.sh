#!/usr/bin/env bash
# A run on this machine: one process, or several that work together like the hosts of a pod.
#
#   bash launch/local.sh --config=configs/demo.py --workdir=runs/demo
#   PROCESSES=2 bash launch/local.sh --config=configs/demo.py --workdir=runs/demo
#
# PROCESSES  number of processes, default 1. Several get one GPU each, from CUDA_VISIBLE_DEVICES.
#            JAX for an NVIDIA GPU is installed where there is one.
#            With JAX_PLATFORMS=cpu, JAX_NUM_CPU_DEVICES=4 gives each process four devices.
# VENV, PYTHON: see launch/venv.sh. SIGTERM and SIGHUP are forwarded: the run saves, status 75.
set -euo pipefail
[[ "${1:-}" != --help ]] || exec sed -nE '/^#!/d;/^(# shellcheck|#?[^# ]|$)/q;s/^# ?//p' "$0"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

[[ "${PROCESSES:=1}" =~ ^[1-9][0-9]*$ ]] || fail "PROCESSES=$PROCESSES is not a number of processes"
gpus=''
[[ "${JAX_PLATFORMS:-}" == cpu ]] || gpus="${CUDA_VISIBLE_DEVICES:-}"
IFS=, read -ra gpus <<< "${gpus:-$(seq -s , 0 $((PROCESSES - 1)))}"
((PROCESSES == 1 || ${#gpus[@]} >= PROCESSES)) ||
  fail "PROCESSES=$PROCESSES, but CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES has fewer"
prepare_venv requirements.txt
prepare_gpu
main=("$VENV/bin/python" -m pomp_jax.main "$@")
((PROCESSES > 1)) || exec "${main[@]}"

# A port that is free now, and below those that any program may be given: process 0 takes seconds
# until it listens there.
port="$("$VENV/bin/python" -c '
import random, socket
for port in random.sample(range(20000, 30000), 1000):
  if socket.socket().connect_ex(("127.0.0.1", port)):
    break
print(port)')"
processes=() signalled=''
# A signal before all processes are started is noted, and sent to all of them later.
trap 'signalled=1' TERM INT HUP
for ((index = 0; index < PROCESSES; index++)); do
  CUDA_VISIBLE_DEVICES="${gpus[index]}" "${main[@]}" \
    --coordinator="127.0.0.1:$port" --num_processes="$PROCESSES" --process_id="$index" &
  processes+=($!)
done
forward() { signalled=1 && { kill -TERM "${processes[@]}" 2> /dev/null || true; }; }
trap forward TERM INT HUP
[[ -z "$signalled" ]] || forward

status=0 # the first that is not zero; the processes end each other, so none is left waiting
for process in "${processes[@]}"; do
  # A signal interrupts the wait: wait again, even for a process that has ended meanwhile.
  while signalled='' code=0; do
    wait "$process" || code=$?
    [[ -n "$signalled" ]] || break
  done
  ((status)) || status=$code
done
exit "$status"
