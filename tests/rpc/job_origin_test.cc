#include "rpc/job_origin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "rpc/client.h"

namespace toroid {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

constexpr char kText[] =
    "name: 'a' seed: 0 model { path: 'm' } generate { prompt { text: 'x' } stop: 's' }";
constexpr char kJson[] =
    R"({"name":"a","seed":"0","model":{"path":"m"},"generate":{"prompt":{"text":"x"},"stop":["s"]}})";

std::vector<std::string> Counting(const std::string& text, const Environment& environment,
                                  const std::vector<std::string>& settings = {}) {
  return SettingsOfVariables({text, settings, environment});
}

TEST(JobOrigin, EveryFieldHasAVariableOfItsOwn) {
  std::set<std::string> variables, paths;
  for (const JobField& field : JobFields()) {
    EXPECT_TRUE(variables.insert(field.variable).second) << field.variable;
    paths.insert(field.path);
  }
  EXPECT_GT(variables.size(), 40u);
  EXPECT_EQ(variables.count("TOROID_GENERATE_SAMPLING_TOP_P"), 1u);
  EXPECT_EQ(paths.count("generate.sampling.top_p"), 1u);
  EXPECT_EQ(paths.count("generate"), 0u);                    // a message
  EXPECT_EQ(paths.count("generate.more_prompts.text"), 0u);  // which of them?
}

TEST(JobOrigin, TheFileBeatsVariablesEvenWithADefault) {
  for (const char* text : {kText, kJson}) {
    EXPECT_THAT(Counting(text, {{"TOROID_NAME", "b"},
                                {"TOROID_SEED", "5"},
                                {"TOROID_GENERATE_STOP", "t"},
                                {"TOROID_PRIORITY", "3"},
                                {"TOROID_POD", ""}}),
                ElementsAre("priority=3"))
        << text;
  }
}

TEST(JobOrigin, SettingsBeatVariables) {
  EXPECT_THAT(Counting(kText, {{"TOROID_PRIORITY", "3"}}, {"priority=4"}), IsEmpty());
  EXPECT_THAT(Counting(kText, {{"TOROID_GENERATE_STOP_IDS", "3"}}, {"generate.stop_ids=4"}),
              IsEmpty());
}

TEST(JobOrigin, AChosenArmOfAOneofStays) {
  const Environment environment = {{"TOROID_SCORE_TOP", "3"},
                                   {"TOROID_GENERATE_PROMPT_FILE", "f"},
                                   {"TOROID_GENERATE_IGNORE_EOS", "true"}};
  for (const char* text : {kText, kJson}) {
    EXPECT_THAT(Counting(text, environment), ElementsAre("generate.ignore_eos=true"));
  }
  // Chosen by an empty message, or by a setting.
  EXPECT_THAT(Counting("score {}", environment), ElementsAre("score.top=3"));
  EXPECT_THAT(Counting("", environment, {"score.text.text=x"}), ElementsAre("score.top=3"));
  EXPECT_THAT(Counting(kText, environment, {"score.text.text=x"}), ElementsAre("score.top=3"));
  // Nobody has chosen: the first in the order of the fields does.
  EXPECT_THAT(Counting("", environment),
              ElementsAre("generate.prompt.file=f", "generate.ignore_eos=true"));
}

TEST(JobOrigin, EnumsAreSpelledAsOptionsSpellThem) {
  EXPECT_THAT(Counting("", {{"TOROID_COMPUTE", "f64"}}), ElementsAre("compute=FP64"));
  EXPECT_THAT(Counting("", {{"TOROID_COMPUTE", "bf16"}}), ElementsAre("compute=BF16"));
  EXPECT_THAT(Counting("", {{"TOROID_COMPUTE", "FP32"}}), ElementsAre("compute=FP32"));
  EXPECT_THAT(Counting("", {{"TOROID_DEVICE", "auto"}}), ElementsAre("device=AUTO"));
  EXPECT_THAT(Counting("", {{"TOROID_DEVICE", "cuda"}}), ElementsAre("device=CUDA"));
  EXPECT_THAT(Counting("", {{"TOROID_DEVICE", "tpu"}}), ElementsAre("device=tpu"));
}

TEST(JobOrigin, NamesWhereEachValueComesFrom) {
  const JobSources sources = {
      "seed: 0 generate { more_prompts { text: 'x' } }",
      {"generate.prompt.text=y", "generate.more_prompts.text=z", "priority=1"},
      {{"TOROID_POD", "b"}, {"TOROID_PRIORITY", "2"}, {"TOROID_UNKNOWN", "3"}}};
  EXPECT_THAT(JobOrigins(sources),
              UnorderedElementsAre(Pair("seed", "file"), Pair("generate", "file"),
                                   Pair("generate.more_prompts", "--set"),
                                   Pair("generate.prompt.text", "--set"), Pair("priority", "--set"),
                                   Pair("pod", "TOROID_POD")));
}

// Two paths to one value.
TEST(JobOrigin, TheCodecOfAModeIsTheExchanges) {
  const std::string text = "train { exchange { streaming { codec: INT8 } } }";
  const Environment environment = {{"TOROID_TRAIN_EXCHANGE_CODEC", "BF16"}};
  EXPECT_THAT(Counting("", environment), ElementsAre("train.exchange.codec=BF16"));
  EXPECT_THAT(Counting(text, environment), IsEmpty());
  EXPECT_THAT(Counting("", environment, {"train.exchange.diloco.codec=FP32"}), IsEmpty());
  EXPECT_THAT(Counting("train { exchange { codec: FP32 } }",
                       {{"TOROID_TRAIN_EXCHANGE_STREAMING_CODEC", "BF16"}}),
              IsEmpty());
  EXPECT_THAT(JobOrigins({text, {}, {}}), Contains(Pair("train.exchange.codec", "file")));
  EXPECT_THAT(JobOrigins({text, {"train.exchange.streaming.codec=E3M0"}, {}}),
              Contains(Pair("train.exchange.codec", "--set")));
}

TEST(JobOrigin, WhatCannotBeReadSaysNothing) {
  for (const char* text : {"modle {}", "{", "seed: x"}) {
    EXPECT_THAT(Counting(text, {{"TOROID_POD", "b"}}), ElementsAre("pod=b"));
    EXPECT_FALSE(ParseJobSpec(text, {"pod=b"}).ok());
  }
}

}  // namespace
}  // namespace toroid
