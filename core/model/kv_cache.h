// KvCache: pages of K and V of the tokens that this rank holds, by layer, of several sequences at a
// time from one pool.
//
// A page holds page_tokens consecutive local tokens of a sequence for all KV heads of this rank.
// Local token i of a sequence lies in row pages[i / page_tokens] * page_tokens + i % page_tokens of
// every layer's tensors; local tokens are in ascending global position. Keys are stored rotated
// (RoPE applied). Pages come from the pool in any physical order; a sequence gives its pages back
// when it ends. Sequences with a common beginning share its full pages, which nobody writes again;
// a page goes back when the last of them has ended.
//
// Attention reads a sequence through a row of the batch that is decoded: each row has a table of
// positions and one of pages, at the same addresses for as long as the memory stands.
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <map>
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

// What is held at a time, at most.
struct KvCacheRoom {
  int64_t pages = 0;      // of all sequences
  int64_t rows = 1;       // of the batch
  int64_t row_pages = 0;  // of the longest sequence
};

class KvCache {
 public:
  KvCache(Backend& backend, KvCacheShape shape) : backend_(backend), shape_(shape) {}
  ~KvCache() { Release(); }
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // Makes room; memory that has enough of everything is kept. REQUIRES: no sequence. shuffle_seed
  // != 0 deals the pages in a random physical order: results must not depend on it.
  absl::Status Reserve(KvCacheRoom room, uint64_t shuffle_seed = 0);
  // Gives the memory back. REQUIRES: no sequence.
  void Release();

  // Begins a sequence that will hold local tokens at these global positions, ascending, and takes
  // its pages; its number, never used again. REQUIRES: there are as many.
  int64_t Begin(std::vector<int32_t> positions);
  // Begins one that has the tokens that `other` has so far and will hold the same positions: their
  // full pages are shared, the one partly filled is copied.
  int64_t Fork(Stream s, int64_t other);
  void End(int64_t sequence);
  void EndAll();  // and forgets how much was in use

  // The next `count` local tokens of a sequence are there; the cache row of each.
  std::vector<int64_t> Append(int64_t sequence, int64_t count);
  int64_t length(int64_t sequence) const { return sequences_.at(sequence).length; }

  // `row` reads `sequence` from now on.
  void Bind(Stream s, int64_t row, int64_t sequence);
  // The first `tokens` of the sequence that `row` reads, up to row_tokens(): those beyond its
  // length are not there.
  KvView View(int64_t layer, int64_t row, int64_t tokens) const;
  int64_t row_tokens() const { return room_.row_pages * shape_.page_tokens; }
  // Where KvWrite writes: [cache rows, g, K].
  Tensor keys(int64_t layer) const;
  Tensor values(int64_t layer) const;

  const KvCacheShape& shape() const { return shape_; }
  int64_t PagesOf(int64_t tokens) const {
    return (tokens + shape_.page_tokens - 1) / shape_.page_tokens;
  }
  // Bytes of one page over all layers, K and V; of the most pages in use since Reserve; of the
  // whole pool and tables.
  int64_t page_bytes() const;
  int64_t peak_bytes_in_use() const { return most_in_use_ * page_bytes(); }
  int64_t bytes_reserved() const { return reserved_; }

 private:
  struct Sequence {
    std::vector<int32_t> positions, pages;
    int64_t length = 0;
  };
  int32_t TakePage();
  // The tables of `row`, i32: [row_tokens()] and [row_pages].
  Tensor PositionsOf(int64_t row) const;
  Tensor PagesOfRow(int64_t row) const;

  Backend& backend_;
  const KvCacheShape shape_;
  KvCacheRoom room_;
  int64_t reserved_ = 0;  // bytes of data_
  char* data_ = nullptr;  // layer by layer: K rows, V rows; then positions and pages of all rows
  std::vector<int32_t> free_;   // pages, the next one last
  std::vector<int32_t> users_;  // of each page: sequences that hold it
  int64_t most_in_use_ = 0;
  std::map<int64_t, Sequence> sequences_;
  int64_t next_ = 0;
  std::vector<int64_t> bound_;  // by row: the sequence that its tables are of, -1: none
};

}  // namespace toroid
