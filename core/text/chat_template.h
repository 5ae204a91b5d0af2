// Messages -> the text that a chat model was trained to continue.
// The template is the model's own (Jinja), or one of ours by the name of its format.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/text/template.h"
#include "core/text/tokenizer.h"

namespace toroid {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant", "tool"
  std::string content;
};

struct ChatOptions {
  bool add_generation_prompt = true;  // end with the opening of the assistant's turn
  std::string tools_json;             // a JSON list of tools; empty: none
  std::string variables_json;         // a JSON object of more variables; empty: none
  TemplateTime now;                   // for templates that print the date
};

class ChatTemplate {
 public:
  // `source` is Jinja; the tokens are what `bos_token` and `eos_token` stand for in it.
  static absl::StatusOr<ChatTemplate> Parse(std::string_view source, std::string bos_token,
                                            std::string eos_token);
  // "chatml", "llama3", "mistral" or "qwen". InvalidArgument lists them for another name.
  static absl::StatusOr<ChatTemplate> BuiltIn(std::string_view name, std::string bos_token,
                                              std::string eos_token);
  // What a user wants for a model: `choice` is a built-in's name, or empty for the model's own.
  // NotFound if it has none.
  static absl::StatusOr<ChatTemplate> For(const Tokenizer& tokenizer, std::string_view choice);
  static std::vector<std::string> BuiltInNames();

  absl::StatusOr<std::string> Render(const std::vector<ChatMessage>& messages,
                                     const ChatOptions& options = {}) const;
  // `messages_json`: a list of objects with whatever members the template reads.
  absl::StatusOr<std::string> RenderJson(std::string_view messages_json,
                                         const ChatOptions& options = {}) const;

 private:
  ChatTemplate(Template parsed, std::string bos_token, std::string eos_token);
  absl::StatusOr<std::string> RenderValue(TemplateValue messages, const ChatOptions& options) const;

  Template template_;
  std::string bos_token_, eos_token_;
};

}  // namespace toroid
