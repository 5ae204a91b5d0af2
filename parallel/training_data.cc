#include "parallel/training_data.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/status_macros.h"
#include "parallel/host_exchange.h"
#include "parallel/progress_board.h"

namespace toroid {
namespace {

// Those that rank 0 sees, too.
absl::StatusOr<std::vector<SourceFile>> FindSameSources(Communicator& world,
                                                        const TrainingData& data) {
  auto found = FindSources(data.paths, data.format);
  TOROID_RETURN_IF_ERROR(ShareStatus(world, found.status()));
  std::vector<std::string> list;
  for (const SourceFile& file : *found) list.push_back(absl::StrCat(file.path, " ", file.bytes));
  const std::string text = absl::StrJoin(list, "\n");
  absl::Status same;
  if (BroadcastText(world, text) != text) {
    same = absl::FailedPreconditionError(absl::StrCat(
        "rank ", world.rank(), " sees other files than rank 0 as ", absl::StrJoin(data.paths, " "),
        ": the data must be on storage that all hosts share"));
  }
  TOROID_RETURN_IF_ERROR(ShareStatus(world, same));
  return found;
}

absl::StatusOr<TokenDataset> Tokenise(
    Communicator& world, const std::vector<SourceFile>& files, const ModelSource& source,
    const Tokenizer* tokenizer, const TrainingData& data,
    const std::function<bool(const TokenCacheProgress&)>& progress, ProgressBoard* board) {
  if (tokenizer == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        source.path, " has no tokenizer: train it on token shards, or name a model that has one"));
  }
  TokenCacheOptions options;
  options.directory = data.cache;
  options.documents = data.documents;
  if (board != nullptr) options.ticks = board->ticks();
  const auto cache = TokenCache::Create(files, TokenizerFingerprint(source.tokenizer), options);
  absl::Status made = cache.status();
  if (made.ok()) {
    made = cache->Make(*tokenizer, world.rank(), world.size(),
                       [&](const auto& done) { return world.rank() != 0 || progress(done); });
  }
  TOROID_RETURN_IF_ERROR(ShareStatus(world, made));
  return cache->Open();
}

}  // namespace

absl::Status CheckSources(Communicator& world, const TrainingData& data) {
  return FindSameSources(world, data).status();
}

// Each error is shared where it may arise: all ranks make the same collective calls.
absl::StatusOr<TrainingTokens> OpenTokens(
    Communicator& world, const ModelSource& source, const Tokenizer* tokenizer,
    const TrainingData& data, const std::function<bool(const TokenCacheProgress&)>& progress,
    ProgressBoard* board) {
  if (board != nullptr) board->At("tokenise");
  TOROID_ASSIGN_OR_RETURN(const std::vector<SourceFile> files, FindSameSources(world, data));
  TrainingTokens tokens;
  absl::StatusOr<TokenDataset> set;
  if (files[0].format != DataFormat::kTokens) {
    set = Tokenise(world, files, source, tokenizer, data, progress, board);
    if (tokenizer != nullptr) tokens.end_of_text = int32_t(tokenizer->eos_id());
  } else {
    std::vector<std::string> paths;
    for (const SourceFile& file : files) paths.push_back(file.path);
    set = TokenDataset::Open(paths);
  }
  TOROID_RETURN_IF_ERROR(ShareStatus(world, set.status()));
  tokens.set = std::make_shared<const TokenDataset>(*std::move(set));
  if (tokens.set->vocab_size() > source.config.vocab) {
    return absl::InvalidArgumentError(
        absl::StrCat("the data's tokens are of a vocabulary of ", tokens.set->vocab_size(),
                     ", the model's has ", source.config.vocab, ": they do not belong together"));
  }
  return tokens;
}

namespace {

// A document of two tokens is enough: the first has a successor to predict, if need be in the next
// pack.
bool HasLabels(const TrainingTokens& tokens, const TrainingData& data) {
  const int64_t end = tokens.end_of_text >= 0;
  if (data.join_documents && tokens.set->tokens() + end * tokens.set->documents() >= 2) return true;
  for (int64_t d = 0; d < tokens.set->documents(); ++d) {
    if (tokens.set->Length(d) + end >= 2) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Batches>> BatchesOf(const TrainingTokens& tokens,
                                                         const TrainingData& data, uint64_t seed,
                                                         const SkipList& skipped) {
  if (!HasLabels(tokens, data)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the data has nothing to predict: no token of ", absl::StrJoin(data.paths, " "),
        " has a successor in its document: give documents of two tokens or more"));
  }
  BatchOptions options;
  options.list = {seed, data.shuffle, tokens.end_of_text, data.epochs};
  options.sequence_length = data.sequence_length;
  options.batch_tokens = data.batch_tokens;
  options.join_documents = data.join_documents;
  options.skipped = skipped;
  return Batches::Create(tokens.set, std::move(options));
}

absl::StatusOr<TrainBatch> BatchOfStep(const Batches& batches, int64_t step) {
  TOROID_ASSIGN_OR_RETURN(const Batch batch, batches.At(step));
  TrainBatch packs;
  for (int64_t i = 0; i < batch.packs; ++i) {
    packs.documents.push_back(batches.DocumentLengths(batch.first_pack + i));
  }
  packs.read = [&batches, first = batch.first_pack](int64_t i) { return batches.Read(first + i); };
  return packs;
}

}  // namespace toroid
