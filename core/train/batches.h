// The batches of a run: batch(step) as a function of (seed, step, data set, lengths, skip list) and
// of nothing else, never of the mesh, of who reads or of what was read before.
//
//   list   TokenList: documents in the epochs' orders, indices 0, 1, 2, ...
//   run    the list without the skip list's windows, cut into packs of exactly sequence_length
//          tokens: a document that is longer than what is left of a pack goes on in the next
//   batch  the next packs, as many as BatchRamp says; shorter only where the list ends
//   rank   pack i of a batch belongs to data rank i mod data (TokenLayout's rule); MicroBatch cuts
//          a batch into parts that all data ranks do at once
// A run's place is one number, Batch::position, which is in its checkpoint: nothing is replayed.
// Sources: PaLM (Chowdhery et al. 2204.02311, section 5). Immutable but for caches; thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "core/model/params.h"
#include "core/train/schedule.h"
#include "core/train/skip_list.h"
#include "core/train/token_list.h"

namespace toroid {

struct BatchOptions {
  TokenList::Options list;
  int64_t sequence_length = 0;
  BatchRamp batch_tokens;
  // Each pack is one document, whose tokens see and predict each other across the documents that
  // they came from, as in PaLM; end_of_text alone tells them apart.
  bool join_documents = false;
  SkipList skipped;  // windows of whole packs
};

struct Batch {
  int64_t step = 0;
  int64_t first_pack = 0;  // packs [first_pack, first_pack + packs) of the run
  int64_t packs = 0;
  int64_t tokens = 0;
  int64_t position = 0;  // list index of its first token
};

// One row of training: T = ids.size() tokens, sequence_length but for the list's last pack.
struct Pack {
  std::vector<int32_t> ids;     // [T]
  std::vector<int32_t> labels;  // [T], the next token of the same document, -1: none
  std::vector<int64_t>
      document_lengths;  // sum = T; a document cut by the pack's ends counts as one
};

class Batches {
 public:
  // InvalidArgument naming what does not fit together.
  static absl::StatusOr<std::unique_ptr<const Batches>> Create(
      std::shared_ptr<const TokenDataset> set, BatchOptions options);

  // OutOfRange naming the last step once the data is used up. REQUIRES 0 <= step <= 2^31.
  absl::StatusOr<Batch> At(int64_t step) const;
  // How many steps the data lasts; empty: for ever.
  std::optional<int64_t> steps() const;
  // For checkpoints: a position means something only in a list of the same fingerprint.
  uint64_t list_fingerprint() const { return list_.fingerprint(); }
  // Whether a checkpoint of before `step` that stood at `position` goes on here: FailedPrecondition
  // if batch sizes or skip list are others than those it was written with.
  absl::Status CheckPosition(int64_t step, int64_t position) const;

  // A pack of the run, [Batch::first_pack, ...). Errors are those of a damaged shard.
  absl::StatusOr<Pack> Read(int64_t pack) const;
  // Its document_lengths alone, which reads no token.
  std::vector<int64_t> DocumentLengths(int64_t pack) const;
  // How many of the batch's labels are not -1, over all ranks: what its loss is divided by. Reads
  // no token either.
  int64_t Labels(const Batch& batch) const;

  const BatchOptions& options() const { return options_; }

 private:
  Batches(std::shared_ptr<const TokenDataset> set, BatchOptions options);
  int64_t PackBegin(int64_t pack) const;  // list index
  int64_t PackTokens(int64_t pack) const;
  std::vector<int64_t> Lengths(const std::vector<TokenList::Piece>& pieces, int64_t tokens) const;

  BatchOptions options_;
  TokenList list_;
  int64_t run_tokens_;  // of the whole run; kNoEnd: it goes on for ever
};

// A batch of `packs` in micro-batches: in each, every data rank does `packs_per_rank` packs, fewer
// or none at the end of a ragged batch. The number of micro-batches is the same on every rank.
// REQUIRES positive numbers.
int64_t MicroBatches(int64_t packs, int64_t data, int64_t packs_per_rank);
// Packs of micro-batch m, counted from the batch's first: the i-th of the range is data rank
// i mod data's.
Range MicroBatch(int64_t packs, int64_t data, int64_t packs_per_rank, int64_t m);

}  // namespace toroid
