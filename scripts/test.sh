#!/usr/bin/env bash
# Install var with what its tests need into .venv, if that has not been done, and run pytest.
#   bash scripts/test.sh                          everything
#   bash scripts/test.sh -m "not slow" tests/nn   arguments go to pytest; paths start at the root
#   bash scripts/test.sh -n 0 --pdb               one process, to look into a failure
# PYTHON names the interpreter to make .venv with.
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
environment test
cd "$root"
# Two processes of one thread each: threads that wait for each other would slow both down.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$bin/python" -m pytest -n 2 --dist loadfile "$@"
