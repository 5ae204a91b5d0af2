#include "parallel/merge_history.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

// One row of each rank, on every rank; as long on all.
std::vector<uint64_t> GatherRows(Communicator& world, const std::vector<uint64_t>& own) {
  CpuStream queue(/*inline_work=*/true);
  const Stream s{&queue, nullptr};
  const int64_t bytes = int64_t(own.size() * sizeof(uint64_t));
  std::vector<uint64_t> rows(own.size() * size_t(world.size()));
  Tensor all(DType::kU8, {world.size(), bytes}, rows.data());
  std::copy(own.begin(), own.end(), rows.begin() + long(own.size() * size_t(world.rank())));
  world.AllGather(s, all.Rows(world.rank(), 1), all);
  return rows;
}

}  // namespace

std::string MergeHistory::Folder() const {
  return absl::StrCat(options_.directory, "/", kContributions, "/", LaunchFolder(options_.step));
}

std::unique_ptr<MergeHistory> MergeHistory::Open(Communicator& world, FileSystem& files,
                                                 const Options& options) {
  std::unique_ptr<MergeHistory> history(new MergeHistory(world, files, options));
  if (world.rank() == 0) history->Note(history->OpenLog());
  (void)GatherRows(world, {0});  // rank 0 has made the folder that all write into
  if (options.keep) history->Note(history->OpenContributions());
  const std::vector<uint64_t> failed = GatherRows(world, {history->status_.ok() ? 0u : 1u});
  if (world.rank() == 0) {
    history->Alarm(std::find(failed.begin(), failed.end(), 1u) != failed.end());
  }
  return history;
}

absl::Status MergeHistory::OpenLog() {
  TOROID_RETURN_IF_ERROR(CreateDirectories(files_, options_.directory));
  const std::string path = absl::StrCat(options_.directory, "/", kMergeLogName);
  int64_t from = options_.step + 1;
  if (options_.joined) {
    const absl::StatusOr<MergeRecords> before = ReadMergeLog(files_, path);
    if (!absl::IsNotFound(before.status())) TOROID_RETURN_IF_ERROR(before.status());
    if (before.ok() && !before->records.empty()) {
      from = std::min(from, before->records.back().step);
    }
  }
  TOROID_ASSIGN_OR_RETURN(log_, MergeLog::Open(files_, path, from));
  const std::string all = absl::StrCat(options_.directory, "/", kContributions);
  absl::StatusOr<std::vector<std::string>> folders = files_.List(all);
  if (absl::IsNotFound(folders.status())) folders = std::vector<std::string>();
  TOROID_RETURN_IF_ERROR(folders.status());
  for (const std::string& name : *folders) {
    if (LaunchStep(name) >= options_.step) {
      TOROID_RETURN_IF_ERROR(RemoveTree(files_, absl::StrCat(all, "/", name)));
    }
  }
  if (!options_.keep) return absl::OkStatus();
  TOROID_RETURN_IF_ERROR(CreateDirectories(files_, Folder()));
  return WriteWhole(files_, absl::StrCat(Folder(), "/", kAbout), options_.about);
}

absl::Status MergeHistory::OpenContributions() {
  if (!options_.begin) return absl::OkStatus();
  ContributionWriter writer;
  TOROID_RETURN_IF_ERROR(
      writer.Open(files_, absl::StrCat(Folder(), "/", BeginName(world_.rank()))));
  TOROID_RETURN_IF_ERROR(options_.begin(writer));
  return writer.Close();
}

void MergeHistory::Note(const absl::Status& status) { status_.Update(status); }

void MergeHistory::Alarm(bool another_rank) {
  if ((status_.ok() && !another_rank) || !options_.alarm || std::exchange(alarmed_, true)) return;
  options_.alarm(absl::StrCat(
      "the merges of pods are not kept whole: ",
      status_.ok() ? "a rank cannot write its contributions" : std::string(status_.message()),
      ": training goes on; check the disk"));
}

// --- a merge -------------------------------------------------------------------------------------

void MergeHistory::Begin(int64_t step, int64_t fragment, uint64_t view) {
  record_ = MergeRecord();
  record_.step = step;
  record_.fragment = fragment;
  record_.view = view;
  inputs_.clear();
  if (!options_.keep || !status_.ok()) return;
  Note(writer_.Open(files_, absl::StrCat(Folder(), "/", MergeName(step, fragment, world_.rank()))));
}

void MergeHistory::Take(int64_t group, const std::vector<PodShare>& shares) {
  for (const PodShare& share : shares) {
    MergeInput& input = inputs_[share.pod];
    input.weight = std::max(input.weight, share.weight);
    if (!writer_.open() || !status_.ok()) continue;
    Contribution kept{group, share.pod, share.weight, {}};
    for (const SharedBytes& part : share.parts) kept.blobs.emplace_back(absl::string_view(part));
    if (share.pod == options_.pod && share.weight > 0) kept.blobs = BlobsOf(share.own);
    Note(writer_.Add(kept));
  }
}

void MergeHistory::End(uint64_t result) {
  if (writer_.open()) Note(writer_.Close());
  // Of each pod its weight, where this rank has any of it, and its part of the hash.
  std::vector<uint64_t> own = {result, status_.ok() ? 0u : 1u};
  for (const auto& [pod, input] : inputs_) {
    uint64_t weight;
    std::memcpy(&weight, &input.weight, sizeof(weight));
    own.push_back(weight);
    own.push_back(input.hash);
  }
  const std::vector<uint64_t> rows = GatherRows(world_, own);
  if (world_.rank() != 0) return;
  bool failed = false;
  size_t column = 2;
  for (const auto& [pod, ignored] : inputs_) {
    MergeInput& input = record_.inputs.emplace_back();
    input.pod = pod;
    for (size_t row = 0; row < rows.size(); row += own.size()) {
      double weight;
      std::memcpy(&weight, &rows[row + column], sizeof(weight));
      input.weight = std::max(input.weight, weight);
      input.hash += rows[row + column + 1];
    }
    column += 2;
  }
  for (size_t row = 0; row < rows.size(); row += own.size()) {
    record_.result += rows[row];
    failed = failed || rows[row + 1] != 0;
  }
  if (log_ != nullptr) Note(log_->Append(record_));
  Alarm(failed);
}

void MergeHistory::Squares(int64_t step, bool of_weights, int64_t giver,
                           const std::vector<double>& sums) {
  if (!options_.keep || !status_.ok() || world_.rank() != 0) return;
  Contribution kept{0, giver, 0, {""}};
  kept.blobs[0].assign(reinterpret_cast<const char*>(sums.data()), sums.size() * sizeof(double));
  ContributionWriter writer;
  Note(writer.Open(files_, absl::StrCat(Folder(), "/", SquaresName(step, of_weights))));
  if (writer.open()) Note(writer.Add(kept));
  Note(writer.Close());
  Alarm(false);
}

void MergeHistory::Sync() {
  if (log_ == nullptr) return;
  Note(log_->Sync());
  Alarm(false);
}

}  // namespace toroid
