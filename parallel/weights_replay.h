// WeightsReplay: the weights of a run in the modes exact and delayed, made again from its mean
// gradients: the stores of all ranks of one pod, as threads, and the updates that its trainer made.
//
// The mean gradient is taken from what was kept by merge_replay.h; the clip and the update are the
// trainer's own (Optimizer::ClipAndUpdate), in the trainer's order: a step without labels or with a
// gradient that is not finite makes none. The norm is that which the exchange took: where meshes
// differ the squared sums that one pod gave were kept; they are held against those of this pod's
// mesh, and must have the same bits where the giver's mesh is this one's.
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/io/file_system.h"
#include "parallel/contributions_about.h"

namespace toroid {

class WeightsReplay {
 public:
  // Of a launch: `folder` has its contributions. NotFound: a file of what it began with; DataLoss:
  // one that is damaged; OutOfRange: no memory. REQUIRES about.update.
  static absl::StatusOr<std::unique_ptr<WeightsReplay>> Begin(FileSystem& files,
                                                              const std::string& folder,
                                                              const ContributionsAbout& about);
  ~WeightsReplay();

  // The mean gradient of a group on a rank, of its stored range; then, once it is whole, whether it
  // is of any labels.
  void Take(int64_t rank, int64_t group, const void* mean);
  void Taken(bool has_labels) { pending_ = has_labels; }
  // The update of `step`, counted from 1, by what was taken last, if it is not made yet. What
  // differs from what was kept, empty: nothing. NotFound: squared sums of another mesh.
  absl::StatusOr<std::string> Update(int64_t step);

  // ParamHash of the weights.
  uint64_t Hash();
  // Equal for two that go on alike: weights, moments, the gradient taken, updates.
  std::vector<uint64_t> State();

 private:
  struct Rank;
  struct Squares;  // kept
  WeightsReplay(FileSystem& files, const std::string& folder, const ContributionsAbout& about);
  absl::Status MakeRanks();
  absl::Status Load(Rank& rank);
  absl::StatusOr<std::unique_ptr<Squares>> ReadSquares(int64_t step, bool of_weights);
  void OnRanks(const std::function<void(Rank&)>& work);

  FileSystem& files_;
  const std::string folder_;
  const ContributionsAbout about_;
  const bool meshes_differ_;
  bool pending_;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace toroid
