#!/usr/bin/env bash
# Runs all tests in 2 processes; needs Python 3.11 or newer.
#
#   bash launch/test.sh                            everything
#   bash launch/test.sh tests/files -k resume -n 0 some, in one process
#
# VENV and PYTHON: see launch/venv.sh.
set -euo pipefail
[[ "${1:-}" != --help ]] || exec sed -nE '/^#!/d;/^(# shellcheck|#?[^# ]|$)/q;s/^# ?//p' "$0"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

prepare_venv requirements-test.txt
exec "$VENV/bin/python" -m pytest --numprocesses 2 --dist worksteal "$@"
