// What the keys of a GGUF file say about the model and its tokenizer.
#pragma once

#include "absl/status/statusor.h"
#include "core/io/gguf.h"
#include "core/io/tokenizer_source.h"
#include "core/model/model_config.h"

namespace toroid {

// The validated configuration; name and tied_embeddings are left for the caller, who sees the
// tensors. Every key of the architecture ("llama.*") is either understood or refused by name: an
// unknown one may change the mathematics. InvalidArgument or Unimplemented naming the key; an
// unknown architecture is answered with the list of known ones.
absl::StatusOr<ModelConfig> GgufModelConfig(const GgufFile& file);

// The keys `tokenizer.*`. An absent tokenizer gives empty arrays.
absl::StatusOr<GgufVocabulary> GgufTokenizer(const GgufFile& file);

}  // namespace toroid
