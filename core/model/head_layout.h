// Which heads a rank of the axis `tensor` holds.
//
// Rank i of n holds query heads floor(i H / n) .. floor((i + 1) H / n) - 1 and every KV head that
// they read, so any n <= H works: 9 query and 3 KV heads on 2, 4 or 5 ranks too. Kernels take one
// KV index per query head, never H / G. A KV head may be held by several ranks; the lowest holder
// owns it.
#pragma once

#include <cstdint>
#include <vector>

namespace toroid {

class HeadLayout {
 public:
  // REQUIRES: 1 <= size <= query_heads, 0 <= rank < size, query_heads a multiple of kv_heads.
  HeadLayout(int64_t query_heads, int64_t kv_heads, int64_t rank, int64_t size);

  int64_t query_begin() const { return query_begin_; }
  int64_t query_count() const { return query_count_; }  // h
  int64_t kv_begin() const { return kv_begin_; }
  int64_t kv_count() const { return kv_count_; }  // KV heads held here
  // For each local query head the local index of the KV head that it reads. Size query_count().
  const std::vector<int32_t>& kv_index() const { return kv_index_; }
  // True if no lower rank holds this KV head (local index).
  bool owns_kv(int64_t local) const { return kv_begin_ + local >= first_owned_kv_; }

 private:
  int64_t query_begin_, query_count_, kv_begin_, kv_count_, first_owned_kv_;
  std::vector<int32_t> kv_index_;
};

}  // namespace toroid
