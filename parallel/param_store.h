// ParamStore: one rank's share of weights, gradients and optimizer state, split over `tensor` and
// over `shard` = data x ring, and the traffic that makes a group whole just in time.
//
//   stored        weights, gradients, first and second moments: 1/shard of each group's buffer
//   gathered      two buffers: the group in use, and the next one, which travels meanwhile
//   gradients     two buffers: the group being differentiated, and the one being reduced
//
// A walk over the groups calls Gather(group, next) before each. That is also where the gradients of
// the group before start to be reduced, so that both travel while this group computes; what arrived
// is added to the stored gradients in the order of the calls: the same bits with prefetch and
// without. On a shard of one rank the stored weights themselves are used and nothing travels; in a
// world of one rank the stored gradients too.
//
// Per rank and group of n elements, e bytes each: Gather sends (R - 1) n e / R over `shard`, Reduce
// the same (ZeRO-3, Rajbhandari et al. 2020). All ranks make the same calls in the same order. One
// thread at a time.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "core/io/model_source.h"
#include "core/model/bind.h"
#include "core/model/param_groups.h"
#include "parallel/mesh.h"
#include "parallel/stored_rows.h"

namespace toroid {

class ParamStore {
 public:
  struct Options {
    bool prefetch = true;
    bool narrow =
        false;  // gathered as bf16 (the stored weights stay float32); vectors come widened
  };

  // Allocates everything, zero. `s` is where the walk computes. OutOfRange names the bytes.
  static absl::StatusOr<std::unique_ptr<ParamStore>> Create(Backend& ops, Stream s, Mesh& mesh,
                                                            ParamGroups groups,
                                                            const Options& options);
  ~ParamStore();

  // This rank's ranges of the model's parameters into the stored weights.
  // `ticks` (may be null) is raised with every piece of a few MiB.
  absl::Status Load(const ModelSource& source, std::atomic<int64_t>* ticks = nullptr);

  // --- a walk
  // The group's weights, valid until the next but one Gather. next: the group that will be asked
  // for after this one, -1: none.
  FindParam Gather(int64_t group, int64_t next);
  // A zero buffer to add the group's gradients to, until Reduce: what it then holds may owe sums
  // over `tensor`, which what is stored no longer does. In a world of one rank the stored
  // gradients.
  FindParam Gradients(int64_t group);
  // The buffer that Gradients gave last is complete up to sums over `tensor`, which are paid.
  // whole: nothing more comes to this group's gradient.
  void Reduce(bool whole = false);
  // Called when the stored gradient of a group is whole, in the order of the reductions; what
  // writes it was given to stream().
  void OnWhole(std::function<void(int64_t group)> on_whole) { on_whole_ = std::move(on_whole); }
  // Nothing more comes to these rows of a parameter's gradient, though more does to the group's:
  // tells who asked for it by OnRowsWhole. In a world of one rank; in others nothing is told, since
  // what is stored is added to by reductions still to come.
  void RowsWhole(int64_t group, const std::string& parameter, std::vector<bool> rows);
  void OnRowsWhole(std::function<void(int64_t group, const StoredRows& rows)> on_rows_whole) {
    on_rows_whole_ = std::move(on_rows_whole);
  }
  // Waits until every reduction is in the stored gradients.
  void FinishReductions();
  void ZeroGradients();
  // The stored weights have changed: what was gathered of them is old.
  void Forget() { held_[0] = held_[1] = -1; }

  // --- what is stored
  const ParamGroups& groups() const { return groups_; }
  enum class Kind { kWeights, kGradients, kFirstMoments, kSecondMoments };
  // This rank's range of a group, [n].
  Tensor Stored(Kind kind, int64_t group) const;
  // Its elements [piece.offset, + piece.count).
  Tensor Stored(Kind kind, int64_t group, const ParamPiece& piece) const {
    return Stored(kind, group).Rows(piece.offset, piece.count);
  }
  // Pieces of this rank's range.
  const std::vector<ParamPiece>& pieces(int64_t group) const { return pieces_[group]; }
  // The sum of squares of each parameter (group by group, in the order of members), replicas
  // counted once, on every rank: NaN or infinite where the parameter holds such a value.
  // Collective over the world; the host waits.
  std::vector<double> SquaredSums(Kind kind);
  // Of parameter i of that list.
  const std::string& parameter_name(int64_t i) const { return names_[i]; }

  Backend& ops() const { return ops_; }
  Stream stream() const { return s_; }
  Stream traffic() const { return weights_s_; }  // carries gathers and reductions
  Mesh& mesh() const { return mesh_; }
  int64_t state_bytes() const { return state_bytes_; }    // stored, of one kind
  int64_t buffer_bytes() const { return buffer_bytes_; }  // gathered and gradient buffers
  int64_t gathered_bytes() const;                         // of these the gathered ones

 private:
  ParamStore(Backend& ops, Stream s, Mesh& mesh, ParamGroups groups, const Options& options);
  absl::Status Allocate();
  absl::Status LoadPiece(const ModelSource& source, const GroupMember& member,
                         const ParamPiece& piece, Tensor out, std::atomic<int64_t>* ticks);
  bool gathers() const { return mesh_.shard().size() > 1 || options_.narrow; }
  bool reduces() const { return mesh_.world().size() > 1; }
  void StartGather(int64_t group, int buffer);
  void StartReduction();
  void AddArrived();
  void Widen(int64_t group, int buffer);
  FindParam Finder(int64_t group, Tensor flat, Tensor vectors) const;

  Backend& ops_;
  Stream s_, weights_s_;
  Mesh& mesh_;
  const ParamGroups groups_;
  const Options options_;
  std::vector<std::vector<ParamPiece>> pieces_;
  std::vector<std::string> names_;

  char* memory_ = nullptr;
  int64_t state_bytes_ = 0, buffer_bytes_ = 0;
  Tensor stored_[4];                        // by Kind
  Tensor gathered_[2];                      // [largest]
  Tensor vectors_[2];                       // narrow: the group's vectors, widened
  Tensor gradients_[2];                     // [largest]
  Tensor arriving_;                         // [largest / shard]
  Tensor sums_;                             // f64, one to a parameter
  int64_t held_[2] = {-1, -1};              // group in each gathered buffer, arrived or on its way
  int last_gathered_ = 1;                   // buffer of the last Gather
  int gradient_buffer_ = 1;                 // of the last Gradients
  int64_t gradient_group_ = -1;             // in that buffer, not yet given to Reduce
  int64_t waiting_ = -1, travelling_ = -1;  // groups whose reduction is due, and under way
  int waiting_buffer_ = 0, travelling_buffer_ = 0;
  bool waiting_whole_ = false, travelling_whole_ = false;
  std::function<void(int64_t)> on_whole_ = [](int64_t) {};
  std::function<void(int64_t, const StoredRows&)> on_rows_whole_ = [](int64_t, const StoredRows&) {
  };
};

}  // namespace toroid
