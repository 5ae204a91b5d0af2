#include "rpc/prompt.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "core/text/chat_template.h"
#include "core/text/tokenizer.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

absl::StatusOr<std::vector<int32_t>> Encode(const PromptSpec& prompt, const std::string& text,
                                            const LoadedModel& model) {
  if (model.tokenizer == nullptr) {
    return BadField("prompt", "the model has no tokenizer: give token ids instead of text");
  }
  if (!prompt.chat) return model.tokenizer->Encode(text, {prompt.add_special, true});
  if (model.tokenizer->chat_template().empty()) {
    return BadField("prompt", "the model has no chat template: drop chat and write the text whole");
  }
  TOROID_ASSIGN_OR_RETURN(const ChatTemplate chat, ChatTemplate::For(*model.tokenizer, ""));
  std::vector<ChatMessage> messages;
  if (!prompt.system.empty()) messages.push_back({"system", prompt.system});
  messages.push_back({"user", text});
  TOROID_ASSIGN_OR_RETURN(const std::string rendered, chat.Render(messages));
  TOROID_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                          model.tokenizer->Encode(rendered, {prompt.add_special, true}));
  // A template that writes BOS itself: the one that the tokenizer adds is one too many.
  const int32_t bos = model.tokenizer->bos_id();
  if (bos >= 0 && ids.size() >= 2 && ids[0] == bos && ids[1] == bos) ids.erase(ids.begin());
  return ids;
}

// An error about one of several prompts names it.
absl::StatusOr<std::vector<int32_t>> OfPrompt(const GenerateTask& task, size_t prompt_index,
                                              absl::StatusOr<std::vector<int32_t>> ids) {
  if (ids.ok() || task.more_prompts.empty()) return ids;
  const absl::Status& why = ids.status();
  const absl::Status named(why.code(), absl::StrCat("prompt ", prompt_index, ": ", why.message()));
  const ErrorInfo info = GetErrorInfo(why);
  return info.reason.empty() ? named : WithErrorInfo(named, info);
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> PromptIds(const PromptSpec& prompt, const std::string& text,
                                               const LoadedModel& model) {
  std::vector<int32_t> ids = prompt.ids;
  if (prompt.kind != PromptSpec::Kind::kIds) {
    TOROID_ASSIGN_OR_RETURN(ids, Encode(prompt, text, model));
  }
  if (ids.empty()) return BadField("prompt", "empty: at least one token is needed");
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < model.vocab) continue;
    return BadField("prompt", absl::StrCat("token id ", ids[i], " at position ", i,
                                           " is out of range: the vocabulary has ", model.vocab));
  }
  const auto length = static_cast<int64_t>(ids.size());
  if (model.context > 0 && length > model.context) {
    return MakeError(
        absl::StatusCode::kInvalidArgument,
        absl::StrCat("prompt is too long: ", length, " tokens, the context holds ", model.context,
                     ": shorten it", model.reach > model.context ? " or raise --context" : ""),
        {"PROMPT_TOO_LONG",
         {{"tokens", absl::StrCat(length)}, {"context", absl::StrCat(model.context)}},
         {}});
  }
  return ids;
}

absl::StatusOr<std::vector<int32_t>> VerifyIds(const VerifyTask& task, const std::string& text,
                                               const LoadedModel& model) {
  const int64_t tokens = std::min(std::max<int64_t>(task.tokens, 1), model.context);
  std::vector<int32_t> ids;
  if (task.text.has_value()) {
    LoadedModel reader = model;
    if (!task.full) reader.context = 0;  // of a longer text only the first tokens are wanted
    TOROID_ASSIGN_OR_RETURN(ids, PromptIds(*task.text, text, reader));
    if (!task.full && static_cast<int64_t>(ids.size()) > tokens) {
      ids.resize(static_cast<size_t>(tokens));
    }
    return ids;
  }
  const int64_t count = task.full ? model.context : tokens;
  for (int64_t i = 0; i < count; ++i) {
    // Knuth's multiplicative hash (TAOCP 6.4) of the position.
    const uint32_t mixed = static_cast<uint32_t>(i + 1) * 2654435761u;
    ids.push_back(static_cast<int32_t>(mixed % static_cast<uint64_t>(model.vocab)));
  }
  return ids;
}

absl::Status SetPromptIds(
    GenerateTask& task,
    const std::function<absl::StatusOr<std::vector<int32_t>>(const PromptSpec&)>& ids) {
  TOROID_ASSIGN_OR_RETURN(task.request.prompt_ids, OfPrompt(task, 0, ids(task.prompt)));
  task.request.more_prompt_ids.clear();
  for (size_t i = 0; i < task.more_prompts.size(); ++i) {
    TOROID_ASSIGN_OR_RETURN(std::vector<int32_t> more,
                            OfPrompt(task, i + 1, ids(task.more_prompts[i])));
    task.request.more_prompt_ids.push_back(std::move(more));
  }
  return absl::OkStatus();
}

}  // namespace toroid
