#include "core/train/batches.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr int64_t kLastStep = int64_t{1} << 31;

absl::Status CheckList(const TokenDataset& set, const BatchOptions& options) {
  if (options.list.end_of_text < -1 || options.list.end_of_text >= set.vocab_size()) {
    return absl::InvalidArgumentError(absl::StrCat("end of text: token ", options.list.end_of_text,
                                                   " in a vocabulary of ", set.vocab_size()));
  }
  if (options.list.epochs < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("epochs: ", options.list.epochs, "; 0 reads the data as often as needed"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Batches>> Batches::Create(
    std::shared_ptr<const TokenDataset> set, BatchOptions options) {
  TOROID_RETURN_IF_ERROR(Validate(options.batch_tokens, options.sequence_length));
  TOROID_RETURN_IF_ERROR(CheckList(*set, options));
  for (const SkipList::Window& window : options.skipped.windows()) {
    if (window.begin % options.sequence_length != 0 || window.end % options.sequence_length != 0) {
      return absl::InvalidArgumentError(absl::StrCat("skipped tokens: ", window.begin, "-",
                                                     window.end, " are no whole sequences of ",
                                                     options.sequence_length));
    }
  }
  std::unique_ptr<const Batches> batches(new Batches(std::move(set), std::move(options)));
  if (batches->run_tokens_ == 0) {
    return absl::InvalidArgumentError("skipped tokens: they are the whole of the data");
  }
  return batches;
}

Batches::Batches(std::shared_ptr<const TokenDataset> set, BatchOptions options)
    : options_(std::move(options)),
      list_(std::move(set), options_.list),
      run_tokens_(TokenList::kNoEnd) {
  if (list_.size() == TokenList::kNoEnd) return;
  run_tokens_ = list_.size();
  for (const SkipList::Window& window : options_.skipped.windows()) {
    run_tokens_ -= std::min(window.end, list_.size()) - std::min(window.begin, list_.size());
  }
}

absl::StatusOr<Batch> Batches::At(int64_t step) const {
  const int64_t begin = options_.batch_tokens.TokensBefore(step);
  if (begin >= run_tokens_) {
    return absl::OutOfRangeError(absl::StrCat("step ", step + 1, ": the data ends with step ",
                                              *steps(), "; allow more epochs or fewer steps"));
  }
  Batch batch{.step = step, .first_pack = begin / options_.sequence_length};
  batch.tokens = std::min(options_.batch_tokens.Tokens(step), run_tokens_ - begin);
  batch.packs = (batch.tokens + options_.sequence_length - 1) / options_.sequence_length;
  batch.position = options_.skipped.At(begin);
  return batch;
}

std::optional<int64_t> Batches::steps() const {
  if (run_tokens_ == TokenList::kNoEnd) return std::nullopt;
  // The first step that begins at or behind the end.
  int64_t low = 0, high = kLastStep;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (options_.batch_tokens.TokensBefore(middle) < run_tokens_) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

absl::Status Batches::CheckPosition(int64_t step, int64_t position) const {
  const int64_t here = options_.skipped.At(options_.batch_tokens.TokensBefore(step));
  if (here == position) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "step ", step, " begins at token ", here, " of the data, but the checkpoint stands at ",
      position,
      ": batch sizes or skipped tokens are not those it was written with; write a change "
      "of the batch as a stage that begins at step ",
      step));
}

int64_t Batches::PackBegin(int64_t pack) const {
  return options_.skipped.At(pack * options_.sequence_length);
}

int64_t Batches::PackTokens(int64_t pack) const {
  const int64_t begin = pack * options_.sequence_length;
  TOROID_CHECK(pack >= 0 && begin < run_tokens_);
  return std::min(options_.sequence_length, run_tokens_ - begin);
}

absl::StatusOr<Pack> Batches::Read(int64_t pack) const {
  const int64_t tokens = PackTokens(pack);
  // One more, the label of the last.
  const std::vector<TokenList::Piece> pieces = list_.Find(PackBegin(pack), tokens + 1);
  Pack result;
  for (const TokenList::Piece& piece : pieces) {
    TOROID_RETURN_IF_ERROR(list_.Read(piece, result.ids));
  }
  result.labels.assign(result.ids.begin() + 1, result.ids.end());
  result.labels.resize(size_t(tokens), -1);
  result.ids.resize(size_t(tokens));
  if (!options_.join_documents) {
    int64_t end = 0;
    for (const TokenList::Piece& piece : pieces) {
      end += piece.count;
      if (piece.ends && end <= tokens) result.labels[size_t(end) - 1] = -1;
    }
  }
  result.document_lengths = Lengths(pieces, tokens);
  return result;
}

std::vector<int64_t> Batches::DocumentLengths(int64_t pack) const {
  const int64_t tokens = PackTokens(pack);
  return Lengths(list_.Find(PackBegin(pack), tokens), tokens);
}

int64_t Batches::Labels(const Batch& batch) const {
  int64_t labels = batch.tokens;
  for (int64_t pack = batch.first_pack; pack < batch.first_pack + batch.packs; ++pack) {
    const int64_t begin = PackBegin(pack), tokens = PackTokens(pack);
    if (options_.join_documents) {
      if (begin + tokens == list_.size()) --labels;  // nothing is behind it
      continue;
    }
    for (const TokenList::Piece& piece : list_.Find(begin, tokens)) labels -= piece.ends ? 1 : 0;
  }
  return labels;
}

// Of the pieces that cover a pack, and maybe one token more.
std::vector<int64_t> Batches::Lengths(const std::vector<TokenList::Piece>& pieces,
                                      int64_t tokens) const {
  if (options_.join_documents) return {tokens};
  std::vector<int64_t> lengths;
  for (const TokenList::Piece& piece : pieces) {
    const int64_t length = std::min(piece.count, tokens);
    if (length > 0) lengths.push_back(length);
    tokens -= length;
  }
  return lengths;
}

int64_t MicroBatches(int64_t packs, int64_t data, int64_t packs_per_rank) {
  TOROID_CHECK(packs > 0 && data > 0 && packs_per_rank > 0);
  const int64_t most = (packs + data - 1) / data;  // of a rank
  return (most + packs_per_rank - 1) / packs_per_rank;
}

Range MicroBatch(int64_t packs, int64_t data, int64_t packs_per_rank, int64_t m) {
  TOROID_CHECK(m >= 0 && m < MicroBatches(packs, data, packs_per_rank));
  const int64_t size = data * packs_per_rank;
  return {m * size, std::min(packs, (m + 1) * size)};
}

}  // namespace toroid
