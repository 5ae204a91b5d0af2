// Checkpoints of a training run: written while steps go on, loaded by any mesh.
//
// Save copies this rank's share of weights and moments to host memory (one copy, allocated once:
// host_bytes) and returns; a thread writes it as one shard (core/io/checkpoint_shard.h) while the
// store changes. Over the world every element is written exactly once: a replicated parameter or a
// shared KV head by the rank that counts it. The commit, on rank 0:
//
//   shards of all ranks synced, lengths and hashes gathered      DIR/step-00000100.tmp-EPOCH-ID/
//   origin.json, then manifest.json written and synced, the directory synced
//   one rename, DIR synced                                       DIR/step-00000100/
//   what is superfluous removed (core/io/checkpoint_directory.h)
//
// so that a run stopped anywhere leaves the checkpoint before or this one, never a mix. No error of
// a disk is fatal: it comes back as a Status, on all ranks alike, the partial checkpoint is
// removed and those before stay.
//
// A launch of a higher epoch that begins to write in DIR ends the right of an earlier one to commit
// there: its Saves fail with FailedPrecondition.
//
// DIR must be storage that all hosts share; ranks that see another one are named.
//
// All functions but in_flight and host_bytes are collective over the world, from the thread that
// makes the rank's other collective calls.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "core/io/checkpoint_manifest.h"
#include "core/io/checkpoint_shard.h"
#include "core/io/file_system.h"
#include "parallel/launcher_environment.h"
#include "parallel/mesh.h"
#include "parallel/param_store.h"

namespace toroid {

// What rank `rank` of a mesh writes: the elements of its ranges that it counts, in order.
std::vector<CheckpointPiece> CountedPieces(const ParamGroups& groups, int64_t shard_rank);

// What a run keeps on the host for every element that the store has: the stored ranges of this
// rank, group after group, of the store's type.
struct HostKind {
  std::string name;
  void* values = nullptr;
};

// Bytes of the copy from which a rank writes its share of a checkpoint, its weights stored in
// `type`.
int64_t CheckpointCopyBytes(const ParamGroups& groups, int64_t shard_rank, DType type,
                            int64_t kinds);
int64_t CheckpointCopyBytes(const ParamStore& store, int64_t kinds = CheckpointManifest::kKinds);

struct CheckpointOptions {
  std::string directory;  // made if need be
  int64_t keep = 2;       // checkpoints, at least 1
  int64_t epoch = 0;      // of this launch of the run
  // OriginText of the model that is trained: with it a checkpoint is a whole model. Empty: none.
  std::string origin;
  std::vector<std::string> also;  // names of the HostKinds that each Save is given
};

// How one Save ended, the same on all ranks.
struct CheckpointOutcome {
  absl::Status status;   // OK: the checkpoint is durable
  absl::Status removal;  // of what is superfluous now; nothing depends on it
  int64_t step = 0;
  std::string path;
  uint64_t hash = 0;   // of the manifest
  double seconds = 0;  // since Save
};

class CheckpointWriter {
 public:
  // `store` and `files` outlive the writer. ResourceExhausted: no memory for the copy.
  static absl::StatusOr<std::unique_ptr<CheckpointWriter>> Create(ParamStore& store,
                                                                  const ModelConfig& config,
                                                                  const CheckpointOptions& options,
                                                                  FileSystem& files = PosixFiles());
  // Waits for this rank's thread, and commits nothing.
  ~CheckpointWriter();

  // Begins to write the store as it is now, all that was given to its stream included. An error:
  // nothing is in flight, nothing has changed. REQUIRES: nothing is in flight; the store's
  // gradients are of no concern; `also` as the options name them.
  absl::Status Save(const TrainingState& state, const std::vector<HostKind>& also = {});
  bool in_flight() const { return stage_ != Stage::kIdle; }
  // To be called once a step: nothing while none is in flight or some rank still writes, else takes
  // the next stage or gives the outcome. One small gather; waits for no disk.
  std::optional<CheckpointOutcome> Poll();
  // Until the one in flight has ended; nothing if none is.
  std::optional<CheckpointOutcome> Wait();

  int64_t host_bytes() const { return bytes_; }

 private:
  enum class Stage { kIdle, kShards, kCommit, kCleanUp };
  // What a rank tells of its stage.
  struct Card {
    int64_t done = 0;
    ShardSeal seal;
    uint64_t hash = 0;
  };

  CheckpointWriter(ParamStore& store, const ModelConfig& config, const CheckpointOptions& options,
                   FileSystem& files);
  std::string Path(const std::string& name) const { return options_.directory + "/" + name; }
  void CopyStore(const std::vector<HostKind>& also);
  template <typename Work>
  void Start(Stage stage, Work work);
  std::optional<CheckpointOutcome> End(const absl::Status& status);

  // On the thread.
  void WriteOwnShard();
  void Commit(const std::vector<Card>& cards);
  absl::Status CheckVisible(const std::vector<Card>& cards);
  absl::Status WriteManifest(const std::vector<Card>& cards);
  absl::StatusOr<int64_t> LatestEpoch();
  absl::Status Publish();
  absl::Status RemoveSuperfluous();

  ParamStore& store_;
  FileSystem& files_;
  const CheckpointOptions options_;
  const WorldHosts hosts_;
  CheckpointManifest manifest_;  // shards and parameters on rank 0 alone
  std::unique_ptr<char[]> copy_;
  int64_t bytes_ = 0;
  int64_t latest_epoch_ = 0;  // of this launch and of what was there before it, on rank 0
  std::string partial_;       // path of the directory being written

  Stage stage_ = Stage::kIdle;
  std::thread thread_;
  std::atomic<bool> done_ = false;  // what the thread wrote may be read
  absl::Status local_;              // of this rank in this stage
  ShardSeal seal_;
  CheckpointOutcome outcome_;
  std::chrono::steady_clock::time_point begun_;
};

struct LoadedCheckpoint {
  TrainingState state;
  std::string path;
  uint64_t hash = 0;
  MeshShape mesh;                    // that wrote it
  std::vector<std::string> refused;  // newer ones that are damaged, and how: to be shown
};

// Weights and moments of one checkpoint into the store. DataLoss naming the shard that is missing
// or damaged and the checkpoint before, if there is one; FailedPrecondition for another model, type
// or host's directory. After an error the store's values are undefined.
// also: filled where the checkpoint has a kind of that name.
absl::StatusOr<LoadedCheckpoint> LoadCheckpoint(const std::string& path, const ModelConfig& config,
                                                ParamStore& store, FileSystem& files = PosixFiles(),
                                                const std::vector<HostKind>& also = {});
// The newest in the directory that is not damaged. NotFound if there is none at all, DataLoss if
// all are damaged.
absl::StatusOr<LoadedCheckpoint> LoadNewestCheckpoint(const std::string& directory,
                                                      const ModelConfig& config, ParamStore& store,
                                                      FileSystem& files = PosixFiles());

}  // namespace toroid
