// A hash of all of a model's weights, to compare runs by: equal weights have equal hashes on every
// mesh, and one flipped bit changes it.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/param_store.h"

namespace toroid {

// The sum, modulo 2^64, over all parameters and their elements of a mix of (parameter's place in
// the model, element, value as float64), replicas counted once: a sum has no order. Collective over
// the world; the host waits.
// `host`, unless null: of these values instead of the store's, the stored ranges of this rank,
// group after group, of the store's type. kind: of the store's values these instead of the weights.
uint64_t ParamHash(const ParamStore& store, const void* host = nullptr,
                   ParamStore::Kind kind = ParamStore::Kind::kWeights);

// What one rank adds to such a hash for parts of its stored range of a group, as a shard rank of
// these groups, which outlive this. Not collective. Immutable, thread-safe.
class RangeHasher {
 public:
  RangeHasher(const ParamGroups& groups, int64_t group, int64_t shard_rank);
  // Of elements [begin, begin + count), which are `values`.
  template <typename T>
  uint64_t Hash(int64_t begin, int64_t count, const T* values) const;

 private:
  const ParamGroups& groups_;
  const int64_t group_;
  const std::vector<ParamPiece> pieces_;
};

// The same once.
uint64_t RangeHash(const ParamGroups& groups, int64_t group, int64_t shard_rank, DType dtype,
                   int64_t begin, int64_t count, const void* values);

}  // namespace toroid
