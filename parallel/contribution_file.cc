#include "parallel/contribution_file.h"

#include <cstring>
#include <type_traits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr absl::string_view kHeader = "toroid contributions 1\n";
constexpr int64_t kMostBlobs = int64_t{1} << 20;  // of a record

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

template <typename T>
bool Get(absl::string_view& rest, T& value) {
  if (rest.size() < sizeof(T)) return false;
  std::memcpy(&value, rest.data(), sizeof(T));
  rest.remove_prefix(sizeof(T));
  return true;
}

bool GetBlob(absl::string_view& rest, std::string& blob) {
  int64_t size = 0;
  if (!Get(rest, size) || size < 0 || uint64_t(size) > rest.size()) return false;
  blob = std::string(rest.substr(0, size_t(size)));
  rest.remove_prefix(size_t(size));
  return true;
}

bool GetRecord(absl::string_view& rest, Contribution& out) {
  int64_t blobs = 0;
  if (!Get(rest, out.group) || !Get(rest, out.pod) || !Get(rest, out.weight) || !Get(rest, blobs) ||
      blobs < 0 || blobs > kMostBlobs) {
    return false;
  }
  for (int64_t i = 0; i < blobs; ++i) {
    if (!GetBlob(rest, out.blobs.emplace_back())) return false;
  }
  return true;
}

absl::Status Append(WritableFile& file, absl::string_view text) {
  return file.Append({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

}  // namespace

std::string LaunchFolder(int64_t step) { return absl::StrFormat("from-%08d", step); }

int64_t LaunchStep(absl::string_view folder) {
  int64_t step = 0;
  if (!absl::ConsumePrefix(&folder, "from-") || !absl::SimpleAtoi(folder, &step)) return -1;
  return step < 0 ? -1 : step;
}

std::string BeginName(int64_t rank) { return absl::StrFormat("begin.rank-%04d", rank); }

std::string MergeName(int64_t step, int64_t fragment, int64_t rank) {
  return absl::StrFormat("step-%08d-%d.rank-%04d", step, fragment, rank);
}

std::string SquaresName(int64_t step, bool of_weights) {
  return absl::StrFormat("squares-%08d-%d", step, of_weights ? 1 : 0);
}

std::vector<std::string> BlobsOf(const CodedRange& coded) {
  std::vector<std::string> blobs = {std::string(absl::string_view(coded.codes)), "", ""};
  blobs[1].assign(reinterpret_cast<const char*>(coded.scales.data()),
                  coded.scales.size() * sizeof(uint16_t));
  Put(blobs[2], coded.unit);
  return blobs;
}

std::optional<CodedRange> CodedOf(const std::vector<std::string>& blobs, Codec codec,
                                  int64_t size) {
  if (blobs.size() != 3) return std::nullopt;
  CodedRange coded{codec, size};
  absl::string_view unit = blobs[2];
  if (!Get(unit, coded.unit) || !unit.empty() || coded.unit < 1 || coded.unit > kCodecBlock) {
    return std::nullopt;
  }
  const int64_t scales = HasScales(codec) ? (size + coded.unit - 1) / coded.unit : 0;
  if (int64_t(blobs[0].size()) != CodeBytes(codec, size) ||
      blobs[1].size() != size_t(scales) * sizeof(uint16_t)) {
    return std::nullopt;
  }
  coded.codes = blobs[0];
  coded.scales.resize(size_t(scales));
  if (scales > 0) std::memcpy(coded.scales.data(), blobs[1].data(), blobs[1].size());
  return coded;
}

absl::Status ContributionWriter::Open(FileSystem& files, const std::string& path) {
  file_.reset();
  const absl::Status removed = files.RemoveFile(path);
  if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  TOROID_ASSIGN_OR_RETURN(file_, files.Create(path));
  return Append(*file_, kHeader);
}

absl::Status ContributionWriter::Add(const Contribution& contribution) {
  std::string text;
  Put(text, contribution.group);
  Put(text, contribution.pod);
  Put(text, contribution.weight);
  Put(text, int64_t(contribution.blobs.size()));
  for (const std::string& blob : contribution.blobs) {
    Put(text, int64_t(blob.size()));
    TOROID_RETURN_IF_ERROR(Append(*file_, text));
    TOROID_RETURN_IF_ERROR(Append(*file_, blob));
    text.clear();
  }
  return Append(*file_, text);
}

absl::Status ContributionWriter::Close() {
  if (file_ == nullptr) return absl::OkStatus();
  const absl::Status closed = file_->Close();
  file_.reset();
  return closed;
}

absl::Status NoContributions(const std::string& path) {
  return absl::NotFoundError(
      absl::StrCat("no contributions: ", path,
                   ": train with exchange { keep_contributions: true }, and leave them there"));
}

absl::StatusOr<std::vector<Contribution>> ReadContributions(FileSystem& files,
                                                            const std::string& path) {
  const absl::StatusOr<std::string> bytes = ReadWhole(files, path, INT64_MAX);
  if (absl::IsNotFound(bytes.status())) return NoContributions(path);
  TOROID_RETURN_IF_ERROR(bytes.status());
  absl::string_view rest = *bytes;
  const auto damaged = [&] {
    return absl::DataLossError(absl::StrCat(path, ": not whole, or no file of contributions"));
  };
  if (rest.substr(0, kHeader.size()) != kHeader) return damaged();
  rest.remove_prefix(kHeader.size());
  std::vector<Contribution> all;
  while (!rest.empty()) {
    if (!GetRecord(rest, all.emplace_back())) return damaged();
  }
  return all;
}

}  // namespace toroid
