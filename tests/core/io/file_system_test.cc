#include "core/io/file_system.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "tests/support/faulty_files.h"
#include "tests/support/model_files.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::Span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

void WriteSynced(FileSystem& files, const std::string& path, const std::string& text) {
  const auto file = files.Create(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->Append(Bytes(text)).ok());
  EXPECT_TRUE((*file)->Sync().ok());
  EXPECT_TRUE((*file)->Close().ok());
}

TEST(FileSystem, DoesWhatItSaysAndNamesThePath) {
  TemporaryDirectory directory;
  FileSystem& files = PosixFiles();
  const std::string run = directory.path() + "/a/b/run/";
  ASSERT_TRUE(CreateDirectories(files, run).ok());
  ASSERT_TRUE(CreateDirectories(files, run).ok());
  WriteSynced(files, run + "one", "hello");
  EXPECT_EQ(*ReadWhole(files, run + "one", 5), "hello");
  EXPECT_TRUE(absl::IsDataLoss(ReadWhole(files, run + "one", 4).status()));
  const auto file = files.Open(run + "one");
  std::vector<uint8_t> six(6);
  EXPECT_TRUE(absl::IsDataLoss((*file)->Read(0, absl::MakeSpan(six))));
  EXPECT_TRUE(absl::IsAlreadyExists(files.Create(run + "one").status()));
  EXPECT_TRUE(absl::IsNotFound(files.Open(run + "two").status()));
  EXPECT_THAT(std::string(files.Open(run + "two").status().message()), HasSubstr("/run/two"));
  EXPECT_TRUE(absl::IsDataLoss(files.Open(directory.path()).status()));
  EXPECT_TRUE(files.CreateDirectory(run + "d").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(files.CreateDirectory(run + "d")));
  EXPECT_THAT(*files.List(run), ElementsAre("d", "one"));
  WriteSynced(files, run + "d/x", "x");
  EXPECT_TRUE(absl::IsAlreadyExists(files.RemoveDirectory(run + "d")));
  EXPECT_TRUE(files.Rename(run + "d", run + "e").ok());
  EXPECT_TRUE(files.CreateDirectory(run + "d").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(files.Rename(run + "d", run + "e")));
  EXPECT_TRUE(files.SyncDirectory(run).ok());
  EXPECT_TRUE(RemoveTree(files, run + "e").ok());
  EXPECT_TRUE(RemoveTree(files, run + "e").ok());
  EXPECT_THAT(*files.List(run), ElementsAre("d", "one"));
}

// A limit on the size of files stands for the disk's end: the same path through the code.
TEST(FileSystem, NoSpaceIsResourceExhausted) {
  TemporaryDirectory directory;
  const auto file = PosixFiles().Create(directory.path() + "/f");
  ASSERT_TRUE(file.ok());
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 8;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status fits = (*file)->Append(Bytes("1234567"));
  const absl::Status full = (*file)->Append(Bytes("1234567"));
  EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_TRUE(fits.ok());
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
}

// The double that the tests of checkpoints rely on: what was not synced is gone.
TEST(FaultyFiles, LosePowerKeepsWhatWasSyncedAlone) {
  TemporaryDirectory directory, graveyard;
  FaultyFiles files(PosixFiles(), graveyard.path());
  const std::string root = directory.path();
  WriteSynced(files, root + "/unnamed", "synced, but its directory is not");
  files.LosePower();
  EXPECT_THAT(*files.List(root), IsEmpty());

  ASSERT_TRUE(files.CreateDirectory(root + "/d").ok());
  {
    const auto file = files.Create(root + "/d/half");
    EXPECT_TRUE((*file)->Append(Bytes("abc")).ok());
    EXPECT_TRUE((*file)->Sync().ok());
    EXPECT_TRUE((*file)->Append(Bytes("def")).ok());
  }
  ASSERT_TRUE(files.SyncDirectory(root + "/d").ok());
  WriteSynced(files, root + "/d/late", "its directory was synced before");
  ASSERT_TRUE(files.Rename(root + "/d", root + "/e").ok());
  ASSERT_TRUE(files.SyncDirectory(root).ok());
  files.LosePower();
  EXPECT_THAT(*files.List(root), ElementsAre("e"));
  EXPECT_THAT(*files.List(root + "/e"), ElementsAre("half"));
  EXPECT_EQ(*ReadWhole(files, root + "/e/half", 100), "abc");

  ASSERT_TRUE(files.Rename(root + "/e", root + "/f").ok());
  ASSERT_TRUE(RemoveTree(files, root + "/f").ok());
  EXPECT_THAT(*files.List(root), IsEmpty());
  files.LosePower();
  EXPECT_EQ(*ReadWhole(files, root + "/e/half", 100), "abc");
}

TEST(FaultyFiles, KillsFailsAndFills) {
  TemporaryDirectory directory, graveyard;
  FaultyFiles files(PosixFiles(), graveyard.path());
  const std::string path = directory.path() + "/f";
  files.FailAt(1);
  EXPECT_FALSE(files.Create(path).ok());
  const auto file = files.Create(path);
  files.SetSpace(3);
  EXPECT_TRUE(absl::IsResourceExhausted((*file)->Append(Bytes("abcdef"))));
  files.SetSpace(-1);
  files.KillAt(2);
  EXPECT_TRUE((*file)->Append(Bytes("d")).ok());
  EXPECT_FALSE((*file)->Append(Bytes("efgh")).ok());
  EXPECT_FALSE((*file)->Append(Bytes("ijkl")).ok());
  EXPECT_FALSE(files.RemoveFile(path).ok());
  EXPECT_EQ(*ReadWhole(files, path, 100), "abcdef");
}

}  // namespace
}  // namespace toroid
