# Sourced by tpu_pod.sh, whose options it reads: the commands of gcloud.
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # dry, name, type and where are set by tpu_pod.sh
[[ "${1:-}" != --help ]] || exec sed -nE '/^#!/d;/^(# shellcheck|#?[^# ]|$)/q;s/^# ?//p' "$0"

fail() {
  echo "error: $1" >&2
  exit "${2:-2}"
}

# Runs `gcloud compute tpus`, or prints it quoted for a shell.
tpus() {
  if [[ -n "$dry" ]]; then
    printf '%q ' gcloud compute tpus "$@"
    echo
  else
    gcloud compute tpus "$@"
  fi
}

# Status 255: no worker was reached, for which gcloud also uses 1 and 2.
tpu_vm() {
  local code=0
  tpus tpu-vm "$@" || code=$?
  return $((code == 1 || code == 2 ? 255 : code))
}

on_workers() { tpu_vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"; }

pause() { [[ -n "$dry" ]] || sleep "${POLL_SECONDS:-30}"; }

# Sets `runtime` to the one that cloud.google.com/tpu/docs/runtimes lists for JAX.
choose_runtime() {
  local types='v2-, v3-, v4-, v5litepod-, v5p- or v6e- and a number'
  case "$type" in
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) fail "--type: got '$type', takes $types, or another with --runtime=VERSION" ;;
  esac
}
