#!/usr/bin/env bash
# Makes a virtual environment that holds loraplex with all its dependencies: deploy/setup.sh [FOLDER] (default .venv).
# Run by `make setup` and, with LORAPLEX_INSTALL=runtime (a copy instead of the working tree, no test tools), by the
# Dockerfile. Running it again only installs what is missing.
#
# torch comes first, in the build that fits the machine: with an NVIDIA GPU (or LORAPLEX_TORCH=cuda) the CUDA build,
# otherwise the CPU build, which is far smaller. Everything else comes from the lock files, checked by hash.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV="${1:-.venv}"
TORCH_VERSION="${TORCH_VERSION:-2.13.0}"
TRITON_VERSION="${TRITON_VERSION:-3.9.0}" # beside a CPU build of torch only
TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu" # pytorch's documented channel for its CPU builds on Linux
INSTALL="${LORAPLEX_INSTALL:-dev}" # dev or runtime

say() { printf 'setup: %s\n' "$*"; }

find_python() { # what PYTHON names, and nothing else; without it the first that fits
    local candidate candidates=(python3 python3.11 python3.12 python3.13)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null; then
            echo "$candidate"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        say "PYTHON=$PYTHON is no Python from 3.11 to 3.13: name another, or leave it out" >&2
    else
        say "no Python from 3.11 to 3.13 found; install one, or name it: make setup PYTHON=/path/to/python3.12" >&2
    fi
    return 1
}

case "${LORAPLEX_TORCH:-}" in
    "" | cuda | cpu) ;;
    *) say "LORAPLEX_TORCH=$LORAPLEX_TORCH is neither cuda nor cpu; leave it out to take what fits this machine" >&2 && exit 1 ;;
esac

has_torch() { "$VENV/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '$TORCH_VERSION')" 2> /dev/null; }

wants_cuda() {
    case "${LORAPLEX_TORCH:-}" in
        cuda) return 0 ;;
        cpu) return 1 ;;
        "") nvidia-smi --list-gpus > /dev/null 2>&1 ;;
    esac
}

# What pip would take for this torch without further advice, read from its dry run: "2.13.0+cpu", or "2.13.0" for the build with CUDA.
default_torch_build() {
    "$VENV/bin/pip" install --dry-run --no-deps --ignore-installed --quiet --report - "torch==$TORCH_VERSION" 2> /dev/null |
        "$VENV/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])'
}

install_torch() {
    if wants_cuda || [ "$(uname -s)" != Linux ]; then
        say "torch $TORCH_VERSION, the default build of this platform"
        "$VENV/bin/pip" install --quiet "torch==$TORCH_VERSION"
    elif [[ "$(default_torch_build)" == *+cpu ]]; then
        say "torch $TORCH_VERSION+cpu, as this machine's pip is configured"
        "$VENV/bin/pip" install --quiet "torch==$TORCH_VERSION"
    else
        say "torch $TORCH_VERSION+cpu, from pytorch's index of CPU builds"
        if ! "$VENV/bin/pip" install --quiet --extra-index-url "$TORCH_CPU_INDEX" "torch==$TORCH_VERSION+cpu"; then
            say "there was no CPU build of torch: look at the network, or take the default build, which also runs on a CPU and is" >&2
            say "far larger: LORAPLEX_TORCH=cuda make setup" >&2
            return 1
        fi
    fi
}

# A CPU build of torch brings no Triton. The tests of the GPU kernels run in its interpreter; without it they are skipped.
install_triton() {
    if [ "$(uname -sm)" = "Linux x86_64" ] && ! ls -d "$VENV"/lib/python3*/site-packages/triton > /dev/null 2>&1; then
        say "triton $TRITON_VERSION, for the tests"
        "$VENV/bin/pip" install --quiet --no-deps "triton==$TRITON_VERSION"
    fi
}

if [ ! -x "$VENV/bin/pip" ]; then
    python=$(find_python)
    say "virtual environment $VENV with $("$python" --version)"
    "$python" -m venv "$VENV"
fi
has_torch || install_torch
locks=(--requirement requirements.lock)
package=(".[demo]")
if [ "$INSTALL" = dev ]; then
    install_triton
    locks+=(--requirement requirements-dev.lock)
    package=(--editable ".[demo,dev]")
fi
say "everything else, from the lock files"
"$VENV/bin/pip" install --quiet --no-deps --require-hashes "${locks[@]}"
"$VENV/bin/pip" install --quiet --no-deps --no-build-isolation "${package[@]}"
"$VENV/bin/pip" check
say "$("$VENV/bin/python" -P -m basemodel.kernels.build)" # with -P the installed package is meant, not this folder's
say "ready: $(printf %q "$VENV/bin/loraplex") --help"
