#!/usr/bin/env bash
# Runs the Python clients against a running coordinator:
#
#   SHOAL_TEST_URI=grpc+tcp://127.0.0.1:7400 tests/python/run.sh [pytest arguments]
#   tests/python/run.sh --python      only says where the interpreter is
#
# Makes a virtual environment under target/ when there is none, or when
# requirements.txt has changed. SHOAL_TEST_PYTHON is the interpreter for it.
# The last line is pytest's: `N passed in S s`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
environment="$target/python"
interpreter=${SHOAL_TEST_PYTHON:-python3}

if [ "${1:-}" != --python ] && [ -z "${SHOAL_TEST_URI:-}" ]; then
    echo "SHOAL_TEST_URI is not set; give the coordinator's address, such as grpc+tcp://127.0.0.1:7400" >&2
    exit 2
fi

# Tests in several processes may come here at once.
mkdir -p "$target"
exec 9>"$target/python.lock"
flock 9
if ! cmp --silent "$here/requirements.txt" "$environment/requirements.txt"; then
    rm -rf "$environment"
    "$interpreter" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$here/requirements.txt" >&2
    cp "$here/requirements.txt" "$environment/requirements.txt"
fi
exec 9>&-

if [ "${1:-}" = --python ]; then
    printf '%s\n' "$environment/bin/python"
    exit
fi
cd "$here"
PYTHONDONTWRITEBYTECODE=1 exec "$environment/bin/python" -m pytest "$@"
