// A prompt as asked for -> token ids, with the model's own tokenizer and chat template.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/program.h"
#include "rpc/job.h"

namespace toroid {

// `text`: of the prompt, or what its file holds; ignored for ids. A model without a tokenizer
// (random:) takes bytes as ids. InvalidArgument: not UTF-8, an id out of range, no ids at all,
// no chat template, or PROMPT_TOO_LONG naming the prompt's length and the context's.
absl::StatusOr<std::vector<int32_t>> PromptIds(const PromptSpec& prompt, const std::string& text,
                                               const LoadedModel& model);

// The first tokens of verify's text, or, where there is none, as many ids that are spread over the
// vocabulary by a fixed rule: no text is needed to compare two computations.
absl::StatusOr<std::vector<int32_t>> VerifyIds(const VerifyTask& task, const std::string& text,
                                               const LoadedModel& model);

// The ids of the task's prompts, by `ids` of each, into its request. An error says which of
// several.
absl::Status SetPromptIds(
    GenerateTask& task,
    const std::function<absl::StatusOr<std::vector<int32_t>>(const PromptSpec&)>& ids);

}  // namespace toroid
