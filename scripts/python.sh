#!/usr/bin/env bash
# Starts a script of this folder with $PYTHON, else with this checkout's .venv, else with python3.
set -euo pipefail
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
own="$(dirname "$scripts")/.venv/bin/python"
[ -x "$own" ] || own=python3
python="${PYTHON:-$own}"
# -P keeps the working folder out of it, as a script's own start does (Python 3.11 and later).
needs='from importlib.util import find_spec as find; assert find("bild") and find("torch")'
if ! "$python" -P -c "$needs" > /dev/null 2>&1; then
    echo "error: $python is not Python 3.11 or later with this project installed;" \
        "'make demo' sets up .venv, or name another one: PYTHON=my/venv/bin/python bash run_demo.sh" >&2
    exit 2
fi
exec "$python" "$scripts/$1" "${@:2}"
