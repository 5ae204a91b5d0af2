#include "core/train/data_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "tests/support/model_files.h"

namespace toroid {
namespace {

using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<std::string> NamesOf(const absl::StatusOr<std::vector<SourceFile>>& files) {
  TOROID_CHECK_MSG(files.ok(), files.status().ToString());
  std::vector<std::string> names;
  for (const SourceFile& file : *files) {
    names.push_back(std::filesystem::path(file.path).filename().string());
  }
  return names;
}

TEST(FindSources, ByPatternInOrderOnce) {
  const TemporaryDirectory directory;
  const std::string& path = directory.path();
  directory.Write("b.txt", "b");
  directory.Write("a.txt", "a");
  directory.Write("c.JSONL", "{}");
  directory.Write("[d].txt", "d");
  EXPECT_THAT(NamesOf(FindSources({path + "/?.txt"}, DataFormat::kByName)),
              ElementsAre("a.txt", "b.txt"));
  EXPECT_THAT(NamesOf(FindSources({path + "/b*", path + "/*"}, DataFormat::kByName)),
              ElementsAre("b.txt", "[d].txt", "a.txt", "c.JSONL"));
  EXPECT_THAT(NamesOf(FindSources({path + "/[d].txt"}, DataFormat::kByName)),
              ElementsAre("[d].txt"))
      << "a name before a pattern";
  const auto files = *FindSources({path + "/*"}, DataFormat::kByName);
  EXPECT_EQ(files[3].format, DataFormat::kJsonl);
  EXPECT_EQ(files[3].bytes, 2);
  EXPECT_EQ(files[1].format, DataFormat::kText);
  EXPECT_EQ((*FindSources({path + "/a.txt"}, DataFormat::kJsonl))[0].format, DataFormat::kJsonl);
}

TEST(FindSources, SaysWhatIsWrong) {
  const TemporaryDirectory directory;
  const std::string& path = directory.path();
  directory.Write("a.txt", "a");
  directory.Write("s.tokens", "s");
  directory.Write("x.jsonl.gz", "x");
  const auto message = [](const std::vector<std::string>& patterns) {
    return std::string(FindSources(patterns, DataFormat::kByName).status().message());
  };
  EXPECT_THAT(message({}), HasSubstr("the data has no path"));
  EXPECT_THAT(message({path + "/*.csv"}), EndsWith("/*.csv: no file matches"));
  EXPECT_THAT(message({path + "/none.txt"}), EndsWith("/none.txt: no file matches"));
  EXPECT_THAT(message({path}), HasSubstr(": a directory; name its files"));
  EXPECT_THAT(message({path + "/x*"}), HasSubstr("x.jsonl.gz: toroid reads text"));
  EXPECT_THAT(message({path + "/[as].*"}), HasSubstr("one is a token shard, the other is not"));
  EXPECT_THAT(message({"/dev/null"}), HasSubstr("/dev/null: not a regular file"));
}

// What each part of the file holds, all parts after each other.
absl::StatusOr<std::vector<std::string>> DocumentsOf(const SourceFile& file, int64_t portion_bytes,
                                                     const DocumentRule& rule = {}) {
  std::vector<std::string> documents;
  for (const auto& portion : CutSources({file}, rule, portion_bytes)) {
    for (const SourcePart& part : portion) {
      const auto status = ForEachDocument(file, part, rule, [&](std::string_view text) {
        documents.emplace_back(text);
        return absl::OkStatus();
      });
      if (!status.ok()) return status;
    }
  }
  return documents;
}

SourceFile WriteSource(const TemporaryDirectory& directory, const std::string& name,
                       const std::string& bytes) {
  return (*FindSources({directory.Write(name, bytes)}, DataFormat::kByName))[0];
}

TEST(Documents, OfTextAreFiles) {
  const TemporaryDirectory directory;
  const std::string text = "Call me Ishmael.\nSome years ago\n";
  EXPECT_THAT(*DocumentsOf(WriteSource(directory, "a.txt", text), 4), ElementsAre(text));
  EXPECT_THAT(*DocumentsOf(WriteSource(directory, "b.txt", "\xef\xbb\xbfhello"), 4),
              ElementsAre("hello"));
  EXPECT_THAT(*DocumentsOf(WriteSource(directory, "c.txt", ""), 4), IsEmpty());
}

TEST(Documents, OfJsonlAreLinesHoweverItIsCut) {
  const TemporaryDirectory directory;
  std::string text;
  std::vector<std::string> expected;
  for (int i = 0; i < 40; ++i) {
    expected.push_back(
        absl::StrCat("line ", i, std::string(size_t(i * i % 23), 'x'), "\n\"\xc3\xa9"));
    absl::StrAppend(&text, R"({"id":)", i, R"(, "text": "line )", i,
                    std::string(size_t(i * i % 23), 'x'), R"(\n\"\u00e9"})",
                    i % 5 == 0 ? "\r\n  \n" : "\n");
  }
  for (const bool newline_at_end : {true, false}) {
    if (!newline_at_end) text.pop_back();
    const SourceFile file = WriteSource(directory, "a.jsonl", text);
    for (const int64_t portion : {1, 2, 7, 50, 51, 64, 1000, 100'000}) {
      EXPECT_EQ(*DocumentsOf(file, portion), expected) << portion;
    }
  }
}

TEST(Documents, OfTextWithASeparatorHoweverItIsCut) {
  const TemporaryDirectory directory;
  const DocumentRule rule = {.separator = "<|end|>"};
  const SourceFile file =
      WriteSource(directory, "a.txt", "\xef\xbb\xbfone<|end|>two\n<|en|d|><|end|><|end|>\nfour");
  for (const int64_t portion : {1, 2, 5, 12, 13, 14, 30, 1000}) {
    EXPECT_THAT(*DocumentsOf(file, portion, rule),
                ElementsAre("one", "two\n<|en|d|>", "", "\nfour"))
        << portion;
  }
  EXPECT_EQ(DocumentsOf(file, 5)->size(), 1u) << "without it";
  const absl::Status status = ForEachDocument(
      file, {0, 13, 20}, rule, [](std::string_view) { return absl::InvalidArgumentError("bad"); });
  EXPECT_THAT(std::string(status.message()), EndsWith("a.txt: the document at byte 13: bad"));
}

TEST(DocumentRule, RefusesASeparatorThatCanOverlapItself) {
  for (const char* good : {"", "\n", "ab", "<|endoftext|>", "aab"}) {
    EXPECT_TRUE(Validate(DocumentRule{.separator = good}).ok()) << good;
  }
  for (const char* bad : {"\n\n", "aba", "abcab", "---"}) {
    EXPECT_THAT(std::string(Validate(DocumentRule{.separator = bad}).message()),
                HasSubstr("can overlap itself"))
        << bad;
  }
  EXPECT_THAT(std::string(Validate(DocumentRule{.separator = "\n\n"}).message()),
              HasSubstr("\"\\n\\n\""));
}

TEST(Documents, AreRefusedWithTheirPlace) {
  const TemporaryDirectory directory;
  const auto message = [&](const std::string& line) {
    const SourceFile file = WriteSource(directory, "a.jsonl", "{\"text\":\"good\"}\n" + line);
    return std::string(DocumentsOf(file, 1000).status().message());
  };
  EXPECT_THAT(message("{"), HasSubstr("a.jsonl: the line at byte 16: no valid JSON"));
  EXPECT_THAT(message("[1]"), HasSubstr("a.jsonl: the line at byte 16: no JSON object"));
  EXPECT_THAT(message("{}"), HasSubstr("byte 16: no text in its field \"text\""));
  EXPECT_THAT(message(R"({"text":7})"), HasSubstr("byte 16: no text in its field \"text\""));
  EXPECT_EQ(message(R"({"text":""})"), "");
  // An error about the text gets the place, another one stays.
  const SourceFile file = WriteSource(directory, "b.jsonl", "{\"text\":\"good\"}\n");
  const auto taking = [&](absl::Status status) {
    return std::string(
        ForEachDocument(file, {0, 0, 10}, {}, [&](std::string_view) { return status; }).message());
  };
  EXPECT_THAT(taking(absl::InvalidArgumentError("bad")), EndsWith("the line at byte 0: bad"));
  EXPECT_EQ(taking(absl::CancelledError("stop")), "stop");
}

TEST(Documents, OfAFileThatGrewAreRefused) {
  const TemporaryDirectory directory;
  const SourceFile file = WriteSource(directory, "a.txt", "short");
  directory.Write("a.txt", "longer than before");
  EXPECT_THAT(std::string(DocumentsOf(file, 10).status().message()),
              HasSubstr("a.txt: it had 5 bytes and now has 18"));
}

TEST(CutSources, SharesAndCuts) {
  const std::vector<SourceFile> files = {
      {"a", DataFormat::kText, 30}, {"b", DataFormat::kText, 30},   {"c", DataFormat::kText, 300},
      {"d", DataFormat::kText, 0},  {"e", DataFormat::kJsonl, 250}, {"f", DataFormat::kText, 50}};
  const auto portions = CutSources(files, {}, 100);
  EXPECT_THAT(portions,
              ElementsAre(ElementsAre(SourcePart{0, 0, 30}, SourcePart{1, 0, 30}),
                          ElementsAre(SourcePart{2, 0, 300}), ElementsAre(SourcePart{4, 0, 100}),
                          ElementsAre(SourcePart{4, 100, 200}),
                          ElementsAre(SourcePart{4, 200, 250}, SourcePart{5, 0, 50})));
}

}  // namespace
}  // namespace toroid
