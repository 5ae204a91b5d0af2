// A model with fewer KV heads than its files hold (Ainslie et al. 2023, 2305.13245): KV head g of
// the result stands for the n = from / kv_heads heads g n .. g n + n - 1, the same that its query
// heads read before, so MHA becomes GQA or MQA. What was equal within a group loses nothing; else
// the model has to be trained on for a while ("uptraining", the paper's 5% of the steps).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "core/model/params.h"
#include "kernels/dtype.h"

namespace toroid {

struct ModelSource;

// Weights and biases of K and V; gains of K's norm are of no head.
struct KvPooling {
  enum class Kind {
    kMean,    // of the group's heads, added in double: the best start
    kFirst,   // the group's first head
    kRandom,  // drawn from `seed` as training from nothing begins: what the others are compared
              // with
  };
  Kind kind = Kind::kMean;
  int64_t from = 0;  // KV heads of the files; a multiple of config.kv_heads
  uint64_t seed = 0;
};

// From here on `source` is the model with `kv_heads` KV heads: its configuration says so and
// LoadParam pools. As many as there are: nothing changes, bit for bit. InvalidArgument if kv_heads
// does not divide those that there are, or the model is pooled already.
absl::Status PoolKvHeads(ModelSource& source, int64_t kv_heads, KvPooling::Kind kind,
                         uint64_t seed = 0);

// LoadParam of a parameter by KV head of a pooled source; `stored` is kF32, kF64 or kBF16.
absl::Status LoadPooled(const ModelSource& source, const ParamSpec& spec, const ParamSlice& slice,
                        DType stored, void* out);

}  // namespace toroid
