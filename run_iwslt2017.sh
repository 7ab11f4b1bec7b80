#!/usr/bin/env bash
set -euo pipefail
exec "$(dirname "$0")/scripts/python.sh" run_eval.py iwslt2017 "$@"
