#!/usr/bin/env bash
# Writes requirements.lock (what runs) and requirements-dev.lock (what tests and checks need besides): every dependency
# but torch, with its exact version and the hashes of all its files; and likewise the Hub clients that tests drive.
# Run by `make lock`, with uv on the PATH.
# It keeps the present versions where pyproject.toml allows them; `deploy/lock.sh --upgrade` takes the newest.
#
# torch and the CUDA packages that it brings stay out: deploy/setup.sh chooses the build that fits the machine.
set -euo pipefail
cd "$(dirname "$0")/.."

torch_version=$(sed -n 's/^TORCH_VERSION=.*:-\(.*\)}"$/\1/p' deploy/setup.sh)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "torch==$torch_version" > "$work/constraints"

compile() { # compile OUTPUT EXTRA...: one resolution, without torch and CUDA
    local output=$1 extra
    local -a extras=()
    shift
    for extra in "$@"; do extras+=(--extra "$extra"); done
    cat requirements.lock requirements-dev.lock > "$work/resolved" 2> /dev/null || true
    uv pip compile pyproject.toml "${extras[@]}" --universal --python-version 3.11 --generate-hashes --no-header \
        --no-annotate --quiet "${UV_OPTIONS[@]}" --constraint "$work/constraints" --output-file "$work/resolved" > /dev/null
    awk '/^[A-Za-z0-9]/ { keep = !($0 ~ /^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/) } keep' "$work/resolved" > "$output"
}

UV_OPTIONS=("$@")
compile "$work/everything" demo dev
# What runs has the versions that are tested: those of the resolution with the test tools.
grep -E '^[A-Za-z0-9].*==' "$work/everything" | sed 's/ *\\$//' >> "$work/constraints"
compile "$work/runtime" demo
note="Written by deploy/lock.sh from pyproject.toml; torch $torch_version is installed by deploy/setup.sh."
{ echo "# $note" && cat "$work/runtime"; } > requirements.lock
{
    echo "# Besides requirements.lock. $note"
    awk 'NR == FNR { if (/^[A-Za-z0-9]/) { runs[$1] = 1 }; next }
         /^[A-Za-z0-9]/ { keep = !($1 in runs) } keep' "$work/runtime" "$work/everything"
} > requirements-dev.lock

# What tests drive in environments of their own: each NAME.in names its releases, NAME.txt pins all they need.
for input in deploy/hub_clients/*.in deploy/model_signing.in; do
    uv pip compile "$input" --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet \
        "${UV_OPTIONS[@]}" --output-file "${input%.in}.txt" > /dev/null
done

echo "$(grep -c == requirements.lock) packages run, $(grep -c == requirements-dev.lock) more test, beside torch $torch_version"
