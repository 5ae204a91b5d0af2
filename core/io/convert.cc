#include "core/io/convert.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/str_cat.h"
#include "core/io/checkpoint_directory.h"
#include "core/io/checkpoint_manifest.h"
#include "core/io/checkpoint_shard.h"
#include "core/io/hugging_face_config.h"
#include "core/io/hugging_face_tensors.h"
#include "core/io/model_origin.h"
#include "core/io/safetensors_writer.h"
#include "core/io/weights.h"
#include "core/status_macros.h"
#include "core/text/tokenizer_export.h"
#include "core/version.h"

namespace toroid {
namespace {

constexpr int64_t kPieceBytes = 4 << 20;

uint64_t RandomId() {
  std::random_device source;
  return uint64_t{source()} << 32 | source();
}

// Parameters that are stored, in the table's order.
std::vector<ParamSpec> Stored(const ModelConfig& config) {
  std::vector<ParamSpec> specs;
  for (ParamSpec& spec : ParamTable(config)) {
    if (spec.alias.empty()) specs.push_back(std::move(spec));
  }
  return specs;
}

// A directory that gets its name when all that is in it is durable.
class FreshDirectory {
 public:
  static absl::StatusOr<FreshDirectory> Create(FileSystem& files, std::string path) {
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    const absl::Status there = files.List(path).status();
    if (!absl::IsNotFound(there)) {
      return absl::AlreadyExistsError(
          absl::StrCat(path, ": there is something of this name: give another, or remove it"));
    }
    const std::string above = SplitCheckpointPath(path).first;
    TOROID_RETURN_IF_ERROR(CreateDirectories(files, above));
    FreshDirectory fresh(files, path, above,
                         absl::StrCat(path, ".tmp-", absl::Hex(RandomId(), absl::kZeroPad16)));
    TOROID_RETURN_IF_ERROR(files.CreateDirectory(fresh.partial_));
    return fresh;
  }
  FreshDirectory(FreshDirectory&& other) noexcept
      : files_(other.files_),
        path_(other.path_),
        above_(other.above_),
        partial_(std::move(other.partial_)) {
    other.partial_.clear();
  }
  ~FreshDirectory() {  // not committed: removed
    if (!partial_.empty()) RemoveTree(files_, partial_).IgnoreError();
  }

  std::string Path(const std::string& name) const { return absl::StrCat(partial_, "/", name); }
  absl::Status Write(const std::string& name, absl::string_view text, ConvertedModel& result) {
    result.files.push_back(name);
    return WriteWhole(files_, Path(name), text);
  }
  absl::Status Commit() {
    TOROID_RETURN_IF_ERROR(files_.SyncDirectory(partial_));
    TOROID_RETURN_IF_ERROR(files_.Rename(partial_, path_));
    partial_.clear();
    return files_.SyncDirectory(above_);
  }

 private:
  FreshDirectory(FileSystem& files, std::string path, std::string above, std::string partial)
      : files_(files),
        path_(std::move(path)),
        above_(std::move(above)),
        partial_(std::move(partial)) {}

  FileSystem& files_;
  const std::string path_, above_;
  std::string partial_;  // empty: committed
};

// One parameter after the other, row after row, in pieces.
class ParameterStream {
 public:
  ParameterStream(const ModelSource& source, const ConvertOptions& options, int64_t total)
      : source_(source), options_(options), total_(total) {}

  template <typename Append>
  absl::Status Write(const ParamSpec& spec, Append append) {
    const int64_t step = std::max<int64_t>(1, kPieceBytes / RowBytes(options_.dtype, spec.cols));
    for (int64_t row = 0; row < spec.rows; row += step) {
      const ParamSlice slice = {row, std::min(step, spec.rows - row), 0, spec.cols};
      piece_.resize(size_t(SliceBytes(slice, options_.dtype)));
      TOROID_RETURN_IF_ERROR(LoadParam(source_, spec, slice, options_.dtype, piece_.data()));
      TOROID_RETURN_IF_ERROR(append(absl::Span<const uint8_t>(piece_)));
      done_ += int64_t(piece_.size());
      options_.progress(done_, total_);
    }
    return absl::OkStatus();
  }

  template <typename Append>
  absl::Status Write(const HuggingFaceTensor& tensor, Append append) {
    if (tensor.transposed) return WriteTransposed(tensor, append);
    for (const ParamSpec& part : tensor.parts) TOROID_RETURN_IF_ERROR(Write(part, append));
    return absl::OkStatus();
  }

 private:
  // Some inputs at a time of all outputs of all parts.
  template <typename Append>
  absl::Status WriteTransposed(const HuggingFaceTensor& tensor, Append append) {
    const int64_t inputs = tensor.shape[0], outputs = tensor.shape[1];
    const int64_t width = RowBytes(options_.dtype, 1);
    const int64_t step = std::max<int64_t>(1, kPieceBytes / (outputs * width));
    std::vector<uint8_t> columns;
    for (int64_t input = 0; input < inputs; input += step) {
      const int64_t n = std::min(step, inputs - input);
      piece_.resize(size_t(n * outputs * width));
      int64_t first = 0;  // output
      for (const ParamSpec& part : tensor.parts) {
        columns.resize(size_t(part.rows * n * width));
        TOROID_RETURN_IF_ERROR(
            LoadParam(source_, part, {0, part.rows, input, n}, options_.dtype, columns.data()));
        for (int64_t row = 0; row < part.rows; ++row) {
          for (int64_t i = 0; i < n; ++i) {
            std::memcpy(piece_.data() + (i * outputs + first + row) * width,
                        columns.data() + (row * n + i) * width, size_t(width));
          }
        }
        first += part.rows;
      }
      TOROID_RETURN_IF_ERROR(append(absl::Span<const uint8_t>(piece_)));
      done_ += int64_t(piece_.size());
      options_.progress(done_, total_);
    }
    return absl::OkStatus();
  }

  const ModelSource& source_;
  const ConvertOptions& options_;
  const int64_t total_;
  int64_t done_ = 0;
  std::vector<uint8_t> piece_;
};

SafetensorsEntry EntryOf(const HuggingFaceTensor& tensor, DType dtype) {
  return {tensor.name, dtype, tensor.shape};
}

// Runs of tensors for files of at most `most` bytes, or one tensor that is larger.
std::vector<std::vector<HuggingFaceTensor>> Divide(const std::vector<HuggingFaceTensor>& tensors,
                                                   DType dtype, int64_t most) {
  std::vector<std::vector<HuggingFaceTensor>> files;
  int64_t bytes = 0;
  for (const HuggingFaceTensor& tensor : tensors) {
    const int64_t own = EntryOf(tensor, dtype).bytes();
    if (files.empty() || bytes + own > most) {
      files.emplace_back();
      bytes = 0;
    }
    files.back().push_back(tensor);
    bytes += own;
  }
  return files;
}

std::string WeightsName(size_t file, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", file + 1, count);
  return name;
}

absl::Status WriteWeights(const ModelSource& source, const ConvertOptions& options,
                          FileSystem& files, FreshDirectory& directory, ConvertedModel& result) {
  const std::vector<HuggingFaceTensor> tensors = HuggingFaceTensors(source.config);
  const auto divided = Divide(tensors, options.dtype, options.shard_bytes);
  for (const HuggingFaceTensor& tensor : tensors) {
    result.tensor_bytes += EntryOf(tensor, options.dtype).bytes();
  }
  ParameterStream stream(source, options, result.tensor_bytes);
  nlohmann::json map = nlohmann::json::object();
  for (size_t file = 0; file < divided.size(); ++file) {
    const std::string name = WeightsName(file, divided.size());
    std::vector<SafetensorsEntry> entries;
    for (const HuggingFaceTensor& tensor : divided[file]) {
      entries.push_back(EntryOf(tensor, options.dtype));
      map[tensor.name] = name;
    }
    TOROID_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                            SafetensorsWriter::Create(files, directory.Path(name), entries));
    for (const HuggingFaceTensor& tensor : divided[file]) {
      TOROID_RETURN_IF_ERROR(
          stream.Write(tensor, [&](auto bytes) { return writer.Append(bytes); }));
    }
    TOROID_RETURN_IF_ERROR(writer.Finish());
    result.files.push_back(name);
  }
  if (divided.size() == 1) return absl::OkStatus();
  const nlohmann::json index = {{"metadata", {{"total_size", result.tensor_bytes}}},
                                {"weight_map", std::move(map)}};
  return directory.Write("model.safetensors.index.json", index.dump(1) + "\n", result);
}

}  // namespace

absl::StatusOr<ConvertedModel> WriteHuggingFace(const ModelSource& source, const std::string& path,
                                                const ConvertOptions& options, FileSystem& files) {
  TOROID_ASSIGN_OR_RETURN(const std::string config, HuggingFaceConfigText(source, options.dtype));
  const absl::StatusOr<std::vector<TokenizerFile>> tokenizer = TokenizerFiles(source.tokenizer);
  ConvertedModel result;
  if (!tokenizer.ok()) {
    result.lost.push_back(absl::StrCat("no tokenizer was written: ", tokenizer.status().message()));
  }
  TOROID_ASSIGN_OR_RETURN(FreshDirectory directory, FreshDirectory::Create(files, path));
  TOROID_RETURN_IF_ERROR(directory.Write("config.json", config, result));
  TOROID_RETURN_IF_ERROR(directory.Write("generation_config.json",
                                         HuggingFaceGenerationText(source.generation), result));
  if (tokenizer.ok()) {
    for (const TokenizerFile& file : *tokenizer) {
      TOROID_RETURN_IF_ERROR(directory.Write(file.name, file.text, result));
    }
  }
  TOROID_RETURN_IF_ERROR(WriteWeights(source, options, files, directory, result));
  TOROID_RETURN_IF_ERROR(directory.Commit());
  return result;
}

absl::StatusOr<ConvertedModel> WriteCheckpoint(const ModelSource& source, const std::string& path,
                                               const ConvertOptions& given, FileSystem& files) {
  if (source.checkpoint != nullptr && !source.kv_pooling.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source.path, " is a checkpoint already: copy its directory"));
  }
  ConvertOptions options = given;
  options.dtype = DType::kF32;
  TOROID_ASSIGN_OR_RETURN(const std::string origin, OriginText(source));
  CheckpointManifest manifest;
  manifest.model = source.config;
  manifest.save_id = RandomId();
  manifest.state.texts[kWriterText] = kVersion;
  manifest.origin = {int64_t(origin.size()), HashOfText(origin)};
  CheckpointShard& shard = manifest.shards.emplace_back();
  const std::vector<ParamSpec> specs = Stored(source.config);
  for (const ParamSpec& spec : specs) {
    shard.pieces.push_back({int64_t(manifest.parameters.size()),
                            {0, spec.rows, 0, spec.cols},
                            0,
                            spec.rows * spec.cols});
    manifest.parameters.push_back({spec.name, spec.rows, spec.cols});
  }
  ConvertedModel result;
  result.tensor_bytes = RowBytes(options.dtype, shard.elements());
  TOROID_ASSIGN_OR_RETURN(FreshDirectory directory, FreshDirectory::Create(files, path));
  TOROID_ASSIGN_OR_RETURN(
      std::unique_ptr<ShardWriter> writer,
      ShardWriter::Create(files, directory.Path(ShardName(0, 1)), {manifest.save_id, 0, 0, 1},
                          result.tensor_bytes * CheckpointManifest::kKinds));
  result.files.push_back(ShardName(0, 1));
  ParameterStream stream(source, options, result.tensor_bytes);
  for (const ParamSpec& spec : specs) {
    TOROID_RETURN_IF_ERROR(stream.Write(spec, [&](auto bytes) { return writer->Append(bytes); }));
  }
  const std::vector<uint8_t> zeros(size_t{kPieceBytes});
  int64_t left = result.tensor_bytes * (CheckpointManifest::kKinds - 1);  // of the moments
  for (; left > 0; left -= kPieceBytes) {
    TOROID_RETURN_IF_ERROR(
        writer->Append(absl::MakeConstSpan(zeros).first(size_t(std::min(left, kPieceBytes)))));
  }
  TOROID_ASSIGN_OR_RETURN(const ShardSeal seal, writer->Finish());
  shard.bytes = seal.bytes;
  shard.hash = seal.hash;
  TOROID_RETURN_IF_ERROR(directory.Write(kOriginName, origin, result));
  TOROID_RETURN_IF_ERROR(directory.Write(kManifestName, manifest.ToText(), result));
  TOROID_RETURN_IF_ERROR(directory.Commit());
  return result;
}

}  // namespace toroid
