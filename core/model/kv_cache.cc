#include "core/model/kv_cache.h"

#include <algorithm>
#include <numeric>

#include "core/random.h"
#include "core/status_macros.h"

namespace toroid {

KvCache::~KvCache() { Release(); }

void KvCache::Release() {
  if (data_ != nullptr) backend_.Free(data_, reserved_);
  data_ = nullptr;
  reserved_ = 0;
  pages_ = 0;
}

int64_t KvCache::page_bytes() const {
  return 2 * shape_.layers * shape_.page_tokens *
         RowBytes(shape_.dtype, shape_.kv_heads * shape_.head_dim);
}

absl::Status KvCache::Begin(Stream s, int64_t tokens, uint64_t shuffle_seed) {
  TOROID_CHECK(page_table_.empty());
  const int64_t pages =
      std::max<int64_t>(1, (tokens + shape_.page_tokens - 1) / shape_.page_tokens);
  if (pages > pages_) {
    Release();
    // K and V of all layers, then one i32 position per row and one i32 per page.
    const int64_t bytes = pages * (page_bytes() + shape_.page_tokens * 4 + 4);
    TOROID_ASSIGN_OR_RETURN(void* data, backend_.Allocate(bytes));
    data_ = static_cast<char*>(data);
    reserved_ = bytes;
    pages_ = pages;
  }
  page_table_.resize(pages);
  std::iota(page_table_.begin(), page_table_.end(), 0);
  if (shuffle_seed != 0) {
    for (int64_t i = pages - 1; i > 0; --i) {
      std::swap(page_table_[i], page_table_[Philox(shuffle_seed, i, 0)[0] % uint64_t(i + 1)]);
    }
  }
  length_ = 0;
  backend_.Upload(s, page_table_.data(), View(0).page_table);
  return absl::OkStatus();
}

std::vector<int64_t> KvCache::Append(Stream s, const std::vector<int32_t>& positions) {
  const int64_t count = int64_t(positions.size());
  TOROID_CHECK_LE(length_ + count, int64_t(page_table_.size()) * shape_.page_tokens);
  std::vector<int64_t> slots(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t local = length_ + i;
    slots[i] =
        page_table_[local / shape_.page_tokens] * shape_.page_tokens + local % shape_.page_tokens;
  }
  length_ += count;
  if (count > 0)
    backend_.Upload(s, positions.data(), View(0).positions.Rows(length_ - count, count));
  return slots;
}

void KvCache::CutTo(int64_t tokens) {
  TOROID_CHECK(tokens >= 0 && tokens <= length_);
  length_ = tokens;  // rows and positions beyond it are written anew before View shows them
}

void KvCache::End() {
  page_table_.clear();
  length_ = 0;
}

Tensor KvCache::keys(int64_t layer) const {
  const int64_t rows = pages_ * shape_.page_tokens;
  const int64_t half = rows * RowBytes(shape_.dtype, shape_.kv_heads * shape_.head_dim);
  return Tensor(shape_.dtype, {rows, shape_.kv_heads, shape_.head_dim}, data_ + 2 * layer * half);
}

Tensor KvCache::values(int64_t layer) const {
  Tensor k = keys(layer);
  k.data = k.as<char>() + k.bytes();
  return k;
}

KvView KvCache::View(int64_t layer, int64_t tokens) const {
  KvView view;
  view.k = keys(layer);
  view.v = values(layer);
  char* tables = data_ + pages_ * page_bytes();
  view.positions = Tensor(DType::kI32, {tokens}, tables);
  view.page_table =
      Tensor(DType::kI32, {int64_t(page_table_.size())}, tables + pages_ * shape_.page_tokens * 4);
  view.page_tokens = shape_.page_tokens;
  return view;
}

}  // namespace toroid
