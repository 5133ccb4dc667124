#!/usr/bin/env bash
# Builds llama.cpp's server and quantizer, the peer of `benchmarks/llama_cpp.py`: deploy/llama_cpp.sh FOLDER (about 12 minutes on 2 cores).
# The source is the one inside the source distribution of llama-cpp-python, from the package index that pip is configured with.
# Needs cmake, ninja and a C++ compiler. Not part of setup or of the tests.
set -euo pipefail

FOLDER="${1:?usage: deploy/llama_cpp.sh FOLDER}"
VERSION="${LLAMA_CPP_PYTHON_VERSION:-0.3.36}"
SOURCE="$FOLDER/llama_cpp_python-$VERSION/vendor/llama.cpp"

mkdir -p "$FOLDER"
if [ ! -d "$SOURCE" ]; then
    python3 -m pip download --quiet --no-binary :all: --no-deps --dest "$FOLDER" "llama-cpp-python==$VERSION"
    tar -xzf "$FOLDER/llama_cpp_python-$VERSION.tar.gz" -C "$FOLDER"
fi
# gcc 12 drops the stores to the tile configuration, and the server crashes in its first product: a compiler barrier keeps them.
TILES="$SOURCE/ggml/src/ggml-cpu/amx/mmq.cpp"
grep -q 'asm volatile' "$TILES" || sed -i 's|^    _tile_loadconfig(&tc);|    asm volatile("" ::: "memory");\n&|' "$TILES"
cmake -S "$SOURCE" -B "$FOLDER/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DBUILD_SHARED_LIBS=OFF > "$FOLDER/configure.log"
cmake --build "$FOLDER/build" --target llama-server llama-quantize
rm -rf "$FOLDER/gguf-py"
cp -r "$SOURCE/gguf-py" "$FOLDER/gguf-py"
echo "ready: python -m benchmarks.llama_cpp --peer $FOLDER"
