// What a checkpoint keeps of the model that it grew from, besides weights: the tokenizer's texts
// and the defaults for generation. origin.json, so that a checkpoint alone is a whole model.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/io/model_source.h"

namespace toroid {

inline constexpr char kOriginName[] = "origin.json";
inline constexpr int64_t kOriginBytes = int64_t{512} << 20;  // at most

// The file's text. InvalidArgument if a text of the tokenizer is not UTF-8, or a score no number.
absl::StatusOr<std::string> OriginText(const ModelSource& source);

// Fills generation and tokenizer. DataLoss naming `where` and the field that is wrong.
absl::Status ReadOrigin(absl::string_view text, const std::string& where, ModelSource& out);

}  // namespace toroid
