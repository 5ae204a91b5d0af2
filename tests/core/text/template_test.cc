// Template and ChatTemplate against jinja2 with the settings of transformers: the same bytes, and
// an error where jinja2 has one. Then hostile templates, which must end in an error, soon.
#include "core/text/template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <string>

#include "core/text/chat_template.h"
#include "tests/core/text/golden_text.h"

namespace toroid {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr TemplateTime kNow = {2024, 7, 26, 13, 5, 9};

TemplateValue::Dict Values(const std::string& text) {
  auto value = TemplateValue::FromJson(text);
  EXPECT_TRUE(value.ok()) << value.status();
  return value.ok() && value->Is(TemplateValue::Kind::kDict) ? value->dict()
                                                             : TemplateValue::Dict();
}

absl::StatusOr<std::string> Render(const std::string& source,
                                   const TemplateValue::Dict& values = {}) {
  auto parsed = Template::Parse(source);
  if (!parsed.ok()) return parsed.status();
  return parsed->Render(values, kNow);
}

// Members keep the order they have in the file, as Python's do.
const nlohmann::ordered_json& Goldens() {
  static const auto* goldens =
      new nlohmann::ordered_json(nlohmann::ordered_json::parse(ReadTextGolden("templates.json")));
  return *goldens;
}

TEST(Template, RendersSnippetsAsJinja) {
  const auto values = Values(Goldens()["values"].dump());
  int compared = 0, errors = 0;
  for (const auto& snippet : Goldens()["snippets"]) {
    const auto text = Render(snippet["template"], values);
    if (snippet.contains("error")) {
      EXPECT_FALSE(text.ok()) << snippet["template"];
      EXPECT_THAT(std::string(text.status().message()), HasSubstr("line "));
      ++errors;
      continue;
    }
    ASSERT_TRUE(text.ok()) << snippet["template"] << text.status();
    EXPECT_EQ(*text, snippet["out"]) << snippet["template"];
    ++compared;
  }
  EXPECT_GT(compared, 90);
  EXPECT_GT(errors, 30);
}

TEST(Template, RendersChatsAsJinja) {
  for (const auto& chat : Goldens()["chats"]) {
    SCOPED_TRACE(chat.dump());
    const auto parsed = ChatTemplate::Parse(
        Goldens()["templates"][chat["template"].get<std::string>()].get<std::string>(), "<s>",
        "</s>");
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    ChatOptions options;
    options.now = kNow;
    options.add_generation_prompt = chat["prompt"];
    if (chat["prompt"]) options.variables_json = R"({"enable_thinking": false})";
    if (chat["with_tools"]) options.tools_json = Goldens()["tools"].dump();
    const auto text = parsed->RenderJson(
        Goldens()["conversations"][chat["conversation"].get<std::string>()].dump(), options);
    EXPECT_EQ(text.ok(), chat.contains("out"));
    EXPECT_EQ(text.ok() ? *text : "", chat.value("out", ""));
  }
}

TEST(Template, WhiteSpaceControlShows) {  // the goldens would not pass without it
  EXPECT_EQ(*Render("a\n  {% if true %}\nb\n  {% endif %}\nc"), "a\nb\nc");
  EXPECT_EQ(*Render("a\n  {%+ if true +%}\nb\n  {% endif %}\nc"), "a\n  \nb\nc");
}

TEST(Template, NamesLineAndConstruct) {
  const std::pair<const char*, const char*> cases[] = {
      {"a\n{% include 'x' %}", "line 2: {% include %}"},
      {"\n\n{{ 1 | urlize }}", "line 3: the filter 'urlize'"},
      {"{{ 1 is prime }}", "line 1: the test 'prime'"},
      {"{% for x in l recursive %}{% endfor %}", "recursive"},
      {"a\n{{ x.y }}", "line 2: 'x' is undefined"},
      {"{{ raise_exception('roles!') }}", "roles!"},
      {"{% if 1 %}\n", "endif"},
      {"\xff", "UTF-8"},
  };
  for (const auto& [source, named] : cases) {
    const auto text = Render(source);
    ASSERT_FALSE(text.ok()) << source;
    EXPECT_THAT(std::string(text.status().message()), HasSubstr(named));
  }
}

std::string Repeat(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

// Of the processor, spent by this thread: what other processes take does not count.
double ThreadSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

TEST(Template, HostileTemplatesEndInErrors) {
  const std::string doubling = "{% set a = [1, 1] %}" + Repeat("{% set a = [a, a] %}", 60);
  const std::vector<std::string> templates = {
      "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
      "{{ 'x' * 99999999999 }}",
      "{{ ('x' * 9999999) * 9999999 }}",
      "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% "
      "endfor %}",
      "{% set ns = namespace(s=[]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}",
      "{% set ns = namespace() %}{% set ns.x = ns %}",
      "{% set ns = namespace() %}{% set ns.x = [ns] %}",
      "{% for i in [1] %}{{ loop.changed(loop) }}{% endfor %}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
      doubling + "{{ a }}",
      doubling + "{{ a | tojson }}",
      doubling + "{{ a == a }}{% set b = a %}{{ [a] == [b] }}",
      "{{ " + Repeat("(", 5000) + "1" + Repeat(")", 5000) + " }}",
      "{{ " + Repeat("-", 5000) + "1 }}",
      "{{ " + Repeat("not ", 5000) + "1 }}",
      "{{ 1" + Repeat(" + 1", 5000) + " }}",
      "{{ x" + Repeat(".x", 5000) + " }}",
      "{{ 'x'" + Repeat("|upper", 5000) + " }}",
      Repeat("{% if 1 %}", 5000) + Repeat("{% endif %}", 5000),
      "{{ " + Repeat("[", 5000) + Repeat("]", 5000) + " }}",
      "{{ 9223372036854775807 + 1 }}",
      "{{ 99999999999999999999 }}",
      "{{ (-9223372036854775807 - 1) // -1 }}",
      "{{ range(0, 9223372036854775807) }}",
      "{{ 2 ** 9223372036854775807 }}",
      "{{ 'a'.format() }}",
      "{{ ['map'] | map('map', 'map', 'map', 'map') | list }}",
      std::string(300 << 10, 'x'),
  };
  for (const std::string& source : templates) {
    const double begin = ThreadSeconds();
    EXPECT_FALSE(Render(source).ok()) << source.substr(0, 100);
    EXPECT_LT(ThreadSeconds() - begin, 20) << source.substr(0, 100);
  }
}

TEST(Template, ReportsLimitsAsExhausted) {
  auto parsed = Template::Parse("{% for i in range(1000) %}xxxxxxxxxx{% endfor %}");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->Render({})->size(), 10000u);
  TemplateLimits limits;
  limits.output_bytes = 9999;
  EXPECT_EQ(parsed->Render({}, {}, limits).status().code(), absl::StatusCode::kResourceExhausted);
  limits = {};
  limits.steps = 500;
  EXPECT_EQ(parsed->Render({}, {}, limits).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(ChatTemplate, BuiltIns) {
  const std::vector<ChatMessage> messages = {
      {"system", "Be brief."}, {"user", "Hi"}, {"assistant", "Hello"}, {"user", "Bye"}};
  const auto render = [&](const char* name) {
    const auto chat = ChatTemplate::BuiltIn(name, "<s>", "</s>");
    EXPECT_TRUE(chat.ok()) << chat.status();
    const auto text = chat->Render(messages);
    EXPECT_TRUE(text.ok()) << text.status();
    return text.ok() ? *text : "";
  };
  const std::string chatml =
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
      "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
      "<|im_start|>assistant\n";
  EXPECT_EQ(render("chatml"), chatml);
  EXPECT_EQ(render("qwen"), chatml);
  EXPECT_EQ(render("llama3"),
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
  EXPECT_EQ(render("mistral"), "<s>[INST] Be brief.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]");
  EXPECT_THAT(std::string(ChatTemplate::BuiltIn("alpaca", "", "").status().message()),
              HasSubstr("chatml, llama3, mistral, qwen"));
  EXPECT_EQ(*ChatTemplate::BuiltIn("qwen", "", "")->Render({{"user", "x"}}),
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, ComesFromTheModel) {
  auto tokenizer = Tokenizer::FromHuggingFace(
      ReadTextGolden("qwen2.json"),
      R"({"eos_token": "<|im_end|>", "chat_template": "{{ messages[0].content }}{{ eos_token }}"})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto own = ChatTemplate::For(**tokenizer, "");
  ASSERT_TRUE(own.ok()) << own.status();
  EXPECT_EQ(*own->Render({{"user", "x"}}), "x<|im_end|>");
  EXPECT_TRUE(ChatTemplate::For(**tokenizer, "chatml").ok());
  auto bare = Tokenizer::FromBytes();
  ASSERT_TRUE(bare.ok());
  EXPECT_EQ(ChatTemplate::For(**bare, "").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace toroid
