#include "core/train/token_list.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/io/fingerprint.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr int64_t kStride = 1024;  // documents from one sum to the next

}  // namespace

TokenList::TokenList(std::shared_ptr<const TokenDataset> set, Options options)
    : set_(std::move(set)), options_(options) {
  TOROID_CHECK(options_.end_of_text < set_->vocab_size());
  epoch_tokens_ = set_->tokens() + (options_.end_of_text >= 0 ? set_->documents() : 0);
  const bool ends = options_.epochs > 0 && options_.epochs < kNoEnd / epoch_tokens_;
  size_ = ends ? options_.epochs * epoch_tokens_ : kNoEnd;
}

uint64_t TokenList::fingerprint() const {
  FingerprintHash hash;
  hash.Number(int64_t(set_->fingerprint()));
  hash.Number(int64_t(options_.seed));
  hash.Number(options_.shuffle);
  hash.Number(options_.end_of_text);
  return hash.value();
}

int64_t TokenList::Document(const Epoch& epoch, int64_t i) const {
  return epoch.order ? epoch.order->At(i) : i;
}

int64_t TokenList::Length(int64_t document) const {
  return set_->Length(document) + (options_.end_of_text >= 0 ? 1 : 0);
}

TokenList::Epoch& TokenList::Visit(int64_t number) const {
  Epoch& epoch = epochs_[number % 2];
  if (epoch.number == number) return epoch;
  epoch = {.number = number, .sums = {0}};
  if (options_.shuffle) {
    epoch.order = std::make_shared<const KeyedPermutation>(set_->documents(), options_.seed,
                                                           uint64_t(number));
  }
  return epoch;
}

std::pair<int64_t, int64_t> TokenList::Place(Epoch& epoch, int64_t index) const {
  // Sums not known yet, up to the first beyond `index`.
  while (epoch.sums.back() <= index && int64_t(epoch.sums.size()) * kStride < set_->documents()) {
    int64_t sum = epoch.sums.back();
    const int64_t begin = (int64_t(epoch.sums.size()) - 1) * kStride;
    for (int64_t i = begin; i < begin + kStride; ++i) sum += Length(Document(epoch, i));
    epoch.sums.push_back(sum);
  }
  const auto after = std::upper_bound(epoch.sums.begin(), epoch.sums.end(), index);
  int64_t i = (after - epoch.sums.begin() - 1) * kStride;
  int64_t offset = index - *(after - 1);
  for (; offset >= Length(Document(epoch, i)); ++i) offset -= Length(Document(epoch, i));
  return {i, offset};
}

std::vector<TokenList::Piece> TokenList::Find(int64_t begin, int64_t count) const {
  TOROID_CHECK(begin >= 0 && count >= 0);
  std::vector<Piece> pieces;
  if (begin >= size_) return pieces;
  count = std::min(count, size_ - begin);
  const std::lock_guard lock(mutex_);
  int64_t number = begin / epoch_tokens_;
  Epoch* epoch = &Visit(number);
  auto [i, offset] = Place(*epoch, begin % epoch_tokens_);
  while (count > 0) {
    if (i == set_->documents()) {
      epoch = &Visit(++number);
      i = 0;
    }
    const int64_t document = Document(*epoch, i);
    const int64_t left = Length(document) - offset;
    const int64_t taken = std::min(left, count);
    pieces.push_back({document, offset, taken, taken == left});
    count -= taken;
    ++i;
    offset = 0;
  }
  return pieces;
}

absl::Status TokenList::Read(const Piece& piece, std::vector<int32_t>& ids) const {
  const int64_t stored = std::min(piece.count, set_->Length(piece.document) - piece.first);
  const size_t begin = ids.size();
  ids.resize(begin + size_t(piece.count), options_.end_of_text);
  return set_->Read(piece.document, piece.first, stored, ids.data() + begin);
}

}  // namespace toroid
