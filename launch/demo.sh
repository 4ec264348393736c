#!/usr/bin/env bash
# Pre-trains a prompt on the embedded world, evaluates it and writes a report; needs Python 3.11 or
# newer. About 2 minutes on 2 cores, after 2 minutes that install 300 MB into .venv once.
#
#   bash launch/demo.sh                                  results in runs/demo
#   bash launch/demo.sh --config.seed=1 --workdir=runs/b another seed, another folder
#
# Paths are relative to the repository's root. VENV and PYTHON: see launch/venv.sh.
set -euo pipefail
[[ "${1:-}" != --help ]] || exec sed -nE '/^#!/d;/^(# shellcheck|#?[^# ]|$)/q;s/^# ?//p' "$0"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

prepare_venv requirements.txt
if [[ ! -x "$VENV/bin/pomp" ]]; then
  echo "Installing the command pomp into $VENV, for this checkout" >&2
  pip_install --no-deps --editable . || echo "No $VENV/bin/pomp; the demo runs without it" >&2
fi
echo "Training, then an evaluation: about 2 minutes; the last line names the report" >&2
exec "$VENV/bin/python" -m pomp_jax.main --config=configs/demo.py --workdir=runs/demo "$@"
