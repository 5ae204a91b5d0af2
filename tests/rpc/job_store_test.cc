#include "rpc/job_store.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "rpc/log_store.h"

namespace toroid {
namespace {

class JobStoreTest : public ::testing::Test {
 protected:
  JobStoreTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    dir_ = absl::StrCat(::testing::TempDir(), "/store-", info->name(), "-", getpid());
    std::filesystem::create_directories(dir_);
  }
  ~JobStoreTest() override { std::filesystem::remove_all(dir_); }
  std::unique_ptr<JobStore> Open() {
    auto store = JobStore::Open(dir_ + "/jobs.sqlite");
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }
  std::string dir_;
};

TEST_F(JobStoreTest, SurvivesReopening) {
  {
    auto store = Open();
    ASSERT_TRUE(store->Insert({"a", 0, "r", std::string("s\0pec", 5), 0, "q", 1}, 7).ok());
    ASSERT_TRUE(store->Update("a", 3, "run", 2, 8).ok());
    EXPECT_EQ(*store->BumpEpoch("a", "p"), 1u);
  }
  auto store = Open();
  const auto job = store->GetByRequest("r");
  ASSERT_TRUE(job.ok());
  EXPECT_EQ(job->spec, std::string("s\0pec", 5));
  EXPECT_EQ(job->state, 3);
  EXPECT_EQ(job->sequence, 2u);
  EXPECT_EQ(store->Events("a", 1)->size(), 2u);
  EXPECT_EQ(*store->BumpEpoch("a", "p"), 2u);
  EXPECT_EQ(*store->BumpEpoch("a", "q"), 3u);  // a launch elsewhere is later too
  EXPECT_EQ(*store->BumpEpoch("a", "p"), 4u);
  EXPECT_EQ(*store->BumpEpoch("b", "p"), 1u);
}

TEST_F(JobStoreTest, KeysAreUniqueAndMissingIsNotFound) {
  auto store = Open();
  ASSERT_TRUE(store->Insert({"a", 0, "r", "s", 0, "q", 1}, 7).ok());
  EXPECT_EQ(store->Insert({"a", 0, "r2", "s", 0, "q", 1}, 7).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store->Insert({"b", 0, "r", "s", 0, "q", 1}, 7).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(store->Insert({"b", 0, "", "s", 0, "q", 1}, 7).ok());
  EXPECT_TRUE(store->Insert({"c", 0, "", "s", 0, "q", 1}, 7).ok());  // no key: no clash
  EXPECT_EQ(store->Get("z").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->Update("z", 1, "", 2, 0).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(store->Delete("a").ok());
  EXPECT_TRUE(store->Events("a", 0)->empty());
}

TEST_F(JobStoreTest, ACheckpointIsCommittedOnlyIfNoLaterEpochHasOne) {
  auto store = Open();
  ASSERT_TRUE(store->Insert({"a", 0, "", "spec", 0, "s0", 1}, 0).ok());
  EXPECT_EQ(store->Committed("a").status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(store->Commit("a", {2, 10, ~uint64_t{0}}, "s10").ok());
  EXPECT_EQ(store->Commit("a", {1, 20, 7}, "s20").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store->Get("a")->status, "s10");              // nothing of it came through
  ASSERT_TRUE(store->Commit("a", {2, 5, 6}, "s5").ok());  // a run that went back
  ASSERT_TRUE(store->Commit("a", {3, 6, 7}, "s6").ok());
  EXPECT_EQ(store->Commit("z", {3, 6, 7}, "s6").code(), absl::StatusCode::kNotFound);
  store.reset();
  store = Open();
  EXPECT_EQ(store->Committed("a")->epoch, 3u);
  EXPECT_EQ(store->Committed("a")->step, 6);
  EXPECT_EQ(store->Committed("a")->hash, 7u);
  EXPECT_EQ(store->Get("a")->status, "s6");
  EXPECT_EQ(store->Get("a")->sequence, 1u);  // no event
  ASSERT_TRUE(store->Delete("a").ok());
  EXPECT_EQ(store->Committed("a").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(JobStoreTest, OneControllerAtATime) {
  auto store = Open();
  const auto second = JobStore::Open(dir_ + "/jobs.sqlite");
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition) << second.status();
  store.reset();
  EXPECT_NE(Open(), nullptr);
}

// A writer is killed at an arbitrary instant: what it acknowledged is there, and nothing is torn.
TEST_F(JobStoreTest, AcknowledgedJobsSurviveKill) {
  int acknowledged[2];
  ASSERT_EQ(pipe(acknowledged), 0);
  const pid_t child = fork();
  if (child == 0) {
    auto store = JobStore::Open(dir_ + "/jobs.sqlite");
    if (!store.ok()) _exit(1);
    for (int i = 0;; ++i) {
      if (!(*store)->Insert({absl::StrCat("j", i), 0, "", "s", 0, "q", 1}, 0).ok()) _exit(2);
      if (write(acknowledged[1], &i, sizeof(i)) != sizeof(i)) _exit(3);
    }
  }
  close(acknowledged[1]);
  int last = -1;
  while (last < 20 && read(acknowledged[0], &last, sizeof(last)) == sizeof(last)) {
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  while (read(acknowledged[0], &last, sizeof(last)) == sizeof(last)) {
  }
  close(acknowledged[0]);
  ASSERT_GE(last, 20);
  auto store = Open();
  for (int i = 0; i <= last; ++i) {
    EXPECT_TRUE(store->Get(absl::StrCat("j", i)).ok()) << i;
    EXPECT_EQ(store->Events(absl::StrCat("j", i), 0)->size(), 1u);
  }
}

TEST_F(JobStoreTest, WhichPodsDrainIsKept) {
  {
    auto store = Open();
    EXPECT_TRUE(store->SetDraining("b", true).ok());
    EXPECT_TRUE(store->SetDraining("b", true).ok());
    EXPECT_TRUE(store->SetDraining("a", true).ok());
    EXPECT_TRUE(store->SetDraining("c", true).ok());
    EXPECT_TRUE(store->SetDraining("b", false).ok());
    EXPECT_TRUE(store->SetDraining("nobody", false).ok());
  }
  EXPECT_EQ(*Open()->Draining(), (std::vector<std::string>{"a", "c"}));
}

TEST_F(JobStoreTest, LogsResumeAtAnyLine) {
  LogStore logs(dir_, 1000);
  logs.Append("j", {{0, 0, false, "one"}, {0, 3, true, "two\nlines"}, {0, -1, true, ""}});
  auto lines = logs.Read("j", 0, 1 << 20);
  ASSERT_TRUE(lines.ok());
  ASSERT_EQ(lines->size(), 3u);
  EXPECT_EQ((*lines)[1].rank, 3);
  EXPECT_TRUE((*lines)[1].error);
  EXPECT_EQ((*lines)[1].text, "two lines");
  EXPECT_EQ((*lines)[2].rank, -1);
  auto rest = logs.Read("j", (*lines)[0].next_offset, 1 << 20);
  ASSERT_EQ(rest->size(), 2u);
  EXPECT_TRUE(logs.Read("j", logs.End("j"), 1)->empty());
  EXPECT_FALSE(logs.Read("j", 3, 1).ok());
  EXPECT_FALSE(logs.Read("j", 5000, 1).ok());
  for (int i = 0; i < 100; ++i) logs.Append("j", {{0, 0, false, "more and more words"}});
  EXPECT_LT(logs.End("j"), 1200u);
  EXPECT_NE(logs.Read("j", 0, 1 << 20)->back().text.find("log ends here"), std::string::npos);
}

}  // namespace
}  // namespace toroid
