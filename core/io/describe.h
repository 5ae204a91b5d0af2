// What a model file says of itself, as plain numbers: `toroid inspect` prints it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/io/model_source.h"

namespace toroid {

struct ModelDescription {
  std::string path, format, name, architecture;
  int64_t parameters = 0;    // counted once
  int64_t tensor_bytes = 0;  // of all tensors as stored
  uint64_t fingerprint = 0;
  std::string tokenizer;  // "bytes", "tokenizer.json", "gguf gpt2", "none"
  // Name and value of every number of the configuration, ready to print: {"layers", "30"}.
  std::vector<std::pair<std::string, std::string>> configuration;
  struct File {
    std::string path;
    int64_t bytes = 0;
  };
  std::vector<File> files;
  struct Tensor {
    std::string name, dtype;
    std::vector<int64_t> shape;
    int64_t bytes = 0;
    int64_t file = 0;          // index into files
    bool interleaved = false;  // rows are un-permuted at load
  };
  // By name. File -1: a random model's, what would be drawn; a checkpoint's, cut over its shards.
  std::vector<Tensor> tensors;
  struct TypeTotal {
    std::string dtype;
    int64_t tensors = 0, bytes = 0;
  };
  std::vector<TypeTotal> types;  // by name of the type
};

ModelDescription Describe(const ModelSource& source);

}  // namespace toroid
