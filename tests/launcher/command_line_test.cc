#include "launcher/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "launcher/exit_code.h"
#include "launcher/options.h"
#include "launcher/verbs.h"

namespace toroid {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

const OptionTable kTable = {"test",
                            {{"--prompt", ValueKind::kText, "T", "", "text"},
                             {"-n,--ranks", ValueKind::kCount, "N", "4", "ranks", true},
                             {"--temperature", ValueKind::kReal, "X", "0.5", "temperature", true},
                             {"-q,--quiet", ValueKind::kFlag, "", "", "quiet", true},
                             {"--tensor-parallel-size", ValueKind::kCount, "N", "", "tensor"},
                             {"--stop", ValueKind::kText, "T", "", "stop", false, true},
                             {"--format", ValueKind::kChoice, "text|json", "text", "format"},
                             {"--model", ValueKind::kText, "M", "", "model"}}};

Verb TestVerb() {
  return {.name = "test",
          .summary = "tests",
          .positionals = {{"MODEL", true, "a model"}},
          .tables = {&kTable},
          .examples = "toroid test M --prompt x"};
}

std::string Error(const std::vector<std::string>& words, const Verb& verb = TestVerb()) {
  const auto arguments = ParseArguments(verb, words);
  if (arguments.ok()) return "";
  EXPECT_EQ(ExitCodeOf(arguments.status()), kExitUsage);
  return std::string(arguments.status().message());
}

class Environment {  // sets a variable for a scope
 public:
  Environment(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Environment() { unsetenv(name_); }

 private:
  const char* name_;
};

TEST(CommandLine, ValuesKeepEveryCharacter) {
  for (const char* text :
       {"[a,b]", "{x}", "-", "-5", "--mesh", "%%", "a b", "\"q\"", "'", "\n", "@"}) {
    const auto arguments = ParseArguments(TestVerb(), {"M", "--prompt", text});
    ASSERT_TRUE(arguments.ok()) << text << ": " << arguments.status();
    EXPECT_EQ(arguments->Text("--prompt"), text);
  }
  const auto empty = ParseArguments(TestVerb(), {"--prompt=", "M", "-q"}).value();
  EXPECT_TRUE(empty.Has("--prompt"));
  EXPECT_EQ(empty.Text("--prompt"), "");
  EXPECT_EQ(empty.Text("MODEL"), "M");
  EXPECT_TRUE(empty.Flag("--quiet"));
}

TEST(CommandLine, FormsOfOneOption) {
  for (const std::vector<std::string>& words : std::vector<std::vector<std::string>>{
           {"M", "-n", "32k"}, {"M", "-n32k"}, {"M", "--ranks=32k"}, {"--ranks", "32k", "M"}}) {
    EXPECT_EQ(ParseArguments(TestVerb(), words).value().Count("--ranks"), 32768);
  }
  EXPECT_EQ(ParseArguments(TestVerb(), {"M", "-tp", "2"}).value().Count("--tensor-parallel-size"),
            2);
  EXPECT_EQ(ParseArguments(TestVerb(), {"M", "-tp=2"}).value().Count("--tensor-parallel-size"), 2);
  EXPECT_EQ(ParseArguments(TestVerb(), {"--model", "M"}).value().Text("MODEL"), "M");
  EXPECT_THAT(
      ParseArguments(TestVerb(), {"M", "--stop", "a", "--stop", "b"}).value().Texts("--stop"),
      ElementsAre("a", "b"));
  EXPECT_EQ(ParseArguments(TestVerb(), {"M", "--temperature", "1", "--temperature", "-2"})
                .value()
                .Real("--temperature"),
            -2);
  EXPECT_EQ(ParseArguments(TestVerb(), {"--", "-M"}).value().Text("MODEL"), "-M");
}

TEST(CommandLine, FlagBeatsEnvironmentBeatsDefault) {
  EXPECT_EQ(ParseArguments(TestVerb(), {"M"}).value().Count("--ranks"), 4);
  EXPECT_EQ(ParseArguments(TestVerb(), {"M"}).value().OriginOf("--ranks"), Origin::kDefault);
  Environment ranks("TOROID_RANKS", "7"), prompt("TOROID_PROMPT", "not read");
  const auto from_environment = ParseArguments(TestVerb(), {"M"}).value();
  EXPECT_EQ(from_environment.Count("--ranks"), 7);
  EXPECT_EQ(from_environment.OriginOf("--ranks"), Origin::kEnvironment);
  EXPECT_FALSE(from_environment.Has("--prompt"));
  const auto from_flag = ParseArguments(TestVerb(), {"M", "-n", "9"}).value();
  EXPECT_EQ(from_flag.Count("--ranks"), 9);
  EXPECT_EQ(from_flag.OriginOf("--ranks"), Origin::kFlag);
}

TEST(CommandLine, EnvironmentIsCheckedAndNamed) {
  {
    Environment ranks("TOROID_RANKS", "many");
    EXPECT_THAT(Error({"M"}), HasSubstr("TOROID_RANKS"));
    EXPECT_EQ(Error({"M", "-n", "2"}), "");
  }
  Environment quiet("TOROID_QUIET", "0");
  EXPECT_FALSE(ParseArguments(TestVerb(), {"M"}).value().Flag("--quiet"));
}

TEST(CommandLine, MistakesNameTheWordAndTheRemedy) {
  EXPECT_THAT(Error({"M", "--promt", "x"}), HasSubstr("--promt: did you mean --prompt?"));
  EXPECT_THAT(Error({"M", "--promt=x"}), HasSubstr("unknown flag: --promt: did you mean"));
  EXPECT_THAT(Error({"M", "--prompt"}), HasSubstr("missing value: --prompt"));
  EXPECT_THAT(Error({}), HasSubstr("missing argument: MODEL"));
  EXPECT_THAT(Error({"M", "N"}), HasSubstr("too many arguments: 'N'"));
  EXPECT_THAT(Error({"M", "-n", "x"}), HasSubstr("--ranks: not a number: 'x'"));
  EXPECT_THAT(Error({"M", "--format", "jsno"}),
              HasSubstr("did you mean json? give one of text|json"));
}

TEST(CommandLine, TheRestIsLeftAlone) {
  Verb verb = TestVerb();
  verb.positionals.clear();
  verb.takes_rest = true;
  const auto arguments =
      ParseArguments(verb, {"-n", "2", "generate", "M", "-n", "3", "--prompt="}).value();
  EXPECT_EQ(arguments.Count("--ranks"), 2);
  EXPECT_THAT(arguments.rest(), ElementsAre("generate", "M", "-n", "3", "--prompt="));
  EXPECT_THAT(Error({"--rnks", "2", "generate"}, verb), HasSubstr("did you mean --ranks?"));
}

TEST(CommandLine, HelpIsAskedOfTheVerbItFollows) {
  EXPECT_TRUE(AsksForHelp(TestVerb(), {"M", "--help"}));
  EXPECT_FALSE(AsksForHelp(TestVerb(), {"M", "--", "--help"}));
  EXPECT_FALSE(AsksForHelp(TestVerb(), {"M", "--prompt", "-h"}));  // a value
  Verb verb = TestVerb();
  verb.takes_rest = true;
  EXPECT_TRUE(AsksForHelp(verb, {"-n", "2", "-q", "--help"}));
  EXPECT_FALSE(AsksForHelp(verb, {"generate", "--help"}));
  EXPECT_FALSE(AsksForHelp(verb, {"-n", "2", "generate", "--help"}));
  EXPECT_FALSE(AsksForHelp(verb, {"-n2", "-q", "generate", "--help"}));
}

TEST(CommandLine, EveryVerbExplainsItself) {
  ASSERT_FALSE(Verbs().empty());
  for (const Verb* verb : Verbs()) {
    const std::string help = HelpText(*verb);
    EXPECT_THAT(help, HasSubstr("examples:")) << verb->name;
    EXPECT_THAT(help, HasSubstr(std::string("toroid ") + verb->name)) << verb->name;
    // Names are unique among the tables of a verb, and defaults pass their own checks.
    std::vector<std::string> words;
    for (const Positional& p : verb->positionals) words.emplace_back(p.required ? "x" : "y");
    EXPECT_TRUE(ParseArguments(*verb, words).ok()) << verb->name;
  }
}

TEST(CommandLine, TheFirstOfTwoWordsExplainsWhatItBegins) {
  for (const char* word : {"job", "pod", "config", "pki"}) {
    EXPECT_THAT(GroupHelp(word), HasSubstr(absl::StrCat("usage: toroid ", word, " VERB"))) << word;
  }
  EXPECT_THAT(GroupHelp("pod"), HasSubstr("  pod drain"));
  EXPECT_THAT(GroupHelp("pod"), Not(HasSubstr("  job")));
  EXPECT_EQ(GroupHelp("po"), "");
  EXPECT_EQ(GroupHelp("generate"), "");
}

TEST(CommandLine, WhatFollowsTheOptionsHasItsName) {
  for (const Verb* verb : Verbs()) {
    const bool launch = std::string(verb->name) == "launch";
    EXPECT_EQ(absl::StrContains(HelpText(*verb), "VERB ..."), launch) << verb->name;
  }
  EXPECT_THAT(HelpText(*FindVerb({"pki", "issue"}).value().verb), HasSubstr("HOST ...\n"));
}

// What a job's file says is the default, so that no other may be shown.
TEST(CommandLine, HelpShowsNoDefaultWhereTheJobsIsTaken) {
  for (const Verb* verb : Verbs()) {
    if (verb->name == std::string("train")) {
      const std::string help = HelpText(*verb);
      const size_t begin = help.find("the job:"), end = help.find("\n\n", begin);
      ASSERT_LT(begin, end) << help;
      EXPECT_THAT(help.substr(begin, end - begin), testing::Not(HasSubstr("["))) << help;
      EXPECT_THAT(help.substr(end), HasSubstr("["));  // negative control: others have some
    }
    if (verb->name == std::string("plan")) {
      EXPECT_THAT(HelpText(*verb), HasSubstr("Of a job's file all is as the file says"));
    }
  }
}

TEST(Verbs, UnknownPlannedAndAliased) {
  const auto error = [](const std::vector<std::string>& words) {
    return std::string(FindVerb(words).status().message());
  };
  EXPECT_THAT(error({"genrate"}), HasSubstr("did you mean generate?"));
  EXPECT_THAT(error({"job", "sumbit"}), HasSubstr("did you mean submit?"));
  EXPECT_THAT(error({"job"}), HasSubstr("submit|list|get"));
  EXPECT_EQ(std::string(FindVerb({"jobs"}).value().verb->name), "job list");
  EXPECT_THAT(error({"serve", "x"}), HasSubstr("not in this version: serve"));
  EXPECT_THAT(error({"job", "suspend", "x"}), HasSubstr("not in this version: job suspend"));
  EXPECT_EQ(ExitCodeOf(FindVerb({"serve"}).status()), kExitUsage);
  EXPECT_EQ(std::string(FindVerb({"--version"}).value().verb->name), "version");
}

TEST(Options, ParallelSizesBecomeAMesh) {
  const Verb verb = {.name = "t", .summary = "", .positionals = {}, .tables = {&kMeshOptions}};
  const auto mesh = [&](const std::vector<std::string>& words) {
    return MeshText(ParseArguments(verb, words).value());
  };
  EXPECT_EQ(mesh({}).value(), "");
  EXPECT_EQ(mesh({"--mesh", "ring=2"}).value(), "ring=2");
  EXPECT_EQ(mesh({"-tp", "2"}).value(), "tensor=2,ring=*");
  EXPECT_EQ(mesh({"-tp", "2", "-cp", "4", "-dp", "1"}).value(), "data=1,ring=4,tensor=2");
  EXPECT_EQ(ExitCodeOf(mesh({"-tp", "2", "--mesh", "ring=2"}).status()), kExitUsage);
}

}  // namespace
}  // namespace toroid
