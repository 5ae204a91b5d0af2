// What a training checkpoint says of itself: manifest.json. With it any mesh can read what any
// other wrote, for every shard file lists which elements of which whole parameter it holds.
//
// The first line is {"hash":"16 hex digits", and hashes all bytes behind it, so that a flipped bit
// in a number shows; that hash names the checkpoint. Hashes are FingerprintHash: 64 bits against
// accidents, not against malice. Each of its steps is a bijection of the state, so that damage to
// one 8-byte word is always seen, and other damage but once in 2^64; it needs no instruction set
// of its own and outruns a disk.
//
// A manifest is data of the world: Parse checks every number, and that the pieces cover every
// parameter exactly once. Value types.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/model/model_config.h"
#include "core/model/params.h"
#include "core/train/skip_list.h"
#include "kernels/dtype.h"

namespace toroid {

inline constexpr char kManifestName[] = "manifest.json";
// In TrainingState::texts: the version of toroid that wrote it.
inline constexpr char kWriterText[] = "toroid";
inline constexpr int64_t kManifestBytes = int64_t{128} << 20;  // at most

// A run between two steps, but for its values.
struct TrainingState {
  int64_t step = 0;  // steps done
  // Raised by the run whenever it goes back to an earlier step: what was written after that step
  // before belongs to a history that was left.
  int64_t branch = 0;
  int64_t data_position = 0;  // the run's next token
  uint64_t seed = 0;
  SkipList skipped;
  // What else the trainer must find again, under names of its own: skipped steps, losses of the
  // spike rule, sums of the noise scale; texts for what it compares, such as the data set's hash.
  std::map<std::string, std::vector<double>> numbers;
  std::map<std::string, std::string> texts;  // UTF-8
  bool operator==(const TrainingState&) const = default;
};

// Elements [begin, begin + count) of a rectangle of a parameter, row after row.
struct CheckpointPiece {
  int64_t parameter = 0;  // index into parameters
  ParamSlice slice;
  int64_t begin = 0, count = 0;
  bool operator==(const CheckpointPiece&) const = default;
};

// One rank's file (checkpoint_shard.h): the weights of its pieces, then their first moments, then
// their second, then what the manifest calls `also`.
struct CheckpointShard {
  int64_t bytes = 0;  // of the file
  uint64_t hash = 0;  // of its header and its blocks' hashes
  std::vector<CheckpointPiece> pieces;
  int64_t elements() const;
  bool operator==(const CheckpointShard&) const = default;
};

struct CheckpointParameter {
  std::string name;
  int64_t rows = 0, cols = 0;
  bool operator==(const CheckpointParameter&) const = default;
};

// A small file that lies beside the shards.
struct CheckpointFile {
  int64_t bytes = 0;  // 0: there is none
  uint64_t hash = 0;  // of its text
  bool operator==(const CheckpointFile&) const = default;
};

struct CheckpointManifest {
  static constexpr int64_t kSchema = 1;
  enum Kind { kWeights, kFirstMoments, kSecondMoments };
  static constexpr int kKinds = 3;  // that every checkpoint has
  static constexpr int kMostAlso = 8;

  TrainingState state;
  ModelConfig model;
  int64_t data = 1, ring = 1, tensor = 1;  // mesh that wrote it
  int64_t epoch = 0;                       // of the run's launches
  uint64_t save_id = 0;                    // the same in all files of one checkpoint
  DType dtype = DType::kF32;               // of the values: kF32 or kF64
  CheckpointFile origin;                   // origin.json (model_origin.h)
  std::vector<CheckpointParameter> parameters;
  // What the shards hold of every parameter besides weights and moments, behind them.
  std::vector<std::string> also;
  int64_t kinds() const { return kKinds + int64_t(also.size()); }
  std::vector<CheckpointShard> shards;  // by rank

  // The file's text.
  std::string ToText() const;
  // DataLoss naming `where` and the rule that is broken; Unimplemented for another schema.
  static absl::StatusOr<CheckpointManifest> Parse(absl::string_view text, const std::string& where);
};

// A state by itself, as a manifest has it. Parse: DataLoss naming `where` and the rule that is
// broken.
std::string TrainingStateText(const TrainingState& state);
absl::StatusOr<TrainingState> ParseTrainingState(absl::string_view text, const std::string& where);

// The hash in the first line of a manifest's text. REQUIRES: of ToText, or parsed.
uint64_t ManifestHash(absl::string_view text);

// What CheckpointFile::hash is of.
uint64_t HashOfText(absl::string_view text);

// "shard-00002-of-00008.bin"
std::string ShardName(int64_t rank, int64_t ranks);

// OK if the pieces of all shards hold each element of each parameter exactly once; else
// InvalidArgument naming the parameter. Every piece must lie within its parameter.
absl::Status CoversOnce(const std::vector<CheckpointParameter>& parameters,
                        const std::vector<CheckpointShard>& shards);

}  // namespace toroid
