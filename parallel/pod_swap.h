// PodSwap: a group's values of one rank, given to the ranks of the other pods that store them too,
// and the mean of all pods', the same bits everywhere.
//
// Of an element that pods q of the view hold as x_q, with weights n_q, all get
//
//   (n_0 d(x_0) + n_1 d(x_1) + ..) / (n_0 + n_1 + ..)      (pod_merge.h)
//
// where d(x) is what the codec leaves of x. Pods of weight 0 send nothing and are left out.
// Which elements travel between which ranks: parallel/exchange_layout.h. With error feedback what
// the codec leaves out of a value is added to the next one of the same element (Seide et al. 2014).
//
// Cards are small rows of numbers that rank 0s swap and all ranks learn.
//
// One thread at a time, but for Offer, which may run on the mail's thread.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/exchange_layout.h"
#include "parallel/exchange_spec.h"
#include "parallel/merge_history.h"
#include "parallel/param_store.h"
#include "parallel/pod_mail.h"
#include "parallel/stored_rows.h"

namespace toroid {

// Of what pods send each other: raised with what another build would not understand.
inline constexpr int kExchangeFormat = 2;

class PodSwap {
 public:
  // What a message is, PodMessage::kind.
  enum Kind : int32_t {
    kHello = 1,
    kPart,
    kCard,
    kGradientSquares,
    kWeightSquares,
    kResume,
    kHave,  // membership_view.h, of what kCard goes with; the fragment is the view
    kHaveGradientSquares,
    kHaveWeightSquares,
    kAdmission,  // the same
    kTakenIn,    // a pod that has been taken in is there
    kStateText,  // state_copy.h
    kState,
    kReached,    // the sender waits for this merge itself; no payload
    kRowsFirst,  // in place of one kPart: chosen rows of it, and
    kRowsRest    // all else (exchange_rows.h)
  };

  struct Options {
    ExchangeSpec spec;
    uint64_t seed = 0;   // of stochastic rounding
    int threads = 1;     // of a rank
    bool go_on = false;  // without pods that are lost: policy `continue`
    bool joins = false;  // the other pods train already
  };

  // Meets the pods of the first view, all of 0 .. pods - 1 unless go_on: rank 0s tell their meshes.
  // Those that it lacks come later, with the mesh of its last pod. Collective. One that joins waits
  // to be taken in instead. `link`, `store` outlive this. FailedPrecondition: a pod that computes
  // in another type; one that joins with another mesh than the others take it to have.
  static absl::StatusOr<std::unique_ptr<PodSwap>> Create(PodLink& link, int64_t pods,
                                                         const ModelConfig& config, int64_t layers,
                                                         ParamStore& store, const Options& options,
                                                         const PodMail::Watch& watch);

  int64_t pods() const { return int64_t(meshes_.size()); }
  int64_t pod() const { return pod_; }
  const std::vector<MeshShape>& meshes() const { return meshes_; }
  const ExchangeSpec& spec() const { return options_.spec; }
  int threads() const { return options_.threads; }
  bool goes_on() const { return options_.go_on; }
  ParamStore& store() { return store_; }
  Communicator& world() const { return store_.mesh().world(); }
  PodMail& mail() { return *mail_; }
  const ExchangeCoder& coder() const { return *coder_; }
  const ExchangeLayout& layout(int64_t pod) const { return *layouts_[size_t(pod)]; }  // another's

  // --- values
  // Encodes this rank's stored range of a group and posts what others take of it. values: host
  // memory, of the store's type, as are `residual` (null: no error feedback), which is added and
  // gets what the codec left out. weight 0: values are not read, nothing is to be added.
  void Offer(int64_t step, int64_t group, double weight, void* values, void* residual);
  // The same of chosen rows alone, which are whole before the rest of the group; Offer then gives
  // the rest, of the same weight. Elements of neither are read or written. REQUIRES: a weight, a
  // codec that SplitsByRows.
  void OfferRows(int64_t step, int64_t group, double weight, const StoredRows& rows, void* values,
                 void* residual);
  // Waits until all that the view's pods give to the merge of `step` is here, of groups that
  // has(group) and their cards, and it is agreed whose shares count. Collective; errors are
  // PodMail::Await's, but that a new view is no error. Where the others go on without a lost pod,
  // rank 0 tells watch.on_slow of those that are not there after `patience` seconds:
  // pod_swap_slow.cc.
  absl::Status Gather(int64_t step, absl::string_view what,
                      const std::function<bool(int64_t group)>& has,
                      std::optional<double> patience = std::nullopt);
  // The same of all groups, and calls on_group(group) once for each that can be merged, in the
  // order in which a backward makes them: while others are still on their way, where all pods'
  // shares count whatever comes. After an error none is merged that was not yet.
  absl::Status GatherEach(int64_t step, absl::string_view what,
                          const std::function<void(int64_t group)>& on_group);
  // Pods whose shares count in the last merge, ascending; before the first one those that begin.
  const std::vector<int64_t>& taking_part() const { return taking_part_; }
  // The mean into `out`, this rank's stored range, and the sum of the weights: 0: `out` is 0.
  // `hash`, unless null, grows by HashOf the mean, which is in the cache here. REQUIRES: it was
  // gathered, once for each offer. InvalidArgument: a share of a wrong size.
  absl::StatusOr<double> Merge(int64_t step, int64_t group, void* out, uint64_t* hash = nullptr);

  // --- pods that come, policy `continue` (membership_view.h; pod_swap_join.cc)
  // All that made the last merge know of launches that are not taken in.
  bool comes() const { return !coming_.empty(); }
  // Takes them in, `steps` done and all merges before made. Collective over the world; all pods do
  // it behind the same step. Returns those of them that are to get this pod's state.
  absl::StatusOr<std::vector<int64_t>> TakeIn(int64_t steps);
  // Of a pod that joined: who gives it the state, of so many steps.
  int64_t giver() const { return admission_.giver; }
  int64_t joined_at() const { return admission_.steps; }
  bool joined() const { return options_.joins; }

  // --- the history of merges, unless it is null: between Begin and End lie the merges of one.
  void Record(std::unique_ptr<MergeHistory> history) { history_ = std::move(history); }
  MergeHistory* history() { return history_.get(); }
  void BeginMerge(int64_t step, int64_t fragment);
  // This rank's part of the hash of a group's values; 0: nobody asks for it.
  uint64_t HashOf(int64_t group, const void* values) const;
  void EndMerge(uint64_t result);  // collective

  // --- cards
  // Rank 0's numbers to all pods; on other ranks nothing.
  void SendCard(Kind kind, int64_t step, std::vector<double> numbers, int32_t fragment = 0);
  int64_t MissingCard(Kind kind, int64_t step) const;  // -1 on ranks other than 0
  // The cards of pods that take part in what was gathered, this one's `own` among them, on all
  // ranks; each as long as `own`. Collective.
  absl::StatusOr<std::vector<std::vector<double>>> TakeCards(Kind kind, int64_t step,
                                                             const std::vector<double>& own);
  // Of all pods that begin, waiting, before anything was gathered.
  absl::StatusOr<std::vector<std::vector<double>>> SwapCards(Kind kind, int64_t step,
                                                             const std::vector<double>& own,
                                                             absl::string_view what);
  // Squares: one pod's numbers, on all ranks of all pods: of pod 0, or, where the others go on
  // without a pod, of the first one whose numbers all have. Returns that pod. Collective; as long
  // as `own` on all.
  absl::StatusOr<int64_t> TakeOfOnePod(Kind kind, int64_t step, std::vector<double>& own,
                                       absl::string_view what);
  bool meshes_differ() const {
    return std::any_of(meshes_.begin(), meshes_.end(),
                       [this](const MeshShape& mesh) { return mesh != meshes_[0]; });
  }

  // Of payloads that each offer of a group posts, the group's once for each other pod.
  int64_t OfferBytes(int64_t group) const;

 private:
  struct Own {
    double weight = 0;
    CodedRange coded;
  };
  // Of a group whose rows have been offered, but not the rest.
  struct Begun {
    Own own;
    StoredRows rows;
  };
  // What was agreed on, in which view: whose shares, or squares, count (1, else 0, by pod).
  struct Agreed {
    Kind kind = kHave;
    int64_t step = 0;
    uint64_t view = 0;
    std::vector<double> pods;
  };
  PodSwap(PodLink& link, const Options& options, ParamStore& store);
  absl::Status Meet(const ModelConfig& config, const PodMail::Watch& watch);
  void LayOut(const ModelConfig& config, int64_t layers);
  bool LacksPart(int64_t step, int64_t group, int64_t pod) const;
  int64_t Missing(int64_t step, int64_t group) const;
  // For a merge, on rank 0 (pod_swap_slow.cc).
  struct Waiting {
    int64_t step = 0;
    std::function<bool(int64_t group)> has;
    double patience = 0;  // seconds
    std::chrono::steady_clock::time_point since, told;
    std::set<int64_t> know;  // pods that know that this one has reached it
  };
  void BeginWaiting(int64_t step, const std::function<bool(int64_t group)>& has, double patience);
  void LookForSlow();
  void TellReached();
  bool IsOnItsWay(int64_t pod) const;
  void EndWaiting();
  absl::StatusOr<std::vector<int64_t>> Agree(Kind kind, int64_t step, absl::string_view what,
                                             const std::function<bool(int64_t pod)>& lacks);
  absl::Status AgreeOnShares(int64_t step, absl::string_view what,
                             const std::function<bool(int64_t group)>& has);
  absl::StatusOr<int64_t> AgreeOnPod(Kind kind, int64_t step, absl::string_view what);
  void SendHave(const Agreed& agreed, uint64_t view);
  void Repeat(const MembershipView& view);
  PodMail::Key PartKey(Kind kind, int64_t step, int64_t group, PodRank from) const {
    return {kind, step, int32_t(group), from};
  }
  bool HasPart(int64_t step, int64_t group, PodRank from) const;
  absl::StatusOr<PodMessage> TakePart(int64_t step, int64_t group, PodRank from,
                                      const ExchangePart& part);
  void PostParts(Kind kind, int64_t step, int64_t group, double weight,
                 const std::function<SharedBytes(const ExchangePart& part)>& pack);
  void Encode(int64_t step, int64_t group, const std::vector<Range>& elements, void* values,
              void* residual, CodedRange& coded);
  template <typename T>
  void Encode(int64_t step, int64_t group, const std::vector<Range>& elements, T* values,
              T* residual, CodedRange& coded);
  absl::StatusOr<std::vector<PodShare>> TakeShares(int64_t step, int64_t group);

  // What a pod is told that is taken in.
  struct Admission {
    int64_t steps = 0, giver = 0;
    uint64_t view = 0;
    DType dtype = DType::kF32;
    std::vector<uint64_t> launches;  // of all pods; 0: never taken in
    std::vector<bool> comes;         // taken in with this one
    std::vector<MeshShape> meshes;   // of all pods
    std::vector<double> ToNumbers() const;
    static Admission Of(const std::vector<double>& numbers);
  };
  static std::string ToPayload(const std::vector<double>& numbers);
  absl::Status Join(const PodMail::Watch& watch);
  std::optional<std::vector<double>> AgreedAdmission() const;
  absl::Status Believe();
  absl::Status Admit();
  std::vector<double> Heard() const;
  void Learn(const std::vector<double>& heard);

  const Options options_;
  PodLink& link_;
  ParamStore& store_;
  const int64_t pod_;
  std::vector<MeshShape> meshes_;                               // by pod
  std::vector<std::unique_ptr<const ExchangeLayout>> layouts_;  // by pod; null: this one's
  std::unique_ptr<const ExchangeCoder> coder_;
  MergeRule rule_;
  ThreadPool encode_pool_, merge_pool_;
  BytePool packed_, joined_;  // payloads that are not the codes themselves, sent and received
  std::map<std::pair<int64_t, int64_t>, Begun> begun_;  // by step and group; of who offers
  std::unique_ptr<MergeHistory> history_;               // may be null
  std::vector<int64_t> taking_part_;
  std::function<void(int64_t pod, double seconds)> on_slow_;  // may be null
  std::optional<Waiting> waiting_;
  int64_t gathered_ = 0;                // merges, since the pods that train now do
  std::map<int64_t, uint64_t> coming_;  // launches to take in, by pod,
  uint64_t coming_view_ = 0;            // and the view that all of them are in
  Admission admission_;
  std::map<int64_t, std::vector<double>> told_heard_;  // with own cards, by step
  mutable std::mutex mutex_;
  std::map<std::pair<int64_t, int64_t>, Own> own_;  // by step and group; guarded by mutex_
  std::deque<Agreed> agreed_;                       // the last ones; the same
  MembershipView told_;                             // the newest view heard of; the same
  std::unique_ptr<PodMail> mail_;                   // last: its threads use the others
};

}  // namespace toroid
