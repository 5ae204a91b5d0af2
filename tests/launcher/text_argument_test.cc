#include "launcher/text_argument.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/str_cat.h"

namespace toroid {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string WriteTemporary(const std::string& text) {
  const std::string path =
      absl::StrCat(testing::TempDir(), "/text_argument_test_",
                   testing::UnitTest::GetInstance()->current_test_info()->name(), ".txt");
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

TEST(TextArgument, FilesAndTexts) {
  const std::string text("line\n\0end", 9);
  const std::string path = WriteTemporary(text);
  EXPECT_EQ(TextArgument(absl::StrCat("@", path)).value(), text);
  EXPECT_EQ(TextArgument("plain").value(), "plain");
  EXPECT_EQ(TextArgument("@@user").value(), "@user");
  EXPECT_EQ(TextArgument("@").value(), "@");
  EXPECT_EQ(TextArgument("").value(), "");
  const auto missing = TextArgument("@/nowhere/file");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("/nowhere/file"));
  EXPECT_FALSE(ReadTextFile("/").ok());  // a directory
}

TEST(TextArgument, IdsInSeveralForms) {
  for (const char* text : {"1,2,3", "1 2 3", "[1, 2, 3]", "1\n2\n3\n"}) {
    EXPECT_THAT(IdsArgument(text).value(), ElementsAre(1, 2, 3)) << text;
  }
  EXPECT_THAT(IdsArgument(absl::StrCat("@", WriteTemporary("[7,8]"))).value(), ElementsAre(7, 8));
  for (const char* text : {"", "[]", "1,x", "1.5", "-1", "99999999999"}) {
    EXPECT_EQ(IdsArgument(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace toroid
