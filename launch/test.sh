#!/usr/bin/env bash
# Runs the tests in 2 processes; needs Python 3.11 or newer.
#
#   bash launch/test.sh                            the first tier: what a change may break
#   bash launch/test.sh --all                      both tiers; the second has what takes minutes
#   bash launch/test.sh -m slow                    the second alone
#   bash launch/test.sh tests/files -k resume -n 0 some, in one process
#   bash launch/test.sh --durations=40             with the dearest tests
#
# VENV and PYTHON: see launch/venv.sh.
set -euo pipefail
[[ "${1:-}" != --help ]] || exec sed -nE '/^#!/d;/^(# shellcheck|#?[^# ]|$)/q;s/^# ?//p' "$0"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

prepare_venv requirements-test.txt
tier=first
[[ " $* " != *' -m slow '* ]] || tier=second
if [[ "${1:-}" == --all ]]; then
  tier='first and second'
  set -- -m '' "${@:2}"
fi
status=0
"$VENV/bin/python" -m pytest --numprocesses 2 --dist worksteal "$@" || status=$?
commit="$(git describe --always --dirty 2> /dev/null)" || commit=unknown
echo "== tests of the $tier tier: status $status in $SECONDS s, commit $commit"
exit "$status"
