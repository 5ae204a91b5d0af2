// The tokenizer of a real GGUF file, SmolLM2, against `tokenizers` and transformers. The file is
// not in git: set TOROID_MODELS or run the quick start, else the test is skipped.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "core/io/model_source.h"
#include "core/text/chat_template.h"
#include "core/text/tokenizer.h"
#include "tests/core/text/golden_text.h"

namespace toroid {
namespace {

std::string ModelPath() {
  const char* models = std::getenv("TOROID_MODELS");
  const char* home = std::getenv("HOME");
  const std::string folder = models != nullptr ? std::string(models)
                             : home != nullptr ? std::string(home) + "/.cache/toroid/models"
                                               : "";
  return folder + "/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
}

class Smollm2Tokenizer : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(ModelPath())) {
      GTEST_SKIP() << ModelPath() << " is absent: run deploy/quickstart.sh or set TOROID_MODELS";
    }
    auto source = OpenModel(ModelPath());
    ASSERT_TRUE(source.ok()) << source.status();
    auto tokenizer = Tokenizer::FromSource(source->tokenizer);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }
  std::vector<int32_t> Encode(const std::string& text) {
    const auto ids = tokenizer_->Encode(text);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.ok() ? *ids : std::vector<int32_t>();
  }
  std::unique_ptr<const Tokenizer> tokenizer_;
};

TEST_F(Smollm2Tokenizer, EncodesAsTheOracle) {
  const auto texts = ReadTextGoldenJson("cases.json")["texts"];
  const auto golden = ReadTextGoldenJson("smollm2_ids.json");
  EXPECT_EQ(tokenizer_->vocab_size(), 49152);
  for (const auto& [name, ids] : golden.items()) {
    EXPECT_EQ(Encode(texts[name]), ids.get<std::vector<int32_t>>()) << name;
    const std::string decoded = tokenizer_->Decode(ids.get<std::vector<int32_t>>(), false);
    if (texts[name].get<std::string>().find("<mask>") == std::string::npos) {
      EXPECT_EQ(decoded, texts[name]) << name;
    }
  }
}

TEST_F(Smollm2Tokenizer, ChatsAsTransformers) {
  const auto golden = ReadTextGoldenJson("../models/smollm2/chat.json");
  const auto chat = ChatTemplate::For(*tokenizer_, "");
  ASSERT_TRUE(chat.ok()) << chat.status();
  ASSERT_FALSE(golden["cases"].empty());
  for (const auto& c : golden["cases"]) {
    const auto prompt = chat->Render({{"user", c["content"].get<std::string>()}});
    ASSERT_TRUE(prompt.ok()) << prompt.status();
    EXPECT_EQ(Encode(*prompt), c["prompt_ids"].get<std::vector<int32_t>>()) << *prompt;
    EXPECT_EQ(tokenizer_->Decode(c["ids"].get<std::vector<int32_t>>()), c["text"]);
  }
}

}  // namespace
}  // namespace toroid
