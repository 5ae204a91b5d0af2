#include "core/model/kv_cache.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/random.h"

namespace toroid {

void KvCache::Release() {
  if (data_ != nullptr) backend_.Free(data_, reserved_);
  data_ = nullptr;
  reserved_ = 0;
  room_ = {.pages = 0, .rows = 0, .row_pages = 0};
}

int64_t KvCache::page_bytes() const {
  return 2 * shape_.layers * shape_.page_tokens *
         RowBytes(shape_.dtype, shape_.kv_heads * shape_.head_dim);
}

absl::Status KvCache::Reserve(KvCacheRoom room, uint64_t shuffle_seed) {
  TOROID_CHECK(sequences_.empty());
  room.pages = std::max<int64_t>(room.pages, 1);
  room.row_pages = std::max<int64_t>(room.row_pages, 1);
  if (room.pages > room_.pages || room.rows > room_.rows || room.row_pages > room_.row_pages) {
    // As much of each as there was, so that two kinds of requests in turn do not move the memory.
    room = {.pages = std::max(room.pages, room_.pages),
            .rows = std::max(room.rows, room_.rows),
            .row_pages = std::max(room.row_pages, room_.row_pages)};
    Release();
    const int64_t table = room.row_pages * (shape_.page_tokens + 1) * 4;  // of a row
    const int64_t bytes = room.pages * page_bytes() + room.rows * table;
    const absl::StatusOr<void*> data = backend_.Allocate(bytes);
    if (!data.ok()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "no memory for keys and values: ", bytes, " bytes of ", room.pages, " pages for ",
          room.rows, room.rows == 1 ? " sequence" : " sequences",
          " at a time: use more ranks on the ring, a shorter prompt, fewer new tokens or --compute",
          " bf16 (", data.status().message(), ")"));
    }
    data_ = static_cast<char*>(*data);
    reserved_ = bytes;
    room_ = room;
  }
  free_.resize(room_.pages);
  std::iota(free_.rbegin(), free_.rend(), 0);
  if (shuffle_seed != 0) {
    for (int64_t i = room_.pages - 1; i > 0; --i) {
      std::swap(free_[i], free_[Philox(shuffle_seed, i, 0)[0] % uint64_t(i + 1)]);
    }
  }
  users_.assign(room_.pages, 0);
  bound_.assign(room_.rows, -1);
  most_in_use_ = 0;
  return absl::OkStatus();
}

int32_t KvCache::TakePage() {
  TOROID_CHECK(!free_.empty());
  const int32_t page = free_.back();
  free_.pop_back();
  users_[page] = 1;
  most_in_use_ = std::max(most_in_use_, room_.pages - int64_t(free_.size()));
  return page;
}

int64_t KvCache::Begin(std::vector<int32_t> positions) {
  Sequence sequence;
  sequence.pages.resize(PagesOf(int64_t(positions.size())));
  TOROID_CHECK_LE(int64_t(sequence.pages.size()), room_.row_pages);
  for (int32_t& page : sequence.pages) page = TakePage();
  sequence.positions = std::move(positions);
  sequences_.emplace(next_, std::move(sequence));
  return next_++;
}

int64_t KvCache::Fork(Stream s, int64_t other) {
  Sequence sequence = sequences_.at(other);
  const int64_t full = sequence.length / shape_.page_tokens;
  for (int64_t i = 0; i < int64_t(sequence.pages.size()); ++i) {
    int32_t& page = sequence.pages[i];
    if (i < full) {
      ++users_[page];
      continue;
    }
    const int32_t from = page;
    page = TakePage();
    const int64_t filled = i == full ? sequence.length % shape_.page_tokens : 0;
    if (filled == 0) continue;
    for (int64_t layer = 0; layer < shape_.layers; ++layer) {
      for (const Tensor& rows : {keys(layer), values(layer)}) {
        backend_.Copy(s, rows.Rows(from * shape_.page_tokens, filled),
                      rows.Rows(page * shape_.page_tokens, filled));
      }
    }
  }
  sequences_.emplace(next_, std::move(sequence));
  return next_++;
}

void KvCache::End(int64_t sequence) {
  const std::vector<int32_t>& pages = sequences_.at(sequence).pages;
  for (auto page = pages.rbegin(); page != pages.rend(); ++page) {
    if (--users_[*page] == 0) free_.push_back(*page);
  }
  sequences_.erase(sequence);
}

void KvCache::EndAll() {
  while (!sequences_.empty()) End(sequences_.begin()->first);
  most_in_use_ = 0;
}

std::vector<int64_t> KvCache::Append(int64_t sequence, int64_t count) {
  Sequence& of = sequences_.at(sequence);
  TOROID_CHECK_LE(of.length + count, int64_t(of.positions.size()));
  std::vector<int64_t> slots(count);
  for (int64_t& slot : slots) {
    slot = of.pages[of.length / shape_.page_tokens] * shape_.page_tokens +
           of.length % shape_.page_tokens;
    ++of.length;
  }
  return slots;
}

void KvCache::Bind(Stream s, int64_t row, int64_t sequence) {
  if (bound_.at(row) == sequence) return;
  bound_[row] = sequence;
  const Sequence& of = sequences_.at(sequence);
  std::vector<int32_t> pages = of.pages;
  pages.resize(room_.row_pages, 0);  // never read, but pages of the pool all the same
  backend_.Upload(s, pages.data(), PagesOfRow(row));
  backend_.Upload(s, of.positions.data(), PositionsOf(row).Rows(0, int64_t(of.positions.size())));
}

Tensor KvCache::PositionsOf(int64_t row) const {
  char* tables = data_ + room_.pages * page_bytes();
  return Tensor(DType::kI32, {row_tokens()}, tables + row * row_tokens() * 4);
}

Tensor KvCache::PagesOfRow(int64_t row) const {
  char* tables = data_ + room_.pages * page_bytes() + room_.rows * row_tokens() * 4;
  return Tensor(DType::kI32, {room_.row_pages}, tables + row * room_.row_pages * 4);
}

Tensor KvCache::keys(int64_t layer) const {
  const int64_t rows = room_.pages * shape_.page_tokens;
  const int64_t half = rows * RowBytes(shape_.dtype, shape_.kv_heads * shape_.head_dim);
  return Tensor(shape_.dtype, {rows, shape_.kv_heads, shape_.head_dim}, data_ + 2 * layer * half);
}

Tensor KvCache::values(int64_t layer) const {
  Tensor k = keys(layer);
  k.data = k.as<char>() + k.bytes();
  return k;
}

KvView KvCache::View(int64_t layer, int64_t row, int64_t tokens) const {
  KvView view;
  view.k = keys(layer);
  view.v = values(layer);
  view.positions = PositionsOf(row).Rows(0, tokens);
  view.page_table = PagesOfRow(row);
  view.page_tokens = shape_.page_tokens;
  return view;
}

}  // namespace toroid
