#include "core/text/chat_template.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

struct BuiltInTemplate {
  std::string_view name;
  std::string_view source;
};

constexpr BuiltInTemplate kBuiltIns[] = {
    {"chatml", R"({% for m in messages %}
{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %})"},
    {"llama3", R"({{- bos_token }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %})"},
    // The system message goes in front of the first user message.
    {"mistral", R"({%- set ns = namespace(system='') %}
{{- bos_token }}
{%- for m in messages %}
{%- if m['role'] == 'system' %}
{%- set ns.system = ns.system + m['content'] + '\n\n' %}
{%- elif m['role'] == 'user' %}
{{- '[INST] ' + ns.system + m['content'] + ' [/INST]' }}
{%- set ns.system = '' %}
{%- elif m['role'] == 'assistant' %}
{{- ' ' + m['content'] | trim + eos_token }}
{%- else %}
{{- raise_exception('only the roles system, user and assistant are possible') }}
{%- endif %}
{%- endfor %})"},
    {"qwen", R"({%- if not messages or messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %})"},
};

absl::string_view Absl(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace

ChatTemplate::ChatTemplate(Template parsed, std::string bos_token, std::string eos_token)
    : template_(std::move(parsed)),
      bos_token_(std::move(bos_token)),
      eos_token_(std::move(eos_token)) {}

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(std::string_view source, std::string bos_token,
                                                 std::string eos_token) {
  TOROID_ASSIGN_OR_RETURN(Template parsed, Template::Parse(source));
  return ChatTemplate(std::move(parsed), std::move(bos_token), std::move(eos_token));
}

absl::StatusOr<ChatTemplate> ChatTemplate::BuiltIn(std::string_view name, std::string bos_token,
                                                   std::string eos_token) {
  const auto* found = std::find_if(std::begin(kBuiltIns), std::end(kBuiltIns),
                                   [&](const BuiltInTemplate& b) { return b.name == name; });
  if (found == std::end(kBuiltIns)) {
    return absl::InvalidArgumentError(absl::StrCat("no chat template is called \"", Absl(name),
                                                   "\": choose one of ",
                                                   absl::StrJoin(BuiltInNames(), ", ")));
  }
  return Parse(found->source, std::move(bos_token), std::move(eos_token));
}

absl::StatusOr<ChatTemplate> ChatTemplate::For(const Tokenizer& tokenizer,
                                               std::string_view choice) {
  std::string bos(tokenizer.Piece(tokenizer.bos_id()));
  std::string eos(tokenizer.Piece(tokenizer.eos_id()));
  if (!choice.empty()) return BuiltIn(choice, std::move(bos), std::move(eos));
  if (tokenizer.chat_template().empty()) {
    return absl::NotFoundError(absl::StrCat("the model has no chat template: choose one of ",
                                            absl::StrJoin(BuiltInNames(), ", ")));
  }
  return Parse(tokenizer.chat_template(), std::move(bos), std::move(eos));
}

std::vector<std::string> ChatTemplate::BuiltInNames() {
  std::vector<std::string> names;
  for (const BuiltInTemplate& b : kBuiltIns) names.emplace_back(b.name);
  return names;
}

absl::StatusOr<std::string> ChatTemplate::Render(const std::vector<ChatMessage>& messages,
                                                 const ChatOptions& options) const {
  TemplateValue::List list;
  for (const ChatMessage& message : messages) {
    TemplateValue::Dict fields;
    fields.Set("role", TemplateValue::String(message.role));
    fields.Set("content", TemplateValue::String(message.content));
    list.push_back(TemplateValue::MakeDict(std::move(fields)));
  }
  return RenderValue(TemplateValue::MakeList(std::move(list)), options);
}

absl::StatusOr<std::string> ChatTemplate::RenderJson(std::string_view messages_json,
                                                     const ChatOptions& options) const {
  TOROID_ASSIGN_OR_RETURN(TemplateValue messages, TemplateValue::FromJson(messages_json));
  if (!messages.IsSequence()) return absl::InvalidArgumentError("the messages are not a list");
  return RenderValue(std::move(messages), options);
}

absl::StatusOr<std::string> ChatTemplate::RenderValue(TemplateValue messages,
                                                      const ChatOptions& options) const {
  TemplateValue::Dict variables;
  variables.Set("bos_token", TemplateValue::String(bos_token_));
  variables.Set("eos_token", TemplateValue::String(eos_token_));
  variables.Set("tools", TemplateValue::None());
  variables.Set("documents", TemplateValue::None());
  if (!options.tools_json.empty()) {
    TOROID_ASSIGN_OR_RETURN(TemplateValue tools, TemplateValue::FromJson(options.tools_json));
    variables.Set("tools", std::move(tools));
  }
  if (!options.variables_json.empty()) {
    TOROID_ASSIGN_OR_RETURN(TemplateValue more, TemplateValue::FromJson(options.variables_json));
    if (!more.Is(TemplateValue::Kind::kDict)) {
      return absl::InvalidArgumentError("the variables of the chat template are not an object");
    }
    for (const auto& [name, value] : more.dict().items) variables.Set(name, value);
  }
  variables.Set("messages", std::move(messages));
  variables.Set("add_generation_prompt", TemplateValue::Bool(options.add_generation_prompt));
  return template_.Render(variables, options.now);
}

}  // namespace toroid
