#include "parallel/merge_replay.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/io/merge_log.h"
#include "core/status_macros.h"
#include "kernels/outer_step.h"
#include "parallel/contribution_file.h"
#include "parallel/contributions_about.h"
#include "parallel/outer_exchange.h"
#include "parallel/param_hash.h"
#include "parallel/pod_merge.h"
#include "parallel/weights_replay.h"

namespace toroid {
namespace {

std::string NameOf(const MergeRecord& record) {
  return absl::StrCat("merge of step ", record.step, ", fragment ", record.fragment);
}

std::string Hex(uint64_t hash) { return absl::StrFormat("%016x", hash); }

// This rank's part of what the log has of a merge.
struct Parts {
  std::map<int64_t, MergeInput> inputs;  // by pod
  uint64_t result = 0;
};

// A rank of the pod.
template <typename T>
class Replayer {
 public:
  Replayer(const ContributionsAbout& about, int64_t rank)
      : about_(about),
        rank_(rank),
        own_(about.meshes[size_t(about.pod)]),
        shard_rank_(rank / own_.tensor),
        groups_(about.model, ParamLayout(about.model, rank % own_.tensor, own_.tensor),
                rank % own_.tensor, own_.data * own_.ring, about.layers) {
    rule_.codec = about.exchange.codec;
    for (int64_t q = 0; q < int64_t(about.meshes.size()); ++q) {
      if (q != about.pod) {
        layouts_.push_back(std::make_unique<const ExchangeLayout>(about.model, about.layers, own_,
                                                                  rank, about.meshes[size_t(q)]));
      }
      rule_.layouts.push_back(q == about.pod ? nullptr : layouts_.back().get());
    }
  }

  // The outer weights that a launch began with.
  absl::Status Begin(FileSystem& files, const std::string& folder) {
    if (!outer()) return absl::OkStatus();
    const std::string path = absl::StrCat(folder, "/", BeginName(rank_));
    TOROID_ASSIGN_OR_RETURN(const std::vector<Contribution> read, ReadContributions(files, path));
    const size_t bytes = size_t(groups_.stored_size()) * sizeof(T);
    size_t blob = 0;
    for (std::vector<T>* values : {&outer_, &momentum_}) {
      if (read.size() != 1 || read[0].blobs.size() != 2 || read[0].blobs[blob].size() != bytes) {
        return absl::DataLossError(absl::StrCat(path, ": not the outer weights of a rank"));
      }
      values->resize(size_t(groups_.stored_size()));
      std::memcpy(values->data(), read[0].blobs[blob++].data(), bytes);
    }
    return absl::OkStatus();
  }

  // take(group, mean): of gradients.
  absl::Status Merge(FileSystem& files, const std::string& folder, const MergeRecord& record,
                     const std::function<void(int64_t group, const T* mean)>& take, Parts& parts) {
    const std::string path =
        absl::StrCat(folder, "/", MergeName(record.step, record.fragment, rank_));
    TOROID_ASSIGN_OR_RETURN(std::vector<Contribution> kept, ReadContributions(files, path));
    std::map<int64_t, std::vector<PodShare>> shares;  // by group
    for (Contribution& one : kept) {
      PodShare share;
      if (!Fits(one) || !ShareOf(one, share)) {
        return absl::DataLossError(absl::StrCat(path, ": not what a pod can have sent"));
      }
      MergeInput& input = parts.inputs[one.pod];
      input.weight = std::max(input.weight, one.weight);
      shares[one.group].push_back(std::move(share));
    }
    for (const auto& [group, of_pods] : shares) {
      std::vector<T> mean(size_t(size(group)));
      const RangeHasher hasher(groups_, group, shard_rank_);
      const MergeObserver<T> observe = [&](const PodShare* share, int64_t begin, int64_t count,
                                           const T* values) {
        if (share == nullptr) return;
        parts.inputs.at(share->pod).hash += hasher.Hash(begin, count, values);
      };
      const auto merged =
          MeanOfShares<T>(pool_, rule_, group, size(group), of_pods, observe, mean.data());
      if (!merged.ok()) {
        return absl::DataLossError(absl::StrCat(path, ": ", merged.status().message()));
      }
      if (outer()) {
        Step(group, mean.data());
      } else {
        take(group, mean.data());
      }
      parts.result += HashOf(group, outer() ? At(outer_, group) : mean.data());
    }
    return absl::OkStatus();
  }

  // This rank's part of the hash of all outer weights.
  uint64_t OuterHash() {
    uint64_t hash = 0;
    for (int64_t g = 0; outer() && g < groups_.count(); ++g) hash += HashOf(g, At(outer_, g));
    return hash;
  }

 private:
  bool outer() const { return !about_.exchange.gradients(); }
  int64_t size(int64_t group) const { return groups_.Stored(group, shard_rank_).size(); }
  T* At(std::vector<T>& all, int64_t group) { return all.data() + groups_.StoredBegin(group); }
  uint64_t HashOf(int64_t group, const T* values) const {
    return RangeHash(groups_, group, shard_rank_, about_.dtype, 0, size(group), values);
  }
  void Step(int64_t group, const T* delta) {
    OuterStep(pool_, {about_.exchange.outer_rate, about_.exchange.outer_momentum}, size(group),
              delta, At(outer_, group), At(momentum_, group));
  }
  bool Fits(const Contribution& one) const {
    return one.group >= 0 && one.group < groups_.count() && one.pod >= 0 &&
           one.pod < int64_t(about_.meshes.size());
  }
  bool ShareOf(Contribution& one, PodShare& share) const {
    share.pod = one.pod;
    share.weight = one.weight;
    if (!(one.weight > 0)) return true;
    const ExchangeLayout* layout = rule_.layouts[size_t(one.pod)];
    if (layout == nullptr) {
      std::optional<CodedRange> own = CodedOf(one.blobs, rule_.codec, size(one.group));
      if (own) share.own = *std::move(own);
      return share.own.size == size(one.group);
    }
    for (std::string& blob : one.blobs) share.parts.emplace_back(std::move(blob));
    return share.parts.size() == layout->receives(one.group).size();
  }

  const ContributionsAbout about_;
  const int64_t rank_;
  const MeshShape own_;
  const int64_t shard_rank_;
  const ParamGroups groups_;
  std::vector<std::unique_ptr<const ExchangeLayout>> layouts_;
  MergeRule rule_;
  ThreadPool pool_{1};  // one thread: what observes merges adds to plain numbers
  std::vector<T> outer_, momentum_;
};

// All ranks of the pod, launch after launch. What functions return in words is what differs from
// the log, or from what the run has told; empty: nothing does.
template <typename T>
class Replay {
 public:
  Replay(FileSystem& files, const std::string& directory, const std::map<int64_t, uint64_t>& told)
      : files_(files), directory_(directory), told_(told) {}

  // The launch that went on from `step`.
  absl::StatusOr<std::string> Begin(int64_t step, const ContributionsAbout& about) {
    if (!delayed_) {  // what is on its way goes on with the launch
      TOROID_ASSIGN_OR_RETURN(const std::string differs, UpdateDue());
      if (!differs.empty()) return differs;
    }
    const std::optional<uint64_t> outer_before = OuterHash();
    std::optional<std::vector<uint64_t>> before;  // no room for two of them
    if (weights_) before = std::exchange(weights_, nullptr)->State();
    outer_ = !about.exchange.gradients();
    delayed_ = about.exchange.mode == ExchangeSpec::Mode::kDelayed;
    due_ = delayed_ ? step + 1 : 0;
    folder_ = absl::StrCat(directory_, "/", kContributions, "/", LaunchFolder(step));
    ranks_.clear();
    for (int64_t r = 0; r < about.meshes[size_t(about.pod)].size(); ++r) {
      ranks_.push_back(std::make_unique<Replayer<T>>(about, r));
      TOROID_RETURN_IF_ERROR(ranks_.back()->Begin(files_, folder_));
    }
    bool goes_on = true;
    if (outer_) {
      goes_on = !outer_before || *outer_before == *OuterHash();
    } else if (!about.update || about.update->on_gpus) {
      made_.not_made = absl::StrCat(
          folder_, "/", kAbout,
          about.update ? ": computed on GPUs, whose last bits are not a CPU's"
                       : ": of a version that did not say how weights are made of gradients");
    } else {
      TOROID_ASSIGN_OR_RETURN(weights_, WeightsReplay::Begin(files_, folder_, about));
      goes_on = !before || about.joined || *before == weights_->State();
    }
    if (goes_on || about.joined) return std::string();
    return absl::StrCat("the launch from step ", step, " began with other ", outer_ ? "outer " : "",
                        "weights than the merges before it made");
  }

  absl::StatusOr<std::string> Merge(const MergeRecord& record) {
    TOROID_ASSIGN_OR_RETURN(std::string differs, UpdateDue());
    if (!differs.empty()) return differs;
    TOROID_ASSIGN_OR_RETURN(differs, MakeMerge(record));
    due_ = record.step + (delayed_ ? 1 : 0);
    return differs.empty() ? differs : absl::StrCat(NameOf(record), ": ", differs);
  }

  // Behind the last merge. Whether the step was done whose turn it is, only what it told can say.
  absl::StatusOr<std::string> End() {
    return told_.count(due_) > 0 ? UpdateDue() : absl::StatusOr<std::string>(std::string());
  }

  // Of all outer weights, once there are any.
  std::optional<uint64_t> OuterHash() const {
    if (!outer_ || ranks_.empty()) return std::nullopt;
    uint64_t hash = 0;
    for (const auto& rank : ranks_) hash += rank->OuterHash();
    return hash;
  }
  bool outer() const { return outer_; }
  const ReplayedMerges::Weights& made() const { return made_; }

 private:
  absl::StatusOr<std::string> MakeMerge(const MergeRecord& record) {
    Parts all;
    bool weighs = false;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      Parts parts;
      const auto take = [&](int64_t group, const T* mean) {
        if (weights_ != nullptr) weights_->Take(int64_t(r), group, mean);
      };
      TOROID_RETURN_IF_ERROR(ranks_[r]->Merge(files_, folder_, record, take, parts));
      for (const auto& [pod, part] : parts.inputs) {
        MergeInput& input = all.inputs[pod];
        input.pod = pod;
        input.weight = std::max(input.weight, part.weight);
        input.hash += part.hash;
        weighs = weighs || part.weight > 0;
      }
      all.result += parts.result;
    }
    if (weights_ != nullptr) weights_->Taken(weighs);
    return Compare(record, std::move(all));
  }

  static std::string Compare(const MergeRecord& record, Parts all) {
    for (const MergeInput& logged : record.inputs) {
      const auto kept = all.inputs.find(logged.pod);
      if (kept == all.inputs.end()) return absl::StrCat("pod ", logged.pod, " gave nothing");
      if (kept->second.weight != logged.weight) {
        return absl::StrCat("pod ", logged.pod, " has the weight ", logged.weight,
                            " in the log, and gave its share the weight ", kept->second.weight);
      }
      if (kept->second.hash != logged.hash) {
        return absl::StrCat("the share of pod ", logged.pod, " has the hash ", Hex(logged.hash),
                            " in the log, and ", Hex(kept->second.hash), " as it was kept");
      }
      all.inputs.erase(kept);
    }
    if (!all.inputs.empty()) {
      return absl::StrCat("pod ", all.inputs.begin()->first, " is not in the log");
    }
    if (all.result == record.result) return std::string();
    return absl::StrCat("the result has the hash ", Hex(record.result), " in the log, and ",
                        Hex(all.result), " when it is made again");
  }

  // The step that is due makes its update; the weights are then those that it has told the hash of.
  absl::StatusOr<std::string> UpdateDue() {
    const int64_t step = std::exchange(due_, 0);
    if (weights_ == nullptr || step == 0) return std::string();
    TOROID_ASSIGN_OR_RETURN(const std::string differs, weights_->Update(step));
    const auto told = told_.find(step);
    if (!differs.empty() || told == told_.end()) return differs;
    made_.hash = weights_->Hash();
    if (made_.hash != told->second) {
      return absl::StrCat("step ", step, ": the weights had the hash ", Hex(told->second),
                          ", and have ", Hex(made_.hash), " when they are made again");
    }
    if (made_.compared++ == 0) made_.first = step;
    made_.last = step;
    return std::string();
  }

  FileSystem& files_;
  const std::string directory_;
  const std::map<int64_t, uint64_t>& told_;
  std::string folder_;
  bool outer_ = false, delayed_ = false;
  int64_t due_ = 0;  // the step, counted from 1, whose update comes next; 0: none
  std::vector<std::unique_ptr<Replayer<T>>> ranks_;
  std::unique_ptr<WeightsReplay> weights_;  // of gradients
  ReplayedMerges::Weights made_;
};

absl::StatusOr<ContributionsAbout> About(FileSystem& files, const std::string& directory,
                                         int64_t launch) {
  const std::string path =
      absl::StrCat(directory, "/", kContributions, "/", LaunchFolder(launch), "/", kAbout);
  const absl::StatusOr<std::string> text = ReadWhole(files, path, kMostAbout);
  if (absl::IsNotFound(text.status())) return NoContributions(path);
  TOROID_RETURN_IF_ERROR(text.status());
  return ParseContributionsAbout(*text, path);
}

// Steps from which launches went on, ascending.
absl::StatusOr<std::vector<int64_t>> Launches(FileSystem& files, const std::string& directory) {
  const std::string all = absl::StrCat(directory, "/", kContributions);
  const absl::StatusOr<std::vector<std::string>> names = files.List(all);
  if (absl::IsNotFound(names.status())) return NoContributions(all);
  TOROID_RETURN_IF_ERROR(names.status());
  std::vector<int64_t> steps;
  for (const std::string& name : *names) {
    if (LaunchStep(name) >= 0) steps.push_back(LaunchStep(name));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

absl::StatusOr<MergeRecords> Log(FileSystem& files, const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kMergeLogName);
  absl::StatusOr<MergeRecords> log = ReadMergeLog(files, path);
  if (!absl::IsNotFound(log.status())) return log;
  return absl::NotFoundError(
      absl::StrCat("no log of merges: ", path, ": give the directory of a run on several pods"));
}

template <typename T>
absl::StatusOr<ReplayedMerges> ReplayAll(FileSystem& files, const std::string& directory,
                                         const std::vector<MergeRecord>& records,
                                         const std::vector<int64_t>& launches, DType dtype,
                                         const ReplayOptions& options) {
  ReplayedMerges result;
  result.merges = int64_t(records.size());
  std::map<int64_t, uint64_t> told = options.param_hashes;
  if (!options.told_by_last_launch) told.erase(told.upper_bound(launches.back()), told.end());
  Replay<T> replay(files, directory, told);
  int64_t launch = -1;
  for (const MergeRecord& record : records) {
    options.on_progress(result.replayed, result.merges);
    const auto next = std::lower_bound(launches.begin(), launches.end(), record.step);
    if (next == launches.begin()) {
      return NoContributions(absl::StrCat(directory, ": ", NameOf(record),
                                          " and those before step ", launches.front()));
    }
    if (*(next - 1) != std::exchange(launch, *(next - 1))) {
      TOROID_ASSIGN_OR_RETURN(const ContributionsAbout about, About(files, directory, launch));
      if (about.dtype != dtype) return absl::DataLossError("launches of two types of numbers");
      TOROID_ASSIGN_OR_RETURN(result.differs, replay.Begin(launch, about));
      result.outer = replay.outer();
    }
    if (result.same()) {
      TOROID_ASSIGN_OR_RETURN(result.differs, replay.Merge(record));
    }
    if (!result.same()) break;
    ++result.replayed;
  }
  if (result.same()) {
    TOROID_ASSIGN_OR_RETURN(result.differs, replay.End());
  }
  result.hash = replay.OuterHash().value_or(0);
  if (!result.outer) result.weights = replay.made();
  return result;
}

}  // namespace

absl::StatusOr<ReplayedMerges> ReplayMerges(FileSystem& files, const std::string& directory,
                                            const ReplayOptions& options) {
  TOROID_ASSIGN_OR_RETURN(const MergeRecords log, Log(files, directory));
  TOROID_ASSIGN_OR_RETURN(const std::vector<int64_t> launches, Launches(files, directory));
  if (launches.empty()) return NoContributions(absl::StrCat(directory, "/", kContributions));
  TOROID_ASSIGN_OR_RETURN(const ContributionsAbout about,
                          About(files, directory, launches.front()));
  const auto replay = about.dtype == DType::kF64 ? ReplayAll<double> : ReplayAll<float>;
  return replay(files, directory, log.records, launches, about.dtype, options);
}

absl::StatusOr<std::string> CompareMergeLogs(FileSystem& files,
                                             const std::vector<std::string>& directories) {
  using Key = std::pair<int64_t, int64_t>;  // step, fragment
  std::map<Key, std::pair<MergeRecord, std::string>> first;
  std::optional<std::pair<Key, std::string>> differs;
  for (const std::string& directory : directories) {
    TOROID_ASSIGN_OR_RETURN(const MergeRecords log, Log(files, directory));
    for (const MergeRecord& record : log.records) {
      const Key key = {record.step, record.fragment};
      const auto [at, fresh] = first.try_emplace(key, record, directory);
      // Two pods may make one merge in two views (membership_view.h).
      MergeRecord same = record;
      same.view = at->second.first.view;
      if (fresh || at->second.first == same || (differs && differs->first <= key)) continue;
      differs = {key, absl::StrCat(NameOf(record), ": the logs of ", at->second.second, " and ",
                                   directory, " differ")};
    }
  }
  return differs ? differs->second : std::string();
}

}  // namespace toroid
