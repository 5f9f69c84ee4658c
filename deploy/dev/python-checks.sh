#!/usr/bin/env bash
# Runs fixtures/python/*_test.py with an interpreter that has what fixtures/python/requirements.txt names, kept in a folder of the
# user's cache. Where there is no Python, it says so and passes.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
folder=fixtures/python

if ! compgen -G "$folder/*.py" >/dev/null; then
    echo "python checks: there are none in $folder"
    exit 0
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    echo "SKIPPED: python checks: no $python with venv here; install with: sudo apt-get install -y python3-venv" >&2
    exit 0
fi
requirements=$folder/requirements.txt
[ -e "$requirements" ] || requirements=/dev/null
venv=${XDG_CACHE_HOME:-$HOME/.cache}/orderflow/python-$(sha256sum <"$requirements" | cut -c1-12)
if ! [ -e "$venv/ready" ]; then
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements"
    touch "$venv/ready"
fi
exec "$venv/bin/python" -m unittest discover --start-directory "$folder" --pattern '*test*.py' --verbose
