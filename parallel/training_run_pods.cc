// What a run on several pods does besides: it begins where all pods have been, stops behind the
// same step on all, tells who is waited for.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/status_macros.h"
#include "parallel/checkpoint_lost.h"
#include "parallel/host_exchange.h"
#include "parallel/training_run.h"

namespace toroid {
namespace {

// Checkpoints that a pod offers to resume from, the newest; no run keeps so many.
constexpr size_t kMostOffered = 1024;
// Behind them stands whether the pod has what was committed, then which pod it is.

// Steps that are among all pods' offers, newest first.
std::vector<int64_t> CommonSteps(const std::vector<std::vector<double>>& offers) {
  std::vector<int64_t> common;
  for (size_t i = 0; i < kMostOffered; ++i) {
    const double step = offers[0][i];
    const auto has = [step](const std::vector<double>& offer) {
      const auto end = offer.begin() + long(kMostOffered);
      return std::find(offer.begin(), end, step) != end;
    };
    if (step >= 0 && std::all_of(offers.begin(), offers.end(), has)) {
      common.push_back(int64_t(step));
    }
  }
  std::sort(common.rbegin(), common.rend());
  return common;
}

// An offer's last number is the pod's.
std::string OffersText(const std::vector<std::vector<double>>& offers) {
  std::vector<std::string> pods;
  for (const std::vector<double>& offer : offers) {
    std::vector<std::string> steps;
    for (size_t i = 0; i < kMostOffered; ++i) {
      if (offer[i] >= 0) steps.push_back(absl::StrCat(int64_t(offer[i])));
    }
    pods.push_back(absl::StrCat("pod ", int64_t(offer.back()), ": ",
                                steps.empty() ? "none" : absl::StrJoin(steps, " ")));
  }
  return absl::StrJoin(pods, "; ");
}

// Of a hash that came in two halves.
std::string HashText(double high, double low) {
  return absl::StrFormat("%016x", uint64_t(high) << 32 | uint64_t(low));
}

}  // namespace

PodAccess TrainingRun::Pods(PodLink* link) {
  const auto interrupted = [this] {
    switch (events_.stop()) {
      case StopAsked::kNo:
        return PodMail::Interrupt::kNo;
      case StopAsked::kCancel:
        return PodMail::Interrupt::kNow;
      default:
        return PodMail::Interrupt::kIfAway;
    }
  };
  return {link,
          interrupted,
          [this](const std::string& sentence) { events_.on_note(sentence); },
          events_.view,
          events_.on_silent,
          events_.on_slow,
          plan_.joins};
}

// The newest checkpoint that every pod can load. Those that this pod has besides, and that are
// newer, are in `refused`. NotFound: no pod has any.
absl::StatusOr<LoadedCheckpoint> TrainingRun::LoadWithPods() {
  PodExchange& pods = *trainer_->exchange();
  TOROID_ASSIGN_OR_RETURN(std::vector<CheckpointEntry> entries, LoadableCheckpoints());
  std::vector<std::string> refused;
  for (;;) {
    std::vector<double> own(kMostOffered + 2, -1.0);
    own.back() = double(pods.pod());
    for (size_t i = 0; i < std::min(entries.size(), kMostOffered); ++i) {
      own[i] = double(entries[i].step);
    }
    own[kMostOffered] = HasCommitted(entries) ? 1 : 0;
    TOROID_ASSIGN_OR_RETURN(const auto offers, pods.Swap(own, "its checkpoints"));
    const auto has = [](const std::vector<double>& offer) { return offer[kMostOffered] == 1; };
    if (refused.empty() && std::none_of(offers.begin(), offers.end(), has)) {
      return LacksCommitted(absl::StrCat("no pod that begins has it in ", Checkpoints(), " (",
                                         OffersText(offers), ")"));
    }
    const bool none = std::all_of(offers.begin(), offers.end(),
                                  [](const std::vector<double>& o) { return o[0] < 0; });
    if (none && refused.empty()) return absl::NotFoundError("no pod has a checkpoint");
    const std::vector<int64_t> common = CommonSteps(offers);
    if (common.empty()) {
      const std::string why = absl::StrCat(
          Checkpoints(), ": there is no step of which all pods have a checkpoint (",
          OffersText(offers), "): give the pods that lack one a copy, or all a new directory");
      if (plan_.committed_step > 0) return CheckpointLost(why);
      return absl::FailedPreconditionError(why);
    }
    const auto chosen =
        std::find_if(entries.begin(), entries.end(),
                     [&](const CheckpointEntry& entry) { return entry.step == common[0]; });
    TOROID_CHECK(chosen != entries.end());
    absl::StatusOr<LoadedCheckpoint> loaded =
        LoadCheckpoint(absl::StrCat(Checkpoints(), "/", chosen->name), trainer_->config(),
                       trainer_->store(), files_, pods.RoomForState());
    if (!loaded.ok() && !absl::IsDataLoss(loaded.status())) return loaded;
    TOROID_ASSIGN_OR_RETURN(const auto ok, pods.Swap({loaded.ok() ? 1.0 : 0.0}, "a checkpoint"));
    const bool all = std::all_of(ok.begin(), ok.end(),
                                 [](const std::vector<double>& card) { return card[0] == 1; });
    for (auto newer = entries.begin(); newer != chosen; ++newer) {
      refused.push_back(absl::StrCat(Checkpoints(), "/", newer->name,
                                     " is left: not all pods have a checkpoint of its step"));
    }
    if (all) {
      loaded->refused = std::move(refused);
      return loaded;
    }
    refused.push_back(loaded.ok() ? absl::StrCat(chosen->name, " is damaged on another pod")
                                  : std::string(loaded.status().message()));
    entries.erase(entries.begin(), chosen + 1);
  }
}

// What all pods must have alike before the first step: the step, and the weights.
absl::Status TrainingRun::CheckPodsAlike() {
  PodExchange& pods = *trainer_->exchange();
  const uint64_t hash = pods.CommonHash();
  const std::vector<double> own = {double(step_),
                                   double(hash >> 32),
                                   double(hash & 0xffffffffu),
                                   double(batches_->list_fingerprint() >> 32),
                                   double(batches_->list_fingerprint() & 0xffffffffu),
                                   double(pods.pod())};
  TOROID_ASSIGN_OR_RETURN(const auto cards, pods.Swap(own, "its weights' hash"));
  for (size_t q = 1; q < cards.size(); ++q) {
    const auto differs = [&](size_t begin, size_t end) {
      return !std::equal(cards[q].begin() + long(begin), cards[q].begin() + long(end),
                         cards[0].begin() + long(begin));
    };
    const bool data = differs(3, 5), steps = differs(0, 1);
    if (!data && !steps && !differs(1, 3)) continue;
    const auto value = [&](const std::vector<double>& card) {
      return data    ? HashText(card[3], card[4])
             : steps ? absl::StrCat(int64_t(card[0]))
                     : HashText(card[1], card[2]);
    };
    return absl::FailedPreconditionError(absl::StrCat(
        "pod ", int64_t(cards[q].back()), " begins with other ",
        data    ? "data"
        : steps ? "steps behind it"
                : "weights",
        " (", value(cards[q]), ") than pod ", int64_t(cards[0].back()), " (", value(cards[0]),
        "): give all pods the same model and data, and checkpoints of one run or "
        "none"));
  }
  return absl::OkStatus();
}

// The others train: their next step is this one's first.
absl::Status TrainingRun::JoinPods(PodLink* link) {
  Note("waits to be taken in by the pods that train");
  TOROID_RETURN_IF_ERROR(trainer_->JoinPods(Pods(link)));
  PodExchange& pods = *trainer_->exchange();
  TOROID_ASSIGN_OR_RETURN(const std::string text, pods.TakeState());
  TOROID_ASSIGN_OR_RETURN(
      const TrainingState state,
      ParseTrainingState(text, absl::StrCat("the state of pod ", pods.giver())));
  TOROID_RETURN_IF_ERROR(Restore(state));
  TOROID_RETURN_IF_ERROR(ForkBehindOwn());
  Note(absl::StrCat("joined after step ", step_, ", with the state of pod ", pods.giver()));
  return absl::OkStatus();
}

// What earlier launches of this pod wrote, of later steps or on other branches, is of a history
// that was left.
absl::Status TrainingRun::ForkBehindOwn() {
  if (plan_.directory.empty()) return absl::OkStatus();
  int64_t newest = branch_;
  bool left = false;
  if (speaks()) {
    const auto entries = ListCheckpoints(files_, Checkpoints());
    for (const CheckpointEntry& entry : entries.value_or(std::vector<CheckpointEntry>())) {
      if (entry.branch >= kMostBranches) continue;
      left = left || entry.branch > branch_ || entry.step >= step_;
      newest = std::max(newest, entry.branch);
    }
  }
  const int64_t next = trainer_->mesh().Agree(left ? newest + 1 : 0);
  TOROID_RETURN_IF_ERROR(trainer_->mesh().Health());
  if (next > 0) Fork(next);
  return absl::OkStatus();
}

// Pods that came are part of all from here on. If all are lost they begin again at a step of which
// every one has a checkpoint: this one.
absl::Status TrainingRun::TakeIn() {
  TOROID_RETURN_IF_ERROR(
      trainer_->exchange()->TakeIn(step_, [this] { return TrainingStateText(State()); }));
  return Save();
}

// Whether this pod leaves out its part of the next step.
bool TrainingRun::Hurries() {
  PodExchange* pods = trainer_->exchange();
  const PodsOptions& options = plan_.options.pods;
  if (pods == nullptr || options.exchange.gradients() ||
      options.policy != PodsOptions::Policy::kContinue) {
    return false;
  }
  return trainer_->mesh().Agree(speaks() && pods->Behind(step_) ? 1 : 0) != 0;
}

// From here on merges are those of this launch.
void TrainingRun::RecordMerges() {
  if (plan_.directory.empty()) return;
  PodExchange::RecordOptions options;
  options.directory = plan_.directory;
  options.steps = step_;
  options.keep = plan_.options.pods.keep_contributions;
  options.alarm = [this](const std::string& sentence) { Alarm(sentence); };
  options.optimizer = plan_.options.optimizer;
  options.max_norm = plan_.options.max_norm;
  options.updates = trainer_->updates();
  trainer_->exchange()->Record(files_, options);
}

// Asked to stop while another pod was away. A checkpoint of here would be of no use: the other has
// none of this step.
absl::StatusOr<TrainingResult> TrainingRun::EndWaiting(const absl::Status& why) {
  const StopAsked own = speaks() ? events_.stop() : StopAsked::kNo;
  result_.stopped = StopAsked(trainer_->mesh().Agree(int64_t(own)));
  if (writer_ != nullptr) Wait();
  TOROID_RETURN_IF_ERROR(trainer_->mesh().Health());
  if (result_.stopped == StopAsked::kCancel || result_.stopped == StopAsked::kNo) return why;
  Alarm(std::string(why.message()));
  result_.steps = step_;
  result_.skipped = skipped_.total;
  return result_;
}

std::vector<std::vector<int64_t>> TrainingRun::OwnDocuments(const TrainBatch& batch) {
  const PodExchange* pods = trainer_->exchange();
  if (pods == nullptr) return batch.documents;
  std::vector<std::vector<int64_t>> own;
  for (size_t i = size_t(pods->pod()); i < batch.documents.size(); i += size_t(pods->pods())) {
    own.push_back(batch.documents[i]);
  }
  return own;
}

// Since it was last asked: what is sent between two steps is the later one's. Of all ranks:
// messages leave behind the last collective call of a step, so that none before can carry their
// bytes. It waits no longer than the next step's first call would.
std::optional<StepReport::Pods> TrainingRun::CountPods() {
  const PodExchange* exchange = trainer_->exchange();
  if (exchange == nullptr) return std::nullopt;
  const PodCounts before =
      std::exchange(counted_, {exchange->bytes_sent(), exchange->dropped(), exchange->reconnects(),
                               exchange->seconds_waited()});
  const PodCounts own = {counted_.bytes_sent - before.bytes_sent, counted_.dropped - before.dropped,
                         counted_.reconnects - before.reconnects,
                         counted_.seconds_waited - before.seconds_waited};
  StepReport::Pods pods;
  pods.taking_part = exchange->taking_part();
  pods.staleness = exchange->staleness();
  for (const PodCounts& rank : GatherHost(trainer_->mesh().world(), own)) {
    pods.bytes_sent += rank.bytes_sent;
    pods.dropped += rank.dropped;
    pods.reconnects += rank.reconnects;
    pods.seconds_waited = std::max(pods.seconds_waited, rank.seconds_waited);
  }
  return pods;
}

}  // namespace toroid
