// Models written anew: a Hugging Face directory that transformers loads, or a checkpoint to train
// from. Whatever the source is kept in, parameters pass one after the other in pieces of a few MiB.
//
// All is written under a fresh name beside `directory` and renamed at the end, so that `directory`
// is there whole or not at all; what a killed writer leaves is called DIRECTORY.tmp-... . Nothing
// that exists is replaced: AlreadyExists.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/io/file_system.h"
#include "core/io/model_source.h"

namespace toroid {

struct ConvertOptions {
  DType dtype = DType::kF32;            // of all tensors: kF32 or kBF16; a checkpoint has kF32
  int64_t shard_bytes = 5'000'000'000;  // of a safetensors file, at most if it holds two tensors
  std::function<void(int64_t done, int64_t total)> progress = [](int64_t, int64_t) {};  // bytes
};

struct ConvertedModel {
  std::vector<std::string> files;  // names in the directory
  int64_t tensor_bytes = 0;
  // What the source has and the result has not, a sentence each: a tokenizer of unknown kind.
  std::vector<std::string> lost;
};

// config.json, generation_config.json, safetensors files and the tokenizer's files. Unimplemented
// if no class of transformers computes the same: the error names the field of the configuration.
// Other errors as LoadParam and the file system have them.
absl::StatusOr<ConvertedModel> WriteHuggingFace(const ModelSource& source,
                                                const std::string& directory,
                                                const ConvertOptions& options,
                                                FileSystem& files = PosixFiles());

// A checkpoint of step 0 in one shard, its moments zero. InvalidArgument if the source is one
// already and nothing is pooled.
absl::StatusOr<ConvertedModel> WriteCheckpoint(const ModelSource& source,
                                               const std::string& directory,
                                               const ConvertOptions& options,
                                               FileSystem& files = PosixFiles());

}  // namespace toroid
