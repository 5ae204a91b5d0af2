// A model opened for reading, whatever it is kept in: configuration, where each parameter lies, the
// tokenizer's texts, defaults for generation. Nothing is copied out of the files until LoadParam.
//
// Immutable after OpenModel, hence thread-safe. Every rank opens the model for itself and reads
// only its own slices; Fingerprint lets ranks of different hosts check that they opened the same
// one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/io/kv_pooling.h"
#include "core/io/mapped_file.h"
#include "core/io/tensor_index.h"
#include "core/io/tokenizer_source.h"
#include "core/model/model_config.h"
#include "kernels/dtype.h"

namespace toroid {

class CheckpointWeights;

// generation_config.json; a field that the model does not set is empty.
struct GenerationDefaults {
  std::vector<int64_t> eos_ids;
  std::optional<int64_t> bos_id, pad_id;
  std::optional<bool> sample;  // do_sample
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k, max_new_tokens;
};

struct ModelSource {
  std::string path;    // as it was asked for
  std::string format;  // "hugging face", "gguf", "checkpoint", "random", "preset"
  ModelConfig config;
  GenerationDefaults generation;
  TokenizerSource tokenizer;
  std::vector<MappedFile> files;        // empty for a random model and a checkpoint
  TensorIndex tensors;                  // empty for a random model and a checkpoint
  std::optional<uint64_t> random_seed;  // set for a random model or a preset alone
  bool initial = false;                 // preset: its weights are those that training begins with
  // Of a random model that names one: the type that its matrices hold. Else they are float32.
  std::optional<DType> random_type;
  std::shared_ptr<const CheckpointWeights> checkpoint;  // set for a checkpoint alone
  std::optional<KvPooling> kv_pooling;                  // set by PoolKvHeads alone

  // 64-bit hash of the configuration and, for each file, its size, its header, its tensor table and
  // the first 64 KiB of each tensor. Equal on two hosts if they hold copies of one model; cheap, no
  // proof. Of a checkpoint: its manifest, which proves whatever is read of it.
  // whole: all bytes of each tensor instead.
  uint64_t Fingerprint(bool whole = false) const;
};

// Opens `model`: a Hugging Face directory (config.json and *.safetensors), a GGUF file (the first
// of a split one), a checkpoint (of a run's directory, or its checkpoints/, the newest whole one)
// or `random:NAME`, a shape of core/io/random_model.h with weights drawn from `seed`, of
// `random:NAME:TYPE` (f32, bf16, q8_0, q4_0, q4_1) in that type. NotFound naming the path;
// InvalidArgument or Unimplemented naming the file and the broken rule; DataLoss naming the damaged
// file of a checkpoint and the checkpoint before.
absl::StatusOr<ModelSource> OpenModel(absl::string_view model, uint64_t seed = 0);

// The four kinds of OpenModel. `directory` of a checkpoint: its own. `name`: NAME or NAME:TYPE.
absl::StatusOr<ModelSource> OpenHuggingFace(const std::string& directory);
absl::StatusOr<ModelSource> OpenGguf(const std::string& path);
absl::StatusOr<ModelSource> OpenCheckpoint(const std::string& directory);
absl::StatusOr<ModelSource> OpenRandom(const std::string& name, uint64_t seed);

// A shape of the same table with the weights that training from nothing begins with. Its tokenizer
// takes bytes for tokens; a caller may put another one there.
absl::StatusOr<ModelSource> OpenPreset(const std::string& name, uint64_t seed);

}  // namespace toroid
