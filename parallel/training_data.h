// The data of a training run, from the paths that a plan names to the batch of a step.
//
// SPMD: every rank opens the data for itself and checks that it sees rank 0's files; what has to be
// tokenised first is shared out. Batches are the same on every rank and mesh
// (core/train/batches.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/io/model_source.h"
#include "core/train/batches.h"
#include "core/train/token_cache.h"
#include "parallel/trainer.h"

namespace toroid {

class ProgressBoard;

struct TrainingData {
  std::vector<std::string> paths;  // patterns, as FindSources takes them
  DataFormat format = DataFormat::kByName;
  DocumentRule documents;
  std::string cache;            // where tokens are kept
  int64_t sequence_length = 0;  // tokens of a pack
  BatchRamp batch_tokens;
  bool shuffle = true;
  int64_t epochs = 0;           // 0: no end
  bool join_documents = false;  // documents of a pack see each other
  SkipList skipped;             // tokens left out from the start: whole packs
};

// The tokens of all documents.
struct TrainingTokens {
  std::shared_ptr<const TokenDataset> set;
  int32_t end_of_text = -1;  // put behind each document; -1: the shards have what they need
};

// Whether the data is there and the same for all ranks, before anything takes time. Collective;
// errors as OpenTokens has them, the same on all ranks.
absl::Status CheckSources(Communicator& world, const TrainingData& data);

// Tokenises what is not yet in data.cache and opens it, or the token shards that data names.
// progress is asked on rank 0; false ends it with Cancelled. board (may be null) moves with every
// document. Collective; an error is the same on
// all ranks. InvalidArgument: a vocabulary that is not the model's, text without a tokenizer
// (null).
absl::StatusOr<TrainingTokens> OpenTokens(
    Communicator& world, const ModelSource& source, const Tokenizer* tokenizer,
    const TrainingData& data, const std::function<bool(const TokenCacheProgress&)>& progress,
    ProgressBoard* board);

// seed: of the order of documents; skipped: instead of data.skipped, in a run that went back.
// Errors are those of Batches::Create; InvalidArgument if no token at all has a successor to
// predict.
absl::StatusOr<std::unique_ptr<const Batches>> BatchesOf(const TrainingTokens& tokens,
                                                         const TrainingData& data, uint64_t seed,
                                                         const SkipList& skipped);

// What a Trainer makes of batches.At(step); the batches outlive it.
absl::StatusOr<TrainBatch> BatchOfStep(const Batches& batches, int64_t step);

}  // namespace toroid
