#include "parallel/param_hash.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels/exchange_loops.h"
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

// Of elements that follow each other from `place` of the parameter on.
template <typename T>
uint64_t RunHash(uint64_t parameter, uint64_t place, const T* values, int64_t count) {
  uint64_t at = parameter + place * kHashStep;
  if constexpr (std::is_same_v<T, float>) return CurrentExchangeLoops().hash(values, at, count);
  uint64_t hash = 0;
  for (int64_t i = 0; i < count; ++i, at += kHashStep) hash += HashElement(double(values[i]), at);
  return hash;
}

// Of the elements of a piece that its rank counts; read(first, count) gives some of the piece's.
template <typename Read>
uint64_t PieceHash(const ParamGroups& groups, int64_t group, const ParamPiece& piece,
                   const Read& read) {
  const GroupMember& of = groups.group(group).members[piece.member];
  const uint64_t parameter = Mix((uint64_t(group) << 32) + uint64_t(piece.member) + 1);
  const int64_t cols = of.slice.col_count;
  const bool whole_rows = cols == of.spec.cols;  // then they follow each other
  uint64_t hash = 0;
  for (int64_t done = std::max<int64_t>(0, of.counted_from - piece.begin); done < piece.count;
       done += kAtOnce) {
    const int64_t count = std::min(kAtOnce, piece.count - done);
    const auto values = read(done, count);
    for (int64_t i = 0; i < count;) {
      const int64_t e = piece.begin + done + i;  // of the slice, row after row
      const int64_t row = of.slice.row_begin + e / cols, col = of.slice.col_begin + e % cols;
      const int64_t run = whole_rows ? count - i : std::min(cols - e % cols, count - i);
      hash += RunHash(parameter, uint64_t(row * of.spec.cols + col), &values[size_t(i)], run);
      i += run;
    }
  }
  return hash;
}

}  // namespace

RangeHasher::RangeHasher(const ParamGroups& groups, int64_t group, int64_t shard_rank)
    : groups_(groups),
      group_(group),
      pieces_(PiecesOf(groups.group(group), groups.Stored(group, shard_rank))) {}

template <typename T>
uint64_t RangeHasher::Hash(int64_t begin, int64_t count, const T* values) const {
  uint64_t hash = 0;
  for (ParamPiece piece : pieces_) {
    const int64_t from = std::max(begin, piece.offset);
    const int64_t to = std::min(begin + count, piece.offset + piece.count);
    if (from >= to) continue;
    piece.begin += from - piece.offset;
    piece.count = to - from;
    hash += PieceHash(groups_, group_, piece,
                      [&](int64_t first, int64_t) { return values + from - begin + first; });
  }
  return hash;
}
template uint64_t RangeHasher::Hash(int64_t, int64_t, const float*) const;
template uint64_t RangeHasher::Hash(int64_t, int64_t, const double*) const;

uint64_t RangeHash(const ParamGroups& groups, int64_t group, int64_t shard_rank, DType dtype,
                   int64_t begin, int64_t count, const void* values) {
  const RangeHasher hasher(groups, group, shard_rank);
  return dtype == DType::kF64 ? hasher.Hash(begin, count, static_cast<const double*>(values))
                              : hasher.Hash(begin, count, static_cast<const float*>(values));
}

uint64_t ParamHash(const ParamStore& store, const void* host, ParamStore::Kind kind) {
  const ParamGroups& groups = store.groups();
  uint64_t own = 0;
  for (int64_t g = 0; g < groups.count(); ++g) {
    if (host != nullptr) {
      const DType dtype = store.ops().dtype();
      const char* values = static_cast<const char*>(host) + RowBytes(dtype, groups.StoredBegin(g));
      const int64_t shard_rank = store.mesh().shard().rank();
      own +=
          RangeHash(groups, g, shard_rank, dtype, 0, groups.Stored(g, shard_rank).size(), values);
      continue;
    }
    for (const ParamPiece& piece : store.pieces(g)) {
      own += PieceHash(groups, g, piece, [&](int64_t first, int64_t count) {
        const Tensor stored = store.Stored(kind, g, piece);
        return OnHost(store.ops(), store.stream(), stored.Rows(first, count));
      });
    }
  }
  uint64_t hash = 0;
  for (const uint64_t part : GatherHost(store.mesh().world(), own)) hash += part;
  return hash;
}

}  // namespace toroid
