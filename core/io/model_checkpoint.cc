#include "core/io/model_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/io/model_origin.h"
#include "core/io/model_source.h"
#include "core/io/plain_values.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr int64_t kStagingElements = 1 << 20;

// Count values of the checkpoint's type as `stored`; false if one is not finite.
template <typename T>
bool Convert(const void* staged, int64_t count, DType stored, void* out) {
  const T* const values = static_cast<const T*>(staged);
  if (!AllFinite(values, count)) return false;
  StorePlain(values, count, stored, out);
  return true;
}

absl::Status CheckParameters(const CheckpointReader& reader) {
  const CheckpointManifest& manifest = reader.manifest();
  size_t count = 0;
  for (const ParamSpec& spec : ParamTable(manifest.model)) {
    if (!spec.alias.empty()) continue;
    const int64_t found = reader.FindParameter(spec.name);
    if (found < 0 || manifest.parameters[found].rows != spec.rows ||
        manifest.parameters[found].cols != spec.cols) {
      return absl::InvalidArgumentError(
          absl::StrCat(reader.directory(), ": parameter ", spec.name,
                       found < 0 ? " is missing" : " has not the configuration's shape"));
    }
    ++count;
  }
  if (count == manifest.parameters.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(reader.directory(), ": ",
                                                 manifest.parameters.size() - count,
                                                 " parameters are none of its model's"));
}

// origin.json as its writer left it; nothing is read if the checkpoint was written without.
absl::Status CheckOrigin(const CheckpointReader& reader, std::string& text) {
  const CheckpointFile& origin = reader.manifest().origin;
  if (origin.bytes == 0) return absl::OkStatus();
  const std::string path = absl::StrCat(reader.directory(), "/", kOriginName);
  absl::StatusOr<std::string> read = ReadWhole(PosixFiles(), path, kOriginBytes);
  if (absl::IsNotFound(read.status())) return absl::DataLossError(absl::StrCat(path, ": missing"));
  TOROID_RETURN_IF_ERROR(read.status());
  if (int64_t(read->size()) != origin.bytes || HashOfText(*read) != origin.hash) {
    return absl::DataLossError(absl::StrCat(path, ": damaged: its text is not what was written"));
  }
  text = *std::move(read);
  return absl::OkStatus();
}

absl::StatusOr<ModelSource> Open(const std::string& directory) {
  TOROID_ASSIGN_OR_RETURN(std::unique_ptr<CheckpointReader> reader,
                          CheckpointReader::Open(PosixFiles(), directory));
  TOROID_RETURN_IF_ERROR(reader->CheckName());
  TOROID_RETURN_IF_ERROR(reader->CheckShards());
  TOROID_RETURN_IF_ERROR(CheckParameters(*reader));
  ModelSource source;
  source.path = directory;
  source.format = "checkpoint";
  source.config = reader->manifest().model;
  std::string origin;
  TOROID_RETURN_IF_ERROR(CheckOrigin(*reader, origin));
  if (!origin.empty()) {
    TOROID_RETURN_IF_ERROR(ReadOrigin(origin, absl::StrCat(directory, "/", kOriginName), source));
  }
  source.checkpoint = std::make_shared<const CheckpointWeights>(std::move(reader));
  return source;
}

}  // namespace

absl::StatusOr<ModelSource> OpenCheckpoint(const std::string& directory) {
  absl::StatusOr<ModelSource> source = Open(directory);
  if (source.ok()) return source;
  return OfferBefore(PosixFiles(), directory, source.status());
}

absl::Status CheckpointWeights::Load(const std::string& name, const ParamSlice& slice, DType stored,
                                     void* out) const {
  const int64_t parameter = reader_->FindParameter(name);
  TOROID_CHECK_MSG(parameter >= 0, name);
  const DType type = manifest().dtype;
  const int64_t size = slice.row_count * slice.col_count;
  std::vector<char> staging(size_t(RowBytes(type, std::min(size, kStagingElements))));
  for (int64_t at = 0; at < size; at += kStagingElements) {
    const int64_t count = std::min(kStagingElements, size - at);
    absl::Status read;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      read =
          reader_->Read(CheckpointManifest::kWeights, parameter, slice, at, count, staging.data());
    }
    if (!read.ok()) return OfferBefore(PosixFiles(), directory(), read);
    char* const to = static_cast<char*>(out) + RowBytes(stored, at);
    const bool finite = type == DType::kF64 ? Convert<double>(staging.data(), count, stored, to)
                                            : Convert<float>(staging.data(), count, stored, to);
    if (finite) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(directory(), ": parameter ", name,
                     " holds an infinite value or one that is not a number: its training has "
                     "diverged"));
  }
  return absl::OkStatus();
}

absl::StatusOr<CheckpointDescription> DescribeCheckpoint(const std::string& directory, bool whole) {
  absl::StatusOr<std::unique_ptr<CheckpointReader>> opened =
      CheckpointReader::Open(PosixFiles(), directory);
  if (!opened.ok()) return OfferBefore(PosixFiles(), directory, opened.status());
  CheckpointReader& reader = **opened;
  CheckpointDescription result;
  result.path = directory;
  result.manifest = reader.manifest();
  result.hash = reader.hash();
  result.before = CheckpointBefore(PosixFiles(), directory);
  result.status = reader.CheckName();
  result.status.Update(CheckParameters(reader));
  std::string origin;
  result.status.Update(CheckOrigin(reader, origin));
  result.bytes = result.manifest.origin.bytes;
  const int64_t ranks = int64_t(result.manifest.shards.size());
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const CheckpointShard& shard = result.manifest.shards[rank];
    result.shards.push_back({ShardName(rank, ranks), shard.bytes, shard.elements(), shard.hash,
                             whole ? reader.VerifyShard(rank) : reader.CheckShard(rank)});
    result.bytes += shard.bytes;
    result.status.Update(result.shards.back().status);
  }
  return result;
}

}  // namespace toroid
