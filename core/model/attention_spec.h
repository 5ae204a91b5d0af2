// What attention computes, as data: a field that an implementation cannot honour is refused when
// the model is built (Validate), never dropped on the way.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "core/tensor.h"

namespace toroid {

struct AttentionSpec {
  bool causal = true;     // key position <= query position
  int64_t window = 0;     // > 0: also key position > query position - window
  double scale = 1.0;     // of q k, usually 1 / sqrt(K)
  double soft_cap = 0.0;  // not in this version
  int64_t sinks = 0;      // not in this version

  absl::Status Validate() const;
};

// Keys and values that a tile reads: a packed block ([n, g, K], no page table) or cache pages
// ([pages * page_tokens, g, K]; key i is row page_table[i / page_tokens] * page_tokens + i %
// page_tokens). Logical keys are in ascending position.
struct KvView {
  Tensor k, v;
  Tensor positions;   // i32 [n]: global position of each logical key
  Tensor page_table;  // i32 [ceil(n / page_tokens)], empty for a packed block
  int64_t page_tokens = 0;
  Tensor length;  // i32 [1], may be empty: valid keys when that changes from step to step
};

// Query rows [q_begin, +q_count) against keys [k_begin, +k_count), all of one sequence, both in
// ascending position. The mask follows from the positions alone.
struct Tile {
  int64_t q_begin = 0, q_count = 0;
  int64_t k_begin = 0, k_count = 0;
  bool operator==(const Tile&) const = default;
};

}  // namespace toroid
