#include "core/io/checkpoint_directory.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <tuple>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/io/checkpoint_manifest.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

using Kind = CheckpointEntry::Kind;

constexpr absl::string_view kPartialMark = ".tmp-", kReplacedMark = ".old-";

std::string Marked(int64_t step, int64_t branch, absl::string_view mark, int64_t epoch,
                   uint64_t id) {
  return absl::StrCat(CheckpointName(step, branch), mark, epoch, "-",
                      absl::Hex(id, absl::kZeroPad16));
}

// Digits alone: SimpleAtoi would take blanks and signs.
bool ReadNumber(absl::string_view text, int64_t& out) {
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
  }
  return absl::SimpleAtoi(text, &out);
}

// Step and branch of "step-00000100-b2".
bool ReadStem(absl::string_view stem, CheckpointEntry& out) {
  if (!absl::ConsumePrefix(&stem, "step-")) return false;
  const size_t branch = stem.find("-b");
  if (!ReadNumber(stem.substr(0, branch), out.step)) return false;
  out.branch = 0;
  return branch == absl::string_view::npos || ReadNumber(stem.substr(branch + 2), out.branch);
}

auto Age(const CheckpointEntry& entry) {  // more is newer
  return std::tuple(entry.branch, entry.step, entry.kind == Kind::kWhole);
}

bool SameState(const CheckpointEntry& a, const CheckpointEntry& b) {
  return a.step == b.step && a.branch == b.branch;
}

}  // namespace

std::string CheckpointName(int64_t step, int64_t branch) {
  char name[64];
  std::snprintf(name, sizeof name, "step-%08" PRId64, step);
  return branch == 0 ? std::string(name) : absl::StrCat(name, "-b", branch);
}

std::string PartialName(int64_t step, int64_t branch, int64_t epoch, uint64_t id) {
  return Marked(step, branch, kPartialMark, epoch, id);
}

std::string ReplacedName(int64_t step, int64_t branch, int64_t epoch, uint64_t id) {
  return Marked(step, branch, kReplacedMark, epoch, id);
}

std::pair<std::string, std::string> SplitCheckpointPath(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return {".", path};
  return {slash == 0 ? "/" : path.substr(0, slash), path.substr(slash + 1)};
}

bool ParseCheckpointName(absl::string_view name, CheckpointEntry& out) {
  out.name = std::string(name);
  const size_t dot = name.find('.');
  if (!ReadStem(name.substr(0, dot), out)) return false;
  out.kind = Kind::kWhole;
  out.epoch = 0;
  if (dot == absl::string_view::npos) return name == CheckpointName(out.step, out.branch);
  absl::string_view rest = name.substr(dot);
  out.kind = absl::ConsumePrefix(&rest, kPartialMark) ? Kind::kPartial : Kind::kReplaced;
  if (out.kind == Kind::kReplaced && !absl::ConsumePrefix(&rest, kReplacedMark)) return false;
  return ReadNumber(rest.substr(0, rest.find('-')), out.epoch);
}

std::vector<CheckpointEntry> Loadable(std::vector<CheckpointEntry> entries) {
  entries.erase(std::remove_if(entries.begin(), entries.end(),
                               [](const CheckpointEntry& e) { return e.kind == Kind::kPartial; }),
                entries.end());
  std::stable_sort(
      entries.begin(), entries.end(),
      [](const CheckpointEntry& a, const CheckpointEntry& b) { return Age(a) > Age(b); });
  return entries;
}

std::vector<CheckpointEntry> Superfluous(const std::vector<CheckpointEntry>& entries,
                                         const CheckpointEntry& committed, int64_t keep,
                                         int64_t epoch) {
  std::vector<CheckpointEntry> gone;
  for (const CheckpointEntry& entry : entries) {
    if (entry.kind == Kind::kPartial && entry.epoch <= epoch) gone.push_back(entry);
  }
  const std::vector<CheckpointEntry> loadable = Loadable(entries);
  int64_t kept = 0;
  for (const CheckpointEntry& entry : loadable) {
    if (entry.name == committed.name) {
      ++kept;
      continue;
    }
    bool left = false;
    for (const CheckpointEntry& other : loadable) {
      left = left || (other.branch > entry.branch && entry.step >= other.step);
      left = left || (entry.kind == Kind::kReplaced && other.kind == Kind::kWhole &&
                      SameState(entry, other));
    }
    if (left || (Age(entry) < Age(committed) && kept >= keep)) {
      gone.push_back(entry);
    } else if (Age(entry) < Age(committed)) {
      ++kept;
    }
  }
  return gone;
}

absl::StatusOr<std::vector<CheckpointEntry>> ListCheckpoints(FileSystem& files,
                                                             const std::string& directory) {
  std::vector<CheckpointEntry> entries;
  const absl::StatusOr<std::vector<std::string>> names = files.List(directory);
  if (absl::IsNotFound(names.status())) return entries;
  TOROID_RETURN_IF_ERROR(names.status());
  for (const std::string& name : *names) {
    CheckpointEntry entry;
    if (ParseCheckpointName(name, entry)) entries.push_back(entry);
  }
  return entries;
}

absl::StatusOr<std::string> FindCheckpoint(FileSystem& files, const std::string& path) {
  const absl::StatusOr<std::vector<std::string>> names = files.List(path);
  if (!names.ok()) return std::string();  // no directory
  const auto has = [&](absl::string_view name) {
    return std::find(names->begin(), names->end(), name) != names->end();
  };
  CheckpointEntry entry;
  const std::string own_name = SplitCheckpointPath(path).second;
  if (has(kManifestName)) return path;
  if (has("config.json")) return std::string();
  if (ParseCheckpointName(own_name, entry) && entry.kind != Kind::kPartial) return path;
  const bool run = has(kCheckpointsName);
  const std::string directory = run ? absl::StrCat(path, "/", kCheckpointsName) : path;
  TOROID_ASSIGN_OR_RETURN(std::vector<CheckpointEntry> entries, ListCheckpoints(files, directory));
  entries = Loadable(std::move(entries));
  if (!entries.empty()) return absl::StrCat(directory, "/", entries[0].name);
  if (!run && own_name != kCheckpointsName) return std::string();
  return absl::NotFoundError(absl::StrCat(directory, ": there is no checkpoint in it yet"));
}

absl::Status RemoveCheckpoint(FileSystem& files, const std::string& directory,
                              const CheckpointEntry& entry, int64_t epoch, uint64_t id) {
  std::string path = absl::StrCat(directory, "/", entry.name);
  if (entry.kind != Kind::kPartial) {
    const std::string partial =
        absl::StrCat(directory, "/", PartialName(entry.step, entry.branch, epoch, id));
    TOROID_RETURN_IF_ERROR(files.Rename(path, partial));
    TOROID_RETURN_IF_ERROR(files.SyncDirectory(directory));
    path = partial;
  }
  return RemoveTree(files, path);
}

absl::Status RemovePartial(FileSystem& files, const std::string& directory, int64_t epoch,
                           const std::string& except) {
  TOROID_ASSIGN_OR_RETURN(const std::vector<CheckpointEntry> entries,
                          ListCheckpoints(files, directory));
  absl::Status first;
  for (const CheckpointEntry& entry : entries) {
    if (entry.kind != Kind::kPartial || entry.epoch > epoch || entry.name == except) continue;
    first.Update(RemoveTree(files, absl::StrCat(directory, "/", entry.name)));
  }
  return first;
}

}  // namespace toroid
