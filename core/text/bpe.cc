#include "core/text/bpe.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "core/text/unicode.h"

namespace toroid {
namespace {

constexpr std::string_view kUnderline = "\xE2\x96\x81";  // U+2581, SentencePiece's space
constexpr size_t kCachedWordBytes = 64;
constexpr size_t kCachedWords = 1 << 16;

bool StartsWith(std::string_view text, std::string_view with) {
  return text.substr(0, with.size()) == with;
}
bool EndsWith(std::string_view text, std::string_view with) {
  return text.size() >= with.size() && text.substr(text.size() - with.size()) == with;
}
uint64_t PairKey(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(const Vocabulary* vocabulary, BpeOptions options)
    : vocabulary_(vocabulary), options_(std::move(options)) {
  if (options_.has_unk) unk_id_ = vocabulary_->FindModelToken(options_.unk_token);
  if (options_.byte_fallback) {
    byte_ids_.resize(256);
    for (unsigned b = 0; b < 256; ++b) {
      constexpr char kHex[] = "0123456789ABCDEF";
      byte_ids_[b] =
          vocabulary_->FindModelToken(std::string{'<', '0', 'x', kHex[b / 16], kHex[b % 16], '>'});
    }
  }
}

void Bpe::AddMerge(int32_t left, int32_t right, int32_t rank, int32_t merged) {
  merges_[PairKey(left, right)] = {rank, merged};
}

void Bpe::Freeze() {
  cut_before_underline_ = !options_.ignore_merges && vocabulary_->FindModelToken(kUnderline) >= 0;
  for (const auto& [pair, merge] : merges_) {
    if (!cut_before_underline_) break;
    const std::string& left = vocabulary_->Text(static_cast<int32_t>(pair >> 32));
    const std::string& right = vocabulary_->Text(static_cast<int32_t>(pair & 0xFFFFFFFFu));
    if (StartsWith(right, kUnderline) && !EndsWith(left, kUnderline)) cut_before_underline_ = false;
  }
}

absl::Status Bpe::Encode(std::string_view word, Workspace* work, std::vector<int32_t>* ids) const {
  if (word.empty()) return absl::OkStatus();
  if (options_.ignore_merges) {
    const int32_t id = vocabulary_->FindModelToken(word);
    if (id >= 0) {
      ids->push_back(id);
      return absl::OkStatus();
    }
  }
  size_t begin = 0;
  if (cut_before_underline_) {
    for (size_t at = word.find(kUnderline, 1); at != std::string_view::npos;
         at = word.find(kUnderline, at + kUnderline.size())) {
      if (EndsWith(word.substr(0, at), kUnderline)) continue;
      TOROID_RETURN_IF_ERROR(EncodeChunk(word.substr(begin, at - begin), work, ids));
      begin = at;
    }
  }
  return EncodeChunk(word.substr(begin), work, ids);
}

absl::Status Bpe::EncodeChunk(std::string_view chunk, Workspace* work,
                              std::vector<int32_t>* ids) const {
  const bool cached = chunk.size() <= kCachedWordBytes;
  if (cached) {
    const auto found = work->cache.find(absl::string_view(chunk.data(), chunk.size()));
    if (found != work->cache.end()) {
      ids->insert(ids->end(), found->second.begin(), found->second.end());
      return absl::OkStatus();
    }
  }
  TOROID_RETURN_IF_ERROR(ToSymbols(chunk, work));
  MergeAll(work);
  work->word.clear();
  for (int32_t i = work->symbols.empty() ? -1 : 0; i >= 0; i = work->symbols[i].next) {
    work->word.push_back(work->symbols[i].id);
  }
  ids->insert(ids->end(), work->word.begin(), work->word.end());
  if (cached && work->cache.size() < kCachedWords) work->cache.emplace(chunk, work->word);
  return absl::OkStatus();
}

// Characters to symbols. The order of an unknown token among byte tokens (it is written when the
// next known character comes, behind any bytes) is that of Hugging Face's `tokenizers`.
absl::Status Bpe::ToSymbols(std::string_view chunk, Workspace* work) const {
  auto& symbols = work->symbols;
  symbols.clear();
  const auto add = [&](int32_t id) { symbols.push_back({id, 0, 0}); };
  bool unknown = false;  // an unknown token waits to be written
  for (size_t at = 0; at < chunk.size();) {
    const size_t begin = at;
    const char32_t c = NextCharacter(chunk, &at);
    const std::string_view text = chunk.substr(begin, at - begin);
    const int32_t id = vocabulary_->FindCharacter(c, text);
    if (id >= 0) {
      if (unknown) add(unk_id_);
      unknown = false;
      add(id);
      continue;
    }
    const auto byte_id = [&](char b) { return byte_ids_[static_cast<unsigned char>(b)]; };
    if (!byte_ids_.empty() &&
        std::all_of(text.begin(), text.end(), [&](char b) { return byte_id(b) >= 0; })) {
      for (char b : text) add(byte_id(b));
      continue;
    }
    if (!options_.has_unk) continue;
    if (unk_id_ < 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("the character \"", absl::string_view(text.data(), text.size()),
                       "\" is unknown and the unknown token \"", options_.unk_token,
                       "\" is not in the vocabulary"));
    }
    if (unknown && !options_.fuse_unk) add(unk_id_);
    unknown = true;
  }
  if (unknown) add(unk_id_);
  for (size_t i = 0; i < symbols.size(); ++i) {
    symbols[i].previous = static_cast<int32_t>(i) - 1;
    symbols[i].next = i + 1 < symbols.size() ? static_cast<int32_t>(i) + 1 : -1;
  }
  return absl::OkStatus();
}

const Bpe::Merge* Bpe::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

namespace {
constexpr auto kLater = [](const auto& a, const auto& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
};
}  // namespace

void Bpe::PushCandidate(int32_t left, Workspace* work) const {
  if (left < 0 || work->symbols[left].next < 0) return;
  const Merge* merge =
      FindMerge(work->symbols[left].id, work->symbols[work->symbols[left].next].id);
  if (merge == nullptr) return;
  work->heap.push_back({merge->rank, left, merge->id});
  std::push_heap(work->heap.begin(), work->heap.end(), kLater);
}

void Bpe::MergeAll(Workspace* work) const {
  auto& symbols = work->symbols;
  auto& heap = work->heap;
  heap.clear();
  const auto count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i + 1 < count; ++i) PushCandidate(i, work);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), kLater);
    const Workspace::Candidate best = heap.back();
    heap.pop_back();
    // Stale: the left symbol is gone or last, or the pair there now merges to something else.
    auto& left = symbols[best.position];
    if (left.id < 0 || left.next < 0) continue;
    auto& right = symbols[left.next];
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->id != best.id) continue;
    left.id = best.id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = best.position;
    PushCandidate(left.previous, work);
    PushCandidate(best.position, work);
  }
}

}  // namespace toroid
