// The directory that holds a run's checkpoints: what its entries are called, which of them is the
// newest, and which may go.
//
//   step-00000100              whole: it got this name by one rename when everything in it was
//                              durable
//   step-00000100-b2           the same of branch 2 (TrainingState::branch)
//   step-00000100.tmp-7-9e..   being written, or left by a writer that was stopped, or on its way
//                              out: garbage. 7: the epoch of its writer
//   step-00000100.old-7-9e..   whole: replaced by one of the same step and branch, or just about
//                              to be
//
// A later branch is newer, then a later step. Pure functions but for the last four.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/io/file_system.h"

namespace toroid {

inline constexpr char kCheckpointsName[] = "checkpoints";  // the directory's, in a run's

struct CheckpointEntry {
  enum class Kind { kWhole, kReplaced, kPartial };
  Kind kind = Kind::kWhole;
  int64_t step = 0, branch = 0;
  int64_t epoch = 0;  // not of kWhole
  std::string name;
};

// "step-00000100", "step-00000100-b2"
std::string CheckpointName(int64_t step, int64_t branch);
// The same with ".tmp-EPOCH-ID" or ".old-EPOCH-ID".
std::string PartialName(int64_t step, int64_t branch, int64_t epoch, uint64_t id);
std::string ReplacedName(int64_t step, int64_t branch, int64_t epoch, uint64_t id);
// "DIR/step-00000100" in its two parts.
std::pair<std::string, std::string> SplitCheckpointPath(std::string path);
// False if it is no entry of ours.
bool ParseCheckpointName(absl::string_view name, CheckpointEntry& out);

// Of those that can be loaded, newest first.
std::vector<CheckpointEntry> Loadable(std::vector<CheckpointEntry> entries);

// What may go now that `committed` is durable, with `keep` to be kept, itself counted: partial ones
// of no later epoch; replaced ones; those of a history that was left, of an earlier branch from the
// step on where a later one has its first; and of those that are not newer than `committed` all but
// the newest `keep`. Never `committed` itself.
std::vector<CheckpointEntry> Superfluous(const std::vector<CheckpointEntry>& entries,
                                         const CheckpointEntry& committed, int64_t keep,
                                         int64_t epoch);

// Entries of ours in a directory, in the order of their names; none if it does not exist.
absl::StatusOr<std::vector<CheckpointEntry>> ListCheckpoints(FileSystem& files,
                                                             const std::string& directory);
// Which checkpoint a path means: the path itself, if it is one by its manifest or its name; of a
// directory of checkpoints, or of a run, the newest that is whole; empty if it is none of these.
// NotFound if there is none in a run yet.
absl::StatusOr<std::string> FindCheckpoint(FileSystem& files, const std::string& path);
// Its name becomes a partial one first, so that what is only half gone is no checkpoint.
absl::Status RemoveCheckpoint(FileSystem& files, const std::string& directory,
                              const CheckpointEntry& entry, int64_t epoch, uint64_t id);
// Removes what writers of this epoch or an earlier one have left unfinished, but not `except`.
absl::Status RemovePartial(FileSystem& files, const std::string& directory, int64_t epoch,
                           const std::string& except);

}  // namespace toroid
