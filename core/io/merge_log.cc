#include "core/io/merge_log.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/io/crc32c.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr absl::string_view kHeader = "toroid merges 1\n";
constexpr int64_t kFrame = 8, kFixed = 32, kInput = 24;  // bytes
constexpr int64_t kMostBytes = int64_t{1} << 30;         // of a log

absl::Span<const uint8_t> Span(absl::string_view bytes) {
  return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <typename T>
T Take(absl::string_view& bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  bytes.remove_prefix(sizeof value);
  return value;
}

// What is wrong with a record, empty if nothing is.
std::string Wrong(const MergeRecord& record) {
  if (record.step < 0) return absl::StrCat("step ", record.step, " is negative");
  if (record.fragment < 0 || record.fragment > UINT32_MAX) {
    return absl::StrCat("fragment ", record.fragment, " is out of range");
  }
  if (int64_t(record.inputs.size()) > kMostMergeInputs) {
    return absl::StrCat(record.inputs.size(), " inputs, at most ", kMostMergeInputs);
  }
  for (size_t i = 0; i < record.inputs.size(); ++i) {
    const MergeInput& input = record.inputs[i];
    if (input.pod < 0 || (i > 0 && input.pod <= record.inputs[i - 1].pod)) {
      return absl::StrCat("pod ", input.pod, " is not in order");
    }
    if (!std::isfinite(input.weight) || input.weight < 0) {
      return absl::StrCat("weight ", input.weight, " of pod ", input.pod);
    }
  }
  return "";
}

std::string Encode(const MergeRecord& record) {
  std::string body;
  Put(body, record.step);
  Put(body, record.view);
  Put(body, record.result);
  Put(body, uint32_t(record.fragment));
  Put(body, uint32_t(record.inputs.size()));
  for (const MergeInput& input : record.inputs) {
    Put(body, input.pod);
    Put(body, input.weight);
    Put(body, input.hash);
  }
  std::string framed;
  Put(framed, uint32_t(body.size()));
  Put(framed, Crc32c(Span(body)));
  return framed + body;
}

// A body of a length that a record has; what is wrong with it otherwise.
std::string Decode(absl::string_view body, MergeRecord& record) {
  record.step = Take<int64_t>(body);
  record.view = Take<uint64_t>(body);
  record.result = Take<uint64_t>(body);
  record.fragment = Take<uint32_t>(body);
  const int64_t inputs = Take<uint32_t>(body);
  if (int64_t(body.size()) != inputs * kInput) {
    return absl::StrCat(inputs, " inputs in ", body.size(), " bytes");
  }
  record.inputs.resize(inputs);
  for (MergeInput& input : record.inputs) {
    input.pod = Take<int64_t>(body);
    input.weight = Take<double>(body);
    input.hash = Take<uint64_t>(body);
  }
  return Wrong(record);
}

}  // namespace

// A record that ends before the file does was written whole, so its checksum must be right. One
// that ends with the file or would go beyond it may be torn, and so may zeros to the end, which
// file systems leave of writes that were not synced.
absl::StatusOr<MergeRecords> ParseMergeLog(absl::string_view bytes, absl::string_view name) {
  const auto damaged = [&](int64_t at, absl::string_view what) {
    return absl::DataLossError(absl::StrCat(name, ": merge log is damaged at byte ", at, ": ", what,
                                            "; put it back from a copy, or move it away"));
  };
  MergeRecords log;
  if (bytes.size() < kHeader.size() && kHeader.substr(0, bytes.size()) == bytes) {
    log.torn = int64_t(bytes.size());
    return log;
  }
  if (bytes.substr(0, kHeader.size()) != kHeader) return damaged(0, "not a merge log's header");
  int64_t at = int64_t(kHeader.size());
  for (const int64_t size = int64_t(bytes.size()); at < size;) {
    absl::string_view rest = bytes.substr(at);
    const bool zeros = rest.find_first_not_of('\0') == absl::string_view::npos;
    if (int64_t(rest.size()) < kFrame || zeros) break;
    const int64_t length = Take<uint32_t>(rest);
    const uint32_t checksum = Take<uint32_t>(rest);
    // No length that a record has: no torn write.
    if (length < kFixed || length > kFixed + kMostMergeInputs * kInput ||
        (length - kFixed) % kInput != 0) {
      return damaged(at, "length of a record");
    }
    if (length > int64_t(rest.size())) break;
    const absl::string_view body = rest.substr(0, length);
    if (Crc32c(Span(body)) != checksum) {
      if (length == int64_t(rest.size())) break;
      return damaged(at, "checksum of a record");
    }
    MergeRecord record;
    const std::string wrong = Decode(body, record);
    if (!wrong.empty()) return damaged(at, wrong);
    log.records.push_back(std::move(record));
    at += kFrame + length;
  }
  log.bytes = at;
  log.torn = int64_t(bytes.size()) - at;
  return log;
}

absl::StatusOr<MergeRecords> ReadMergeLog(FileSystem& files, const std::string& path) {
  TOROID_ASSIGN_OR_RETURN(const std::string bytes, ReadWhole(files, path, kMostBytes));
  return ParseMergeLog(bytes, path);
}

absl::StatusOr<std::unique_ptr<MergeLog>> MergeLog::Open(FileSystem& files, const std::string& path,
                                                         int64_t step) {
  absl::StatusOr<MergeRecords> before = ReadMergeLog(files, path);
  if (absl::IsNotFound(before.status())) before = MergeRecords();
  TOROID_RETURN_IF_ERROR(before.status());
  std::string text(kHeader);
  int64_t kept = 0;
  for (const MergeRecord& record : before->records) {
    if (record.step >= step) continue;
    text += Encode(record);
    ++kept;
  }
  const std::string fresh = path + ".new";
  const absl::Status removed = files.RemoveFile(fresh);  // of a writer that was killed
  if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  TOROID_ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file, files.Create(fresh));
  TOROID_RETURN_IF_ERROR(file->Append(Span(text)));
  TOROID_RETURN_IF_ERROR(file->Sync());
  TOROID_RETURN_IF_ERROR(files.Rename(fresh, path));
  const size_t slash = path.rfind('/');
  TOROID_RETURN_IF_ERROR(
      files.SyncDirectory(slash == std::string::npos ? "." : path.substr(0, slash)));
  return std::unique_ptr<MergeLog>(new MergeLog(std::move(file), kept));
}

absl::Status MergeLog::Append(const MergeRecord& record) {
  const std::string wrong = Wrong(record);
  if (!wrong.empty()) return absl::InvalidArgumentError(absl::StrCat("merge: ", wrong));
  TOROID_RETURN_IF_ERROR(status_);
  status_ = file_->Append(Span(Encode(record)));
  if (status_.ok()) ++records_;
  return status_;
}

absl::Status MergeLog::Sync() {
  TOROID_RETURN_IF_ERROR(status_);
  return status_ = file_->Sync();
}

}  // namespace toroid
