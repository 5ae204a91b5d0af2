#include "core/io/atomic_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>

#include "core/io/mapped_file.h"
#include "tests/support/model_files.h"

namespace toroid {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

absl::Span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::vector<std::string> NamesIn(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

TEST(AtomicFile, AppearsWholeOrNotAtAll) {
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/f";
  {
    auto file = AtomicFile::Create(path);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE(file->Append(Bytes("....tail")).ok());
    ASSERT_TRUE(file->Overwrite(0, Bytes("head")).ok());
    EXPECT_EQ(file->written(), 8);
    EXPECT_FALSE(std::filesystem::exists(path));
    ASSERT_TRUE(file->Commit().ok());
  }
  EXPECT_EQ(*ReadTextFile(path, 100), "headtail");
  {
    auto file = AtomicFile::Create(path);
    ASSERT_TRUE(file->Append(Bytes("new")).ok());
  }
  EXPECT_EQ(*ReadTextFile(path, 100), "headtail") << "not committed";
  EXPECT_THAT(NamesIn(directory.path()), ElementsAre("f"));
}

TEST(AtomicFile, ErrorsNameThePath) {
  const auto file = AtomicFile::Create("/nowhere/f");
  EXPECT_EQ(file.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("/nowhere/f: No such file"));
}

TEST(AtomicFile, RemovesWhatNobodyWritesAnyMore) {
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/f";
  directory.Write("f.partial-aaaaaa", "of a killed writer");
  directory.Write("g.partial-aaaaaa", "of another file");
  {
    auto living = AtomicFile::Create(path);
    ASSERT_TRUE(AtomicFile::RemoveAbandoned(path).ok());
    EXPECT_EQ(NamesIn(directory.path()).size(), 2u);
    EXPECT_THAT(NamesIn(directory.path()), testing::Not(testing::Contains("f.partial-aaaaaa")));
    ASSERT_TRUE(living->Commit().ok());
  }
  EXPECT_THAT(NamesIn(directory.path()), UnorderedElementsAre("f", "g.partial-aaaaaa"));
}

}  // namespace
}  // namespace toroid
