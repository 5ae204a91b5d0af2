#include "parallel/param_hash.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "parallel/host_exchange.h"

namespace toroid {
namespace {

constexpr int64_t kAtOnce = int64_t{1} << 20;  // elements on the host at once

// The finaliser of splitmix64 (Steele, Lea, Flood 2014), a bijection.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

std::vector<double> Values(const ParamStore& store, const void* host, int64_t begin,
                           int64_t count) {
  if (store.ops().dtype() == DType::kF64) {
    const double* values = static_cast<const double*>(host) + begin;
    return {values, values + count};
  }
  const float* values = static_cast<const float*>(host) + begin;
  return {values, values + count};
}

// Of the elements of a piece that this rank counts.
uint64_t PieceHash(const ParamStore& store, const void* host, int64_t group,
                   const ParamPiece& piece) {
  const GroupMember& of = store.groups().group(group).members[piece.member];
  const uint64_t parameter = Mix((uint64_t(group) << 32) + uint64_t(piece.member) + 1);
  const int64_t cols = of.slice.col_count;
  uint64_t hash = 0;
  for (int64_t done = std::max<int64_t>(0, of.counted_from - piece.begin); done < piece.count;
       done += kAtOnce) {
    const int64_t count = std::min(kAtOnce, piece.count - done);
    const std::vector<double> values =
        host == nullptr
            ? OnHost(store.ops(), store.stream(),
                     store.Stored(ParamStore::Kind::kWeights, group, piece).Rows(done, count))
            : Values(store, host, store.groups().StoredBegin(group) + piece.offset + done, count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t e = piece.begin + done + i;  // of the slice, row after row
      const int64_t row = of.slice.row_begin + e / cols, col = of.slice.col_begin + e % cols;
      const uint64_t element = Mix(parameter + uint64_t(row * of.spec.cols + col));
      hash += Mix(element ^ std::bit_cast<uint64_t>(values[size_t(i)]));
    }
  }
  return hash;
}

}  // namespace

uint64_t ParamHash(const ParamStore& store, const void* host) {
  uint64_t own = 0;
  for (int64_t g = 0; g < store.groups().count(); ++g) {
    for (const ParamPiece& piece : store.pieces(g)) own += PieceHash(store, host, g, piece);
  }
  uint64_t hash = 0;
  for (const uint64_t part : GatherHost(store.mesh().world(), own)) hash += part;
  return hash;
}

}  // namespace toroid
