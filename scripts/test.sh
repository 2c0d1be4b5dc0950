#!/usr/bin/env bash
# Install var with what its tests need into .venv, if that has not been done, and run pytest.
#   bash scripts/test.sh                          everything
#   bash scripts/test.sh -m "not slow" tests/nn   arguments go to pytest; paths start at the root
# PYTHON names the interpreter to make .venv with.
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment test
cd "$root"
exec "$bin/python" -m pytest "$@"
