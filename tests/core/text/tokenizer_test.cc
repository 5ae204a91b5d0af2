// Tokenizer against Hugging Face's `tokenizers`: ids and decoded text of every golden text must be
// equal, for each family. Then what must be refused, and hostile sizes.
#include "core/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "core/text/stream_decoder.h"
#include "tests/core/text/golden_text.h"

namespace toroid {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

const json& Goldens() {
  static const json* goldens = new json(ReadTextGoldenJson("cases.json"));
  return *goldens;
}

std::unique_ptr<const Tokenizer> LoadJson(const json& file) {
  auto tokenizer = Tokenizer::FromHuggingFace(file.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::unique_ptr<const Tokenizer> Load(const std::string& name) {
  return LoadJson(ReadTextGoldenJson(name + ".json"));
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, const std::string& text,
                            EncodeOptions options = {}) {
  auto ids = tokenizer.Encode(text, options);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : std::vector<int32_t>();
}

std::string Stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip) {
  StreamDecoder decoder(&tokenizer, skip);
  std::string text;
  for (int32_t id : ids) text += decoder.Push(id);
  return text + decoder.Finish();
}

class TokenizerGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(TokenizerGolden, EncodesAsTheOracle) {
  const auto tokenizer = Load(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  for (const json& c : Goldens()["tokenizers"][GetParam()]["cases"]) {
    const std::string text = Goldens()["texts"][c["name"].get<std::string>()];
    SCOPED_TRACE(c["name"]);
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(Encode(*tokenizer, text, {false, true}), ids);
    EXPECT_EQ(Encode(*tokenizer, text, {true, true}), c.value("with_special", ids));
    EXPECT_EQ(Encode(*tokenizer, text, {false, false}), c.value("as_text", ids));
    if (!c.contains("tokens")) continue;
    for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(tokenizer->Piece(ids[i]), c["tokens"][i]);
  }
}

TEST_P(TokenizerGolden, DecodesAsTheOracle) {
  const auto tokenizer = Load(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  for (const json& c : Goldens()["tokenizers"][GetParam()]["cases"]) {
    SCOPED_TRACE(c["name"]);
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer->Decode(ids, false), c["decoded"]);
    EXPECT_EQ(Stream(*tokenizer, ids, false), c["decoded"]);
    if (!c.contains("decoded_without_special")) continue;
    EXPECT_EQ(tokenizer->Decode(ids), c["decoded_without_special"]);
    EXPECT_EQ(Stream(*tokenizer, ids, true), c["decoded_without_special"]);
  }
  for (const json& c : Goldens()["tokenizers"][GetParam()]["broken"]) {
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer->Decode(ids), c["decoded"]) << c["ids"];
    EXPECT_EQ(Stream(*tokenizer, ids, true), c["decoded"]) << c["ids"];
  }
}

INSTANTIATE_TEST_SUITE_P(Families, TokenizerGolden,
                         ::testing::Values("llama3", "qwen2", "smollm", "gpt2", "llama2",
                                           "mistral"),
                         [](const auto& info) { return info.param; });

// Negative controls: each part of the pipeline matters, so leaving it out must show in the goldens.
TEST(TokenizerGoldenControl, EachPartShows) {
  struct Change {
    const char* family;
    const char* pointer;
    json value;
  };
  const std::vector<Change> changes = {
      {"llama3", "/model/ignore_merges", false},
      {"llama3", "/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\s+"},
      {"qwen2", "/normalizer", nullptr},
      {"smollm", "/pre_tokenizer/pretokenizers/0/individual_digits", false},
      {"gpt2", "/pre_tokenizer/add_prefix_space", false},
      {"llama2", "/model/byte_fallback", false},
      {"llama2", "/normalizer", nullptr},
      {"llama2", "/added_tokens/5/lstrip", false},
      {"llama2", "/added_tokens/9/single_word", false},
      {"mistral", "/pre_tokenizer/prepend_scheme", "always"},
  };
  for (const Change& change : changes) {
    json file = ReadTextGoldenJson(std::string(change.family) + ".json");
    file.at(json::json_pointer(change.pointer)) = change.value;
    const auto tokenizer = LoadJson(file);
    ASSERT_NE(tokenizer, nullptr);
    int different = 0;
    for (const json& c : Goldens()["tokenizers"][change.family]["cases"]) {
      const std::string text = Goldens()["texts"][c["name"].get<std::string>()];
      different += Encode(*tokenizer, text, {false, true}) != c["ids"].get<std::vector<int32_t>>();
    }
    EXPECT_GT(different, 0) << change.family << " " << change.pointer;
  }
}

TEST(Tokenizer, KnowsItsTokens) {
  const auto tokenizer = Load("llama2");
  EXPECT_EQ(tokenizer->TokenId("<s>"), 1);
  EXPECT_EQ(tokenizer->Piece(1), "<s>");
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), -1);
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_TRUE(tokenizer->IsSpecial(2));
  EXPECT_FALSE(tokenizer->IsSpecial(tokenizer->TokenId("<tool>")));
  EXPECT_FALSE(tokenizer->IsSpecial(-1));
  EXPECT_EQ(tokenizer->TokenId("no such token"), -1);
  EXPECT_EQ(tokenizer->Piece(1 << 30), "");
  EXPECT_EQ(tokenizer->vocab_size(), Goldens()["tokenizers"]["llama2"]["size"]);
}

TEST(Tokenizer, ReadsNamesFromTheConfig) {
  auto tokenizer = Tokenizer::FromHuggingFace(
      ReadTextGolden("qwen2.json"),
      R"({"bos_token":null,"eos_token":{"content":"<|im_end|>"},"chat_template":"{{ x }}"})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->eos_id(), (*tokenizer)->TokenId("<|im_end|>"));
  EXPECT_EQ((*tokenizer)->bos_id(), -1);
  EXPECT_FALSE((*tokenizer)->adds_bos());
  EXPECT_EQ((*tokenizer)->chat_template(), "{{ x }}");
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  const auto tokenizer = Load("llama3");
  for (const char* text :
       {"abc\xff", "abc\xe4\xbd", "abc\xc0\xaf", "abc\xed\xa0\x80", "abc\xf4\x90\x80\x80"}) {
    const auto ids = tokenizer->Encode(text);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(ids.status().message()), HasSubstr("byte 3"));
  }
  EXPECT_TRUE(tokenizer->Encode("abc\xe4\xbd\xa0").ok());
}

// Every step that is not implemented must be refused by its name.
TEST(Tokenizer, RefusesByName) {
  struct Change {
    const char* pointer;
    json value;
    const char* named;
  };
  const std::vector<Change> changes = {
      {"/model/type", "Unigram", "Unigram"},
      {"/model/continuing_subword_prefix", "##", "continuing_subword_prefix"},
      {"/model/dropout", 0.1, "dropout"},
      {"/normalizer", {{"type", "Lowercase"}}, "Lowercase"},
      {"/pre_tokenizer", {{"type", "BertPreTokenizer"}}, "BertPreTokenizer"},
      {"/post_processor", {{"type", "BertProcessing"}}, "BertProcessing"},
      {"/decoder", {{"type", "WordPiece"}}, "WordPiece"},
      {"/truncation", {{"max_length", 5}}, "truncation"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "[a&&b]", "intersection"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "a{1,3}+", "interval"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "(?m)a", "group"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\h", "\\h"},
  };
  for (const Change& change : changes) {
    json file = ReadTextGoldenJson("llama3.json");
    file[json::json_pointer(change.pointer)] = change.value;
    const auto tokenizer = Tokenizer::FromHuggingFace(file.dump());
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kUnimplemented) << change.named;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(change.named));
  }
}

TEST(Tokenizer, RefusesBrokenFiles) {
  const json good = ReadTextGoldenJson("llama3.json");
  const std::string text = good.dump();
  std::vector<std::string> files = {
      "", "{", "[]", "null", "{}", text.substr(0, text.size() / 2), std::string(100000, '[')};
  const auto with = [&](const char* pointer, json value) {
    json file = good;
    file[json::json_pointer(pointer)] = std::move(value);
    files.push_back(file.dump());
  };
  with("/model/vocab/zzzz", 4000000000u);
  with("/model/vocab/zzzz", -1);
  with("/model/vocab/zzzz", 5);
  with("/model/vocab/zzzz", "5");
  with("/model/merges/0", "one");
  with("/model/merges/0", json::array({"a"}));
  with("/model/merges/0", json::array({"absent", "token"}));
  with("/added_tokens/0/id", 3);
  with("/added_tokens/0/id", 1 << 30);
  with("/added_tokens/0/content", "");
  with("/pre_tokenizer/pretokenizers/0/pattern/Regex", "(");
  with("/post_processor/processors/1/special_tokens", json::object());
  for (const std::string& file : files) {
    const auto tokenizer = Tokenizer::FromHuggingFace(file);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument)
        << file.substr(0, 80) << tokenizer.status();
  }
  EXPECT_TRUE(Tokenizer::FromHuggingFace(text).ok());
}

// Neither the heap of merges nor the search for spaces may be quadratic.
TEST(Tokenizer, LongWordsTakeLinearTime) {
  const auto begin = std::chrono::steady_clock::now();
  std::string marks = "a";  // combining marks in the worst order for a canonical sort
  for (int i = 0; i < 50000; ++i) marks += "\u0301";
  for (int i = 0; i < 50000; ++i) marks += "\u0323";
  for (const char* name : {"llama3", "qwen2", "smollm", "llama2", "mistral"}) {
    const auto tokenizer = Load(name);
    for (const std::string& text :
         {std::string(100000, 'a'), std::string(100000, ' '), marks,
          std::string(50000, ' ') + "<mask>" + std::string(50000, ' ') + "<mask>"}) {
      EXPECT_GT(Encode(*tokenizer, text).size(), 0u);
    }
  }
  const auto seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin);
  EXPECT_LT(seconds.count(), 30);  // quadratic work would take minutes
}

TEST(TokenizerBytes, OneTokenPerByte) {
  auto tokenizer = Tokenizer::FromBytes();
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ(Encode(**tokenizer, "a é"), (std::vector<int32_t>{97, 32, 0xC3, 0xA9}));
  EXPECT_EQ((*tokenizer)->Decode(std::vector<int32_t>{97, 32, 0xC3, 0xA9, 999}), "a é");
}

TEST(TokenizerSource, MayBeMissing) {
  EXPECT_EQ(Tokenizer::FromSource(TokenizerSource{}).status().code(), absl::StatusCode::kNotFound);
  TokenizerSource source;
  source.kind = TokenizerSource::Kind::kHuggingFace;
  source.tokenizer_json = ReadTextGolden("qwen2.json");
  source.tokenizer_config_json = R"({"chat_template": "of the config"})";
  source.chat_template = "of the file";
  const auto tokenizer = Tokenizer::FromSource(source);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->chat_template(), "of the file");
}

}  // namespace
}  // namespace toroid
