// KvCache: pages of K and V of the tokens that this rank holds, by layer.
//
// A page holds page_tokens consecutive local tokens of one sequence for all KV heads of this rank.
// Local token i of a sequence lies in row page_table[i / page_tokens] * page_tokens + i %
// page_tokens of every layer's tensors; local tokens are in ascending global position. Keys are
// stored rotated (RoPE applied). Pages come from a pool in any physical order; a sequence gives its
// pages back when it ends.
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "core/backend.h"
#include "core/model/attention_spec.h"

namespace toroid {

struct KvCacheShape {
  int64_t layers = 0;
  int64_t kv_heads = 0;  // held by this rank
  int64_t head_dim = 0;  // K
  int64_t page_tokens = 16;
  DType dtype = DType::kF32;
};

class KvCache {
 public:
  KvCache(Backend& backend, KvCacheShape shape) : backend_(backend), shape_(shape) {}
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // Starts a sequence of at most `tokens` local tokens and takes its pages; grows the pool first if
  // it is too small. REQUIRES: no sequence is active (one at a time in this version). shuffle_seed
  // != 0 deals the pages in a random physical order: results must not depend on it.
  absl::Status Begin(Stream s, int64_t tokens, uint64_t shuffle_seed = 0);
  // Appends `positions.size()` local tokens and returns the cache row of each.
  std::vector<int64_t> Append(Stream s, const std::vector<int32_t>& positions);
  // Forgets the local tokens from `tokens` on; the sequence keeps its pages. REQUIRES tokens <=
  // length().
  void CutTo(int64_t tokens);
  void End();

  // Every local token so far, as attention reads it.
  KvView View(int64_t layer) const { return View(layer, length_); }
  // The same with room for `tokens`, up to the sequence's: only the first length() are there.
  KvView View(int64_t layer, int64_t tokens) const;
  // Tokens that the sequence's pages hold.
  int64_t capacity() const { return int64_t(page_table_.size()) * shape_.page_tokens; }
  // Where KvWrite writes: [rows, g, K].
  Tensor keys(int64_t layer) const;
  Tensor values(int64_t layer) const;

  int64_t length() const { return length_; }
  const KvCacheShape& shape() const { return shape_; }
  // Bytes of one page over all layers, K and V; bytes of the pages in use; of the whole pool and
  // tables.
  int64_t page_bytes() const;
  int64_t bytes_in_use() const { return int64_t(page_table_.size()) * page_bytes(); }
  int64_t bytes_reserved() const { return reserved_; }

 private:
  void Release();

  Backend& backend_;
  const KvCacheShape shape_;
  int64_t pages_ = 0;     // in the pool
  int64_t reserved_ = 0;  // bytes of data_
  char* data_ = nullptr;  // layer by layer: K rows, V rows; then positions and page table
  std::vector<int32_t> page_table_;
  int64_t length_ = 0;
};

}  // namespace toroid
