#include "kept_memory.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace loraplex {
namespace {

struct Piece {
    void *data = nullptr;
    int64_t bytes = 0;
};

// Pieces that nobody has, the oldest first. Never destroyed: a tensor may outlive what is static.
struct Kept {
    std::mutex lock;
    std::vector<Piece> pieces;
};

Kept &kept() {
    static Kept *const all = new Kept;
    return *all;
}

// A kept piece that is large enough and wastes at most a quarter; nothing where there is none.
Piece take(int64_t bytes) {
    Kept &all = kept();
    const std::lock_guard guard(all.lock);
    const auto fits = [bytes](const Piece &each) { return each.bytes >= bytes && each.bytes - each.bytes / 4 <= bytes; };
    const auto found = std::find_if(all.pieces.begin(), all.pieces.end(), fits);
    if (found == all.pieces.end())
        return {};
    const Piece piece = *found;
    all.pieces.erase(found);
    return piece;
}

void give_back(Piece piece) {
    if (piece.bytes >= LEAST_KEPT_BYTES) {
        Kept &all = kept();
        const std::lock_guard guard(all.lock);
        all.pieces.push_back(piece);
        if (static_cast<int64_t>(all.pieces.size()) <= KEPT_PIECES)
            return;
        piece = all.pieces.front();
        all.pieces.erase(all.pieces.begin());
    }
    std::free(piece.data);
}

} // namespace

at::Tensor factor_memory(int64_t bytes) {
    Piece piece = take(bytes);
    if (piece.data == nullptr) {
        piece = {std::aligned_alloc(FACTOR_ALIGNMENT, std::max(bytes, FACTOR_ALIGNMENT)), bytes};
        if (piece.data == nullptr)
            throw std::bad_alloc();
    }
    return at::from_blob(piece.data, {bytes}, [piece](void *) { give_back(piece); },
                         at::TensorOptions().dtype(at::kByte));
}

int64_t kept_bytes() {
    Kept &all = kept();
    const std::lock_guard guard(all.lock);
    int64_t bytes = 0;
    for (const Piece &piece : all.pieces)
        bytes += piece.bytes;
    return bytes;
}

} // namespace loraplex
