# Sourced by the scripts beside it. `environment [EXTRA]` makes .venv in the checkout, or brings it
# up to date, and sets $root and $bin. Messages go to stderr. Where packages come from is pip's own
# business: its settings and PIP_* variables apply.

set -euo pipefail
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
bin="$root/.venv/bin"

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

fits() { # PYTHON: is it recent enough, and able to make environments?
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local name names=(python3 python3.14 python3.13 python3.12 python3.11)
    if [ -n "${PYTHON:-}" ]; then names=("$PYTHON"); fi
    for name in "${names[@]}"; do
        if fits "$name"; then
            printf '%s\n' "$name"
            return
        fi
    done
    fail "var needs Python 3.11 or newer with the modules venv and ensurepip; not found as: ${names[*]}" \
        "Install it (Debian and Ubuntu: python3 python3-venv), or name it: PYTHON=/path/to/python3 bash $0"
}

progress() { # show the latest line of pip on one line of the terminal; silent elsewhere
    local line
    while IFS= read -r line; do
        if [ -t 2 ]; then printf '\r\033[K%.78s' "$line" >&2; fi
    done
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

environment() { # [EXTRA]
    local extra="${1:-}" log="$root/.venv/install.log" python key
    # What the environment was made from; the place counts because commands in it name it.
    key="$root $(cat "$root/setup.cfg" "$root/pyproject.toml" | cksum)"
    stamped "$key" "$extra" && return

    if [ ! -x "$bin/python" ]; then
        python="$(find_python)"
        "$python" -m venv "$root/.venv" || fail "could not make $root/.venv with $python"
    fi
    fits "$bin/python" || fail "$root/.venv holds a Python older than 3.11: delete that folder and run this again"
    "$bin/python" -m pip --version >/dev/null 2>&1 || "$bin/python" -m ensurepip >/dev/null

    echo "Installing var-toolkit${extra:+ [$extra]} into $root/.venv: minutes the first time, PyTorch is large ..." >&2
    if ! "$bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
        --editable "$root${extra:+[$extra]}" 2>&1 | tee "$log" | progress; then
        tail -n 15 "$log" >&2
        fail "The installation failed; all that pip said is in $log"
    fi
    printf '%s\n' "$key" >"$root/.venv/installed${extra:+-$extra}"
}

stamped() { # KEY EXTRA: was this installed before, with the extra or with more?
    local stamp
    for stamp in "$root/.venv/installed"${2:+"-$2"}*; do
        if [ -x "$bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$1" ]; then return 0; fi
    done
    return 1
}
