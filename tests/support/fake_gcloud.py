"""A cloud as a folder, with fakes of gcloud and of a worker's Python."""

import os
import subprocess

from tests.support.processes import ROOT

# A queued resource is a file that holds its state; a worker is a folder, and ssh is
# bash.
_GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$CLOUD/calls"
state="$CLOUD/state"
next() { # ends with the next status in a file, if there is one
  [[ -s "$1" ]] || return 0
  status="$(head -n 1 "$1")"
  sed -i 1d "$1"
  echo "ERROR: $1" >&2
  exit "$status"
}
case "$3 $4" in
  "queued-resources describe")
    if [[ -s "$CLOUD/outages" ]]; then
      sed -i 1d "$CLOUD/outages"
      echo "ERROR: the network is down" >&2
      exit 1
    fi
    [[ ! -e "$CLOUD/denied" ]] || { cat "$CLOUD/denied" >&2; exit 1; }
    [[ -e "$state" ]] || { echo "ERROR: NOT_FOUND: there is no such resource" >&2; exit 1; }
    if [[ -s "$CLOUD/waits" ]]; then
      head -n 1 "$CLOUD/waits" | tr -d -
      sed -i 1d "$CLOUD/waits"
    else
      cat "$state"
    fi ;;
  "queued-resources create")
    cp "$CLOUD/created" "$state"
    [[ ! -e "$CLOUD/refused" ]] || { cat "$CLOUD/refused" >&2; exit 1; } ;;
  "queued-resources delete")
    next "$CLOUD/undeleted"
    rm "$state" ;;
  "tpu-vm scp")
    next "$CLOUD/broken scp"
    cp "$5" "$CLOUD/worker/${6#*:}" ;;
  "tpu-vm ssh")
    for argument; do [[ "$argument" == --command=* ]] && command="${argument#--command=}"; done
    case "$command" in
      *worker-start*) next "$CLOUD/broken start" ;;
      *"worker-follow 1"*) next "$CLOUD/broken" ;;
    esac
    # On SIGINT, ssh exits at once and the remote command keeps running.
    trap 'exit 130' INT
    cd "$CLOUD/worker"
    setsid bash -c "$command" &
    wait $! ;;
  *) exit 9 ;;
esac
"""
# Python on the worker: records its arguments, and exits with the next status.
_PYTHON = """#!/usr/bin/env bash
[[ "$1" == -m && "$2" == pomp_jax.main ]] || exit 0
echo run >> ran
for argument; do printf '%s\\0' "$argument"; done > arguments
echo "a line of the log"
[[ ! -e "$CLOUD/later outages" ]] || mv "$CLOUD/later outages" "$CLOUD/outages"
while [[ -e "$CLOUD/hold" ]]; do sleep 0.1; done
status="$(head -n 1 "$CLOUD/statuses")"
sed -i 1d "$CLOUD/statuses"
[[ "$status" != 75 || -e "$CLOUD/healthy" ]] || echo SUSPENDED > "$CLOUD/state"
exit "$status"
"""


def executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def make_cloud(folder):
  """Creates the folder: no resource, one installed worker, one run that exits with
  0."""
  executable(folder / "bin" / "gcloud", _GCLOUD)
  venv = folder / "worker" / "pomp" / ".venv"
  executable(venv / "bin" / "python", _PYTHON)
  executable(
    venv / "bin" / "pip", '#!/usr/bin/env bash\necho "$*" >> "$CLOUD/packages"\n'
  )
  executable(folder / "bin" / "sleep", "#!/usr/bin/env bash\n/bin/sleep 0.1\n")
  (folder / "created").write_text("ACTIVE\n")
  (folder / "statuses").write_text("0\n")


def start(cloud, *arguments):
  # VENV and PYTHON are unset on a machine of the cloud.
  environ = {
    name: text for name, text in os.environ.items() if name not in ("VENV", "PYTHON")
  }
  environ |= {"PATH": f"{cloud / 'bin'}:{environ['PATH']}"}
  environ |= {"CLOUD": str(cloud), "POLL_SECONDS": "0"}
  command = ["bash", "launch/tpu_pod.sh", *arguments]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  return subprocess.Popen(
    command, cwd=ROOT, env=environ, start_new_session=True, **pipes
  )


def pod(cloud, *arguments):
  """Runs launch/tpu_pod.sh to its end."""
  process = start(cloud, *arguments)
  stdout, stderr = process.communicate(timeout=600)
  return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def calls(cloud):
  """Returns the gcloud verbs called, in order, without `describe`."""
  lines = (cloud / "calls").read_text().splitlines()
  verbs = [line.split()[3] for line in lines if line.startswith("compute tpus")]
  return [verb for verb in verbs if verb != "describe"]
