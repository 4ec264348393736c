#!/usr/bin/env bash
# A SLURM of one machine with two CPUs, for a test; needs root, slurm-wlm and munge.
#
#   bash tests/launch/slurm_here.sh    prints its folder once it takes jobs; runs until its input ends
#
# Clients find it by SLURM_CONF=FOLDER/slurm.conf. Partition "low" is preempted by "high": SIGTERM, and
# SIGKILL five seconds later. Ports, state and the munge key are its own; at the end nothing of it is
# left.
set -euo pipefail

folder="$(mktemp -d /tmp/slurm_here.XXXXXX)"
mkdir "$folder/state" "$folder/spool"
export SLURM_CONF="$folder/slurm.conf"
daemons=()

# Of the trap below: stops the jobs, then the daemons, the last that was started first.
# shellcheck disable=SC2329
leave() {
  local index pid
  timeout 10 scancel --state=PENDING 2>/dev/null || true
  timeout 10 scancel --state=RUNNING 2>/dev/null || true
  for _ in {1..100}; do
    [[ -n "$(timeout 10 squeue --noheader 2>/dev/null)" ]] || break
    sleep 0.1
  done
  for ((index = ${#daemons[@]} - 1; index >= 0; index--)); do
    pid="${daemons[index]}"
    kill "$pid" 2>/dev/null || continue
    for _ in {1..100}; do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
  rm -rf "$folder"
}
trap leave EXIT
trap 'exit 1' TERM INT

# Starts a daemon in the foreground of a job of ours; what it says goes to a file named for it.
daemon() {
  "$@" >"$folder/${1##*/}.out" 2>&1 </dev/null &
  daemons+=($!)
}

# Prints the number of a port that is free now, from some of the 5000 behind $1 on; those from 32768
# on any program may be given.
free_port() {
  local port
  for ((port = $1 + RANDOM % 5000; port < $1 + 6000; port++)); do
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
}

cat >"$SLURM_CONF" <<CONF
ClusterName=here
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$(free_port 20000)
SlurmdPort=$(free_port 26000)
SlurmUser=root
AuthType=auth/munge
# A job that was requeued waits for its credential to expire: two minutes, unless told otherwise.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName=localhost NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=2
PartitionName=low Nodes=localhost Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=localhost PriorityTier=2 PreemptMode=OFF
CONF
echo 'CgroupPlugin=disabled' >"$folder/cgroup.conf"

(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
daemon munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munge.pid" --log-file="$folder/munge.log" --seed-file="$folder/munge.seed"
for _ in {1..100}; do
  [[ ! -S "$folder/munge.socket" ]] || break
  sleep 0.1
done
daemon slurmctld -D -c -f "$SLURM_CONF"
daemon slurmd -D -c -f "$SLURM_CONF"
for _ in {1..300}; do
  if [[ "$(sinfo --noheader --format=%T 2>/dev/null | sort -u)" == "idle" ]]; then
    echo "$folder"
    cat >/dev/null
    exit 0
  fi
  sleep 0.1
done
tail -n 20 "$folder"/*.log "$folder"/*.out >&2
echo "slurm_here.sh: it does not start" >&2
exit 1
