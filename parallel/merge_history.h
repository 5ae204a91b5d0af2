// MergeHistory: what one rank writes of its pod's merges, so that they can be made again.
//
//   merges.log                       rank 0's (core/io/merge_log.h), one record a merge. Gradients:
//                                    step k counts from 1, `result` is of the mean gradient. Outer
//                                    weights: `step` is the number of steps after which the
//                                    fragment was sent, `result` is of its outer weights after the
//                                    outer step. Hashes are RangeHash's summed over groups and
//                                    ranks, so that the logs of all pods are alike on any meshes,
//                                    but for the view.
// and, if contributions are kept,
//   contributions/from-00000040/     of the launch that went on from step 40
//     about.json                     what the numbers are of: model, meshes, exchange
//     begin.rank-0000                what it began with (contribution_file.h, as all below): outer
//                                    weights and momentum; of gradients, by group: weights,
//                                    moments and, delayed, the mean gradient on its way
//     step-00000044-0.rank-0000      of the merge of step 44 and fragment 0: every pod's share
//     squares-00000044-0             of the step that made 44, where meshes differ: the squared
//                                    sums of the gradient that all pods took, and whose they are;
//                                    -1: of the weights (Adafactor)
//
// A launch takes back what is behind the step that it goes on from, in the log and here. An error
// of the disk stops no training: it is told as an alarm, once. SPMD; one thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/communicator.h"
#include "core/io/file_system.h"
#include "core/io/merge_log.h"
#include "parallel/contribution_file.h"
#include "parallel/pod_merge.h"

namespace toroid {

class MergeHistory {
 public:
  struct Options {
    std::string directory;  // of this pod's run
    int64_t pod = 0;
    int64_t step = 0;   // steps done
    bool keep = false;  // contributions
    // It goes on with the state of another pod. What its last launch merged last may have counted
    // for nobody (membership_view.h) and is taken back.
    bool joined = false;
    std::string about;  // about.json's text
    // Writes begin.rank-..; null: there is none.
    std::function<absl::Status(ContributionWriter&)> begin;
    std::function<void(const std::string&)> alarm;  // of rank 0
  };
  // Collective over `world`, which outlives this, as `files` does.
  static std::unique_ptr<MergeHistory> Open(Communicator& world, FileSystem& files,
                                            const Options& options);

  // --- a merge
  void Begin(int64_t step, int64_t fragment, uint64_t view);
  // The shares of one of its groups. Those that have a weight count with Input too.
  void Take(int64_t group, const std::vector<PodShare>& shares);
  void Input(int64_t pod, uint64_t hash) { inputs_[pod].hash += hash; }
  // result: this rank's part of the hash. Collective.
  void End(uint64_t result);
  // What was written of the log is durable.
  void Sync();

  // Squared sums of all parameters, of pod `giver`, that step `step` (counted from 1) was made
  // with. Kept by rank 0.
  void Squares(int64_t step, bool of_weights, int64_t giver, const std::vector<double>& sums);

 private:
  MergeHistory(Communicator& world, FileSystem& files, const Options& options)
      : world_(world), files_(files), options_(options) {}
  absl::Status OpenLog();
  absl::Status OpenContributions();
  void Note(const absl::Status& status);
  void Alarm(bool another_rank);
  std::string Folder() const;

  Communicator& world_;
  FileSystem& files_;
  const Options options_;
  std::unique_ptr<MergeLog> log_;  // rank 0's
  absl::Status status_;            // the first error of this rank
  bool alarmed_ = false;
  MergeRecord record_;
  std::map<int64_t, MergeInput> inputs_;  // by pod
  ContributionWriter writer_;
};

}  // namespace toroid
