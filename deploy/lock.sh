#!/usr/bin/env bash
# Writes requirements.lock: every dependency but torch, with its exact version and the hashes of all its files.
# Run by `make lock`, with uv on the PATH. It keeps the versions of the present lock where pyproject.toml allows them;
# `deploy/lock.sh --upgrade` takes the newest.
#
# torch and the CUDA packages that it brings stay out: deploy/setup.sh chooses the build that fits the machine.
set -euo pipefail
cd "$(dirname "$0")/.."

torch_version=$(sed -n 's/^TORCH_VERSION=.*:-\(.*\)}"$/\1/p' deploy/setup.sh)
compiled=$(mktemp)
trap 'rm -f "$compiled"' EXIT
[ ! -f requirements.lock ] || cp requirements.lock "$compiled"

uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate --quiet --constraint <(echo "torch==$torch_version") --output-file "$compiled" "$@" > /dev/null

{
    echo "# Written by deploy/lock.sh from pyproject.toml; torch $torch_version is installed by deploy/setup.sh."
    awk '/^[A-Za-z0-9]/ { keep = !($0 ~ /^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/) } keep' "$compiled"
} > requirements.lock
echo "requirements.lock: $(grep -c == requirements.lock) packages, beside torch $torch_version"
