# Sourced by the scripts beside it, in the repository's root: a virtual environment for the project.
#
# VENV         its folder; default .venv
# PYTHON       the interpreter that makes it; default: the first new enough of python3,
#              python3.14, python3.13, python3.12 and python3.11
# CONSTRAINTS  a file that pins releases of packages, such as launch/lowest.txt; default: none
# shellcheck shell=bash
VENV="${VENV:-.venv}"
CONSTRAINTS="${CONSTRAINTS:-}"

fail() { echo "$0: $1" >&2; exit 1; }

# Whether the interpreter $1 is new enough and can make virtual environments.
suits() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1
}

# Prints the interpreter to use.
find_python() {
  local candidate candidates=(python3 python3.14 python3.13 python3.12 python3.11)
  [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if suits "$candidate"; then echo "$candidate" && return; fi
  done
  fail "no Python 3.11 or newer with venv (Debian: python3-venv) among ${candidates[*]}; set PYTHON"
}

# Installs what the arguments name, in the releases that CONSTRAINTS allows. Says how far it is, in a
# log every ten seconds; what pip says is in pip.log, and shown if it fails.
pip_install() {
  local log="$VENV/pip.log" start=$SECONDS status=0 every=10 before='' after='\n' reporter
  [[ ! -t 2 ]] || { every=1 before='\r\e[K' after=''; }
  : > "$log"
  # In the background it hears no Ctrl-C: it ends with this script.
  while sleep 1 && kill -0 $$ 2> /dev/null; do
    (((SECONDS - start) % every)) ||
      printf "$before%s$after" "$(pip_progress "$log" $((SECONDS - start)))"
  done >&2 &
  reporter=$!
  "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-color \
    ${CONSTRAINTS:+--constraint "$CONSTRAINTS"} "$@" > "$log" 2>&1 || status=$?
  kill "$reporter" 2> /dev/null || true
  wait "$reporter" 2> /dev/null || true
  [[ ! -t 2 ]] || printf '\r\e[K' >&2
  ((status == 0)) || tail -n 15 "$log" >&2
  return "$status"
}

# Prints how far pip is by its log $1, after $2 seconds, on a line of a narrow terminal.
pip_progress() {
  local packages doing
  packages="$(grep -c '^Collecting ' "$1")"
  doing="$(grep -oE '^ *(Collecting|Downloading|Using cached|Building|Preparing|Installing) [^ ]+' \
    "$1" | tail -n 1)"
  doing="${doing#"${doing%%[! ]*}"}"
  [[ "$doing" != Installing* ]] || doing="unpacking them, half of the time"
  printf '  %d:%02d  %d packages; %.56s' $(($2 / 60)) $(($2 % 60)) "$packages" "$doing"
}

# Makes the environment unless it exists, and installs the requirement file $1 and those it includes
# unless they are installed, as the copy of them in the environment says.
prepare_venv() {
  local requirements="$1" stamp="$VENV/installed-$1" python wanted
  wanted="$(cat requirements*.txt ${CONSTRAINTS:+"$CONSTRAINTS"})"
  if [[ ! -x "$VENV/bin/python" ]]; then
    python="$(find_python)"
    echo "Making $VENV with $("$python" --version)" >&2
    "$python" -m venv "$VENV"
  fi
  suits "$VENV/bin/python" || fail "$VENV is broken or older than Python 3.11; remove it"
  if [[ "$wanted" != "$(cat "$stamp" 2> /dev/null)" ]]; then
    echo "Installing $requirements into $VENV, once: minutes; log: $VENV/pip.log" >&2
    "$VENV/bin/python" -m pip --version &> /dev/null || "$VENV/bin/python" -m ensurepip > /dev/null
    pip_install -r "$requirements"
    echo "$wanted" > "$stamp"
  fi
}

# Installs JAX for an NVIDIA GPU of this machine, unless JAX has a plugin for some accelerator.
# JAX_PLATFORMS=cpu, or an empty CUDA_VISIBLE_DEVICES, asks for none.
prepare_gpu() {
  local driver extra=cuda13
  if [[ "${JAX_PLATFORMS:-}" == cpu* || -z "${CUDA_VISIBLE_DEVICES-all}" ]] ||
    ! driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null)" ||
    "$VENV/bin/python" -c 'import jax_plugins' 2> /dev/null; then return; fi
  # CUDA 13 needs driver 580.
  ((${driver%%.*} >= 580)) || extra=cuda12
  echo "Installing jax[$extra] for this machine's GPU into $VENV" >&2
  pip_install -r requirements.txt "jax[$extra]" ||
    fail "jax[$extra] can't be installed; JAX_PLATFORMS=cpu runs without the GPU"
}
