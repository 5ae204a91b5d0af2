#include "core/model/head_layout.h"

#include "core/check.h"

namespace toroid {

HeadLayout::HeadLayout(int64_t query_heads, int64_t kv_heads, int64_t rank, int64_t size) {
  TOROID_CHECK_GE(rank, 0);
  TOROID_CHECK_LT(rank, size);
  TOROID_CHECK_LE(size, query_heads);
  TOROID_CHECK_GE(kv_heads, 1);
  TOROID_CHECK_EQ(query_heads % kv_heads, 0);
  const int64_t group = query_heads / kv_heads;  // query heads that read one KV head
  query_begin_ = rank * query_heads / size;
  const int64_t query_end = (rank + 1) * query_heads / size;
  query_count_ = query_end - query_begin_;
  kv_begin_ = query_begin_ / group;
  kv_count_ = (query_end - 1) / group + 1 - kv_begin_;
  // size <= query_heads leaves no rank empty, so the rank below holds query head query_begin_ - 1
  // and with it that head's KV head. It is the only one of ours that a lower rank may hold.
  const bool shared = query_begin_ > 0 && (query_begin_ - 1) / group == kv_begin_;
  first_owned_kv_ = kv_begin_ + (shared ? 1 : 0);
  for (int64_t head = query_begin_; head < query_end; ++head) {
    kv_index_.push_back(int32_t(head / group - kv_begin_));
  }
}

}  // namespace toroid
