#include "core/io/model_source.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/io/checkpoint_directory.h"
#include "core/io/fingerprint.h"
#include "core/io/model_checkpoint.h"
#include "core/status_macros.h"

namespace toroid {

absl::StatusOr<ModelSource> OpenModel(absl::string_view model, uint64_t seed) {
  if (absl::StartsWith(model, "preset:")) return OpenPreset(std::string(model.substr(7)), seed);
  if (absl::StartsWith(model, "random:")) return OpenRandom(std::string(model.substr(7)), seed);
  const std::string path(model);
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(
        absl::StrCat(path, ": ", std::strerror(errno),
                     ": give a Hugging Face directory, a GGUF file, a checkpoint or random:NAME"));
  }
  if (!S_ISDIR(info.st_mode)) return OpenGguf(path);
  TOROID_ASSIGN_OR_RETURN(const std::string checkpoint, FindCheckpoint(PosixFiles(), path));
  if (checkpoint.empty()) return OpenHuggingFace(path);
  TOROID_ASSIGN_OR_RETURN(ModelSource source, OpenCheckpoint(checkpoint));
  source.path = path;
  return source;
}

uint64_t ModelSource::Fingerprint(bool whole) const {
  constexpr size_t kSample = 64 << 10;
  constexpr size_t kReleased = 4 << 20;  // read, then dropped from memory again
  FingerprintHash hash;
  hash.Number(config.layers);
  hash.Number(config.dim);
  hash.Number(config.context);
  hash.Number(int64_t(random_seed.value_or(0)));
  if (random_seed.has_value()) hash.Text(path);
  hash.Text(config.architecture);
  if (kv_pooling.has_value()) {
    hash.Number(config.kv_heads);
    hash.Number(int64_t(kv_pooling->kind));
    hash.Number(int64_t(kv_pooling->seed));
  }
  if (checkpoint != nullptr) hash.Number(int64_t(checkpoint->hash()));
  for (const MappedFile& file : files) {
    // The first 64 KiB hold the header's begin; the tensor table follows below.
    hash.Number(int64_t(file.bytes().size()));
    hash.Bytes(file.bytes().subspan(0, kSample));
  }
  for (const auto& [name, tensor] : tensors) {
    hash.Text(name);
    hash.Text(Info(tensor.dtype).name);
    for (const int64_t dim : tensor.shape) hash.Number(dim);
    hash.Number(tensor.file);
    hash.Number(tensor.data.data() - files[tensor.file].bytes().data());
    const size_t most = whole ? tensor.data.size() : std::min(kSample, tensor.data.size());
    for (size_t begin = 0; begin < most; begin += kReleased) {
      const auto part = tensor.data.subspan(begin, std::min(kReleased, most - begin));
      hash.Bytes(part);
      files[tensor.file].Release(part.data(), int64_t(part.size()));
    }
  }
  return hash.value();
}

}  // namespace toroid
