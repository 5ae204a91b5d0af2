// From what a model brings for its tokenizer to a Tokenizer.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "core/io/tokenizer_source.h"
#include "core/text/tokenizer.h"

namespace toroid {

// Null for a model without tokenizer files: it takes and gives token ids only. A random model's
// tokens are bytes. Errors: those of Tokenizer's loaders.
absl::StatusOr<std::shared_ptr<const Tokenizer>> OpenTokenizer(const TokenizerSource& source);

}  // namespace toroid
