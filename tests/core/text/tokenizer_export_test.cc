// What TokenizerFiles writes is read again, and makes the tokens that the model's own makes.
#include "core/text/tokenizer_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "core/text/tokenizer.h"
#include "tests/core/text/golden_text.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr size_t kMostBytes = 1024;  // of a token of a GGUF file

// A golden tokenizer.json as a GGUF file would hold it.
GgufVocabulary AsGguf(const std::string& name, const std::string& pre) {
  const nlohmann::json file = ReadTextGoldenJson(name + ".json");
  GgufVocabulary gguf;
  gguf.model = pre.empty() ? "llama" : "gpt2";
  gguf.pre = pre;
  const auto put = [&](size_t id, const std::string& text, int32_t type) {
    while (gguf.tokens.size() <= id) {  // unused ids have names of their own
      gguf.tokens.push_back(absl::StrCat("<unused ", gguf.tokens.size(), ">"));
      gguf.token_types.push_back(5);
      gguf.scores.push_back(-1e6f);
    }
    gguf.tokens[id] = text;
    gguf.token_types[id] = type;
  };
  for (const auto& [text, id] : file["model"]["vocab"].items()) {
    if (text.size() > kMostBytes) continue;
    const bool byte = pre.empty() && text.size() == 6 && text.substr(0, 3) == "<0x";
    put(id.get<size_t>(), text, byte ? 6 : 1);
  }
  for (const auto& token : file["added_tokens"]) {
    put(token["id"].get<size_t>(), token["content"].get<std::string>(),
        token["special"].get<bool>() ? 3 : 4);
  }
  float rank = 0;
  for (const auto& merge : file["model"]["merges"]) {
    const std::string text = merge.is_string() ? merge.get<std::string>()
                                               : absl::StrCat(merge[0].get<std::string>(), " ",
                                                              merge[1].get<std::string>());
    gguf.merges.push_back(text);
    const std::string joined =
        absl::StrCat(text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1));
    if (joined.size() > kMostBytes) {
      gguf.merges.pop_back();
      continue;
    }
    const auto id = file["model"]["vocab"][joined].get<size_t>();
    gguf.scores[id] = rank -= 1;
  }
  return gguf;
}

class TokenizerExport : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(TokenizerExport, MakesTheSameTokensOfEveryText) {
  GgufVocabulary gguf = AsGguf(GetParam().first, GetParam().second);
  gguf.bos_id = 1;
  gguf.eos_id = 2;
  gguf.add_bos = true;
  gguf.chat_template = "{{ messages }}";
  TokenizerSource source;
  source.kind = TokenizerSource::Kind::kGguf;
  source.gguf = gguf;
  const auto files = TokenizerFiles(source);
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_EQ(files->size(), 2u);
  EXPECT_EQ((*files)[0].name, "tokenizer.json");
  EXPECT_EQ((*files)[1].name, "tokenizer_config.json");
  const auto own = Tokenizer::FromGguf(gguf);
  const auto read = Tokenizer::FromHuggingFace((*files)[0].text, (*files)[1].text);
  ASSERT_TRUE(own.ok()) << own.status();
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)->bos_id(), 1);
  EXPECT_EQ((*read)->eos_id(), 2);
  EXPECT_TRUE((*read)->adds_bos());
  EXPECT_EQ((*read)->chat_template(), gguf.chat_template);
  gguf.pre = "default";  // control: other steps make other tokens
  gguf.add_space_prefix = false;
  const auto other = Tokenizer::FromGguf(gguf);
  int64_t tokens = 0, differ = 0;
  const nlohmann::json cases = ReadTextGoldenJson("cases.json");
  for (const auto& [name, text] : cases["texts"].items()) {
    const auto expected = (*own)->Encode(text.get<std::string>());
    const auto got = (*read)->Encode(text.get<std::string>());
    ASSERT_TRUE(expected.ok() && got.ok()) << name;
    EXPECT_EQ(*got, *expected) << name;
    EXPECT_EQ((*read)->Decode(*got), (*own)->Decode(*expected)) << name;
    tokens += int64_t(got->size());
    differ += *(*other)->Encode(text.get<std::string>()) != *expected;
  }
  EXPECT_GT(tokens, 500);
  EXPECT_GT(differ, 3);
}

INSTANTIATE_TEST_SUITE_P(Families, TokenizerExport,
                         ::testing::Values(std::pair("llama3", "llama-bpe"),
                                           std::pair("qwen2", "qwen2"),
                                           std::pair("smollm", "smollm"), std::pair("llama2", "")),
                         [](const auto& info) { return std::string(info.param.first); });

TEST(TokenizerFiles, OfBytesAndTexts) {
  TokenizerSource source;
  EXPECT_TRUE(TokenizerFiles(source)->empty());
  source.kind = TokenizerSource::Kind::kBytes;
  const auto bytes = *TokenizerFiles(source);
  const auto tokenizer = Tokenizer::FromHuggingFace(bytes[0].text, bytes[1].text);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*(*tokenizer)->Encode("Hi \xc3\xa4\n"), ElementsAre(72, 105, 32, 195, 164, 10));
  source.kind = TokenizerSource::Kind::kHuggingFace;
  source.tokenizer_json = "{ }";
  source.chat_template = "t";
  const auto texts = *TokenizerFiles(source);
  ASSERT_EQ(texts.size(), 2u);
  EXPECT_EQ(texts[0].text, "{ }");
  EXPECT_EQ(texts[1].name, "chat_template.jinja");
  source.kind = TokenizerSource::Kind::kGguf;
  source.gguf.model = "gpt2";
  source.gguf.pre = "unheard-of";
  source.gguf.tokens = {"a"};
  EXPECT_THAT(std::string(TokenizerFiles(source).status().message()), HasSubstr("unheard-of"));
}

}  // namespace
}  // namespace toroid
