#include "launcher/job_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace toroid {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

std::string Written(const std::string& name, const std::string& text) {
  const std::string path = absl::StrCat(testing::TempDir(), "/", name);
  std::ofstream(path) << text;
  return path;
}

constexpr char kYaml[] =
    "name: book\nmodel: {path: 'random:tiny-gqa'}\ngenerate:\n  prompt: {text: '7'}\n"
    "  max_tokens: 4\n";

TEST(JobSpec, YamlBecomesJson) {
  EXPECT_EQ(YamlToJson("a: 1\nb: [x, '2', 2.5, true, ~]\nc: {d: 1e3}\n").value(),
            R"({"a":1,"b":["x","2",2.5,true,null],"c":{"d":1000.0}})");
  EXPECT_EQ(YamlToJson("a: &x [1]\nb: *x\n").value(), R"({"a":[1],"b":[1]})");
}

TEST(JobSpec, BadYamlNamesTheLine) {
  for (const char* text : {"a: 1\nb: [1,\n", "a: 1\na: 2\n", "", "just words"}) {
    const auto json = YamlToJson(text);
    ASSERT_FALSE(json.ok()) << text;
    EXPECT_THAT(std::string(json.status().message()), HasSubstr("bad YAML"));
  }
  std::string deep;
  for (int i = 0; i < 40; ++i) absl::StrAppend(&deep, "{a: ");
  absl::StrAppend(&deep, "1", std::string(40, '}'));
  EXPECT_THAT(std::string(YamlToJson(deep).status().message()), HasSubstr("32 levels"));
  // Aliases of aliases: 9^8 values from nine lines.
  std::string bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n";
  for (int i = 1; i < 8; ++i) {
    absl::StrAppend(&bomb, "a", i, ": &a", i, " [");
    for (int j = 0; j < 9; ++j) absl::StrAppend(&bomb, j > 0 ? "," : "", "*a", i - 1);
    absl::StrAppend(&bomb, "]\n");
  }
  EXPECT_THAT(std::string(YamlToJson(bomb).status().message()), HasSubstr("100000"));
}

TEST(JobSpec, SettingsBeatTheFile) {
  const std::string path = Written("job.yaml", kYaml);
  const JobSpec file = ReadJobSpec(path, {}).value();
  EXPECT_EQ(std::get<GenerateTask>(file.task).request.max_tokens, 4);
  EXPECT_EQ(std::get<GenerateTask>(file.task).prompt.text, "7");
  const JobSpec set = ReadJobSpec(path, {"generate.max_tokens=9"}).value();
  EXPECT_EQ(std::get<GenerateTask>(set.task).request.max_tokens, 9);
}

TEST(JobSpec, UnknownFieldsHaveAHintInEveryForm) {
  const std::string yaml = Written("bad.yaml", absl::StrCat(kYaml, "sede: 1\n"));
  const std::string json = Written("bad.json", R"({"model":{"paht":"x"}})");
  const std::string text = Written("bad.textproto", "modle { }");
  const auto error = [](const std::string& path) {
    return std::string(ReadJobSpec(path, {}).status().message());
  };
  EXPECT_THAT(error(yaml), HasSubstr("unknown field: sede: did you mean seed?"));
  EXPECT_THAT(error(json), HasSubstr("unknown field: model.paht: did you mean path?"));
  EXPECT_THAT(error(text), HasSubstr("did you mean model?"));
}

TEST(JobSpec, VariablesAreBelowTheFile) {
  const std::string path = Written("job.yaml", kYaml);
  JobSources sources = ReadJobSources(path, {}).value();
  sources.environment = {{"TOROID_GENERATE_MAX_TOKENS", "9"},
                         {"TOROID_GENERATE_IGNORE_EOS", "true"}};
  const GenerateTask task = std::get<GenerateTask>(MergeJobSources(path, sources)->task);
  EXPECT_EQ(task.request.max_tokens, 4);
  EXPECT_TRUE(task.request.ignore_eos);
  sources.environment = {{"TOROID_GENERATE_PROMPT_LOGPROBS", "none"}};
  EXPECT_THAT(std::string(MergeJobSources(path, sources).status().message()),
              HasSubstr("TOROID_GENERATE_PROMPT_LOGPROBS"));
}

// One name, one meaning: what both a flag and a field read says the same to both.
TEST(JobSpec, VariablesOfFieldsAndOfFlagsAreApart) {
  std::vector<std::string> shared;
  const std::vector<std::string> own = OwnVariables();
  for (const JobField& field : JobFields()) {
    if (std::find(own.begin(), own.end(), field.variable) != own.end()) {
      shared.push_back(field.variable);
    }
  }
  EXPECT_THAT(shared, UnorderedElementsAre("TOROID_SEED", "TOROID_DEVICE", "TOROID_COMPUTE",
                                           "TOROID_POD", "TOROID_ON_POOL"));
  for (const char* name : {"TOROID_CONTROLLER", "TOROID_MODELS", "TOROID_ISA", "TOROID_PROGRESS",
                           "TOROID_TLS_DIR", "TOROID_MAX_TOKENS"}) {
    EXPECT_THAT(own, Contains(name));
  }
}

TEST(JobSpec, UnknownVariablesAreToldWithTheNearest) {
  EXPECT_TRUE(
      UnknownVariables({{"TOROID_GENERATE_LOGPROBS", "1"}, {"TOROID_ISA", "avx2"}}).empty());
  EXPECT_THAT(UnknownVariables({{"TOROID_GENERATE_MAX_TOKEN", "1"}}),
              ElementsAre("unknown variable: TOROID_GENERATE_MAX_TOKEN: did you mean "
                          "TOROID_GENERATE_MAX_TOKENS?"));
  EXPECT_THAT(UnknownVariables({{"TOROID_XYZZY_PLUGH_FROTZ", ""}}),
              ElementsAre(HasSubstr("it is ignored")));
}

TEST(JobSpec, SettingsReadFiles) {
  const std::string path = Written("prompt.txt", "a=b");
  EXPECT_THAT(ReadSettings({absl::StrCat("generate.prompt.text=@", path), "a=b=c"}).value(),
              ElementsAre("generate.prompt.text=a=b", "a=b=c"));
  EXPECT_FALSE(ReadSettings({"nothing"}).ok());
}

}  // namespace
}  // namespace toroid
