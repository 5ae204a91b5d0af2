#include "rpc/agent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "rpc/agent_process.h"
#include "rpc/error_info.h"
#include "rpc/rank_record.h"
#include "rpc/rank_watch.h"
#include "rpc/roots.h"
#include "rpc/worker_process.h"
#include "rpc/world_process.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class AgentTest : public ::testing::Test {
 protected:
  AgentTest()
      : agent_({[this](const LaunchOrder&) -> absl::StatusOr<int> {
                  if (refuse_) return absl::NotFoundError("no such file");
                  return 100;
                },
                [this](int, int signal) { signals_.push_back(signal); },
                [this](const AgentReport& report) { reports_.push_back(report); }},
               [this] { return now_; }) {}
  LaunchOrder Order(const std::string& job, uint64_t epoch) {
    LaunchOrder order;
    order.world = {job, epoch, 1};
    return order;
  }
  void Advance(absl::Duration duration) {
    now_ += duration;
    agent_.Tick();
  }

  absl::Time now_ = absl::FromUnixSeconds(1700000000);
  bool refuse_ = false;
  std::vector<int> signals_;
  std::vector<AgentReport> reports_;
  Agent agent_;
};

TEST_F(AgentTest, StopIsTermThenKill) {
  agent_.Launch(Order("j", 1));
  EXPECT_EQ(agent_.running().size(), 1u);
  agent_.Stop({"j", 1, 0});
  EXPECT_THAT(signals_, ElementsAre(SIGTERM));
  Advance(absl::Milliseconds(1900));
  EXPECT_THAT(signals_, ElementsAre(SIGTERM));
  Advance(absl::Milliseconds(200));
  EXPECT_THAT(signals_, ElementsAre(SIGTERM, SIGKILL));
  agent_.ChildEnded({137, 9, -1, "", ""});
  ASSERT_EQ(reports_.size(), 1u);
  EXPECT_TRUE(std::holds_alternative<WorldExit>(reports_[0].body));
  EXPECT_TRUE(agent_.running().empty());
}

TEST(RankWatch, SeesThatAProcessOfThisHostHasEnded) {
  const std::string dir = absl::StrCat(::testing::TempDir(), "/rank-watch-", getpid());
  std::filesystem::create_directories(dir);
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  absl::Time now = absl::FromUnixSeconds(1700000000);
  RankWatch watch;
  watch.Begin(dir, 3, "here");
  EXPECT_FALSE(watch.Ended(now).has_value());  // nobody has noted itself yet
  std::ofstream(dir + "/rank-0") << getpid() << " here\n";
  std::ofstream(dir + "/rank-1") << child << " elsewhere\n";
  std::ofstream(dir + "/rank-2") << child << " here\n";
  EXPECT_FALSE(watch.Ended(now += absl::Seconds(1)).has_value());
  kill(child, SIGKILL);
  std::optional<RankRecord> ended;
  for (int i = 0; i < 1000 && !ended.has_value(); ++i) {
    ended = watch.Ended(now);
    usleep(5000);
  }
  ASSERT_TRUE(ended.has_value());
  EXPECT_EQ(ended->rank, 2);
  EXPECT_EQ(ended->host, "here");
  EXPECT_FALSE(watch.Ended(now += absl::Seconds(1)).has_value());  // once
  waitpid(child, nullptr, 0);
  std::filesystem::remove_all(dir);
}

TEST_F(AgentTest, LowerEpochsAreDroppedAndCounted) {
  agent_.Launch(Order("j", 2));
  agent_.ChildEnded({});
  agent_.Launch(Order("j", 2));
  agent_.Launch(Order("j", 1));
  EXPECT_EQ(agent_.stale_dropped(), 2u);
  EXPECT_TRUE(agent_.running().empty());
  agent_.Launch(Order("j", 3));
  EXPECT_EQ(agent_.running().size(), 1u);
  agent_.Stop({"j", 2, 0});  // an old order does not end the new world
  EXPECT_TRUE(signals_.empty());
}

TEST_F(AgentTest, RefusesASecondWorldAndReportsAFailedStart) {
  agent_.Launch(Order("j", 1));
  agent_.Launch(Order("k", 1));
  ASSERT_EQ(reports_.size(), 1u);
  EXPECT_EQ(std::get<absl::Status>(reports_[0].body).code(), absl::StatusCode::kUnavailable);
  agent_.ChildEnded({});
  refuse_ = true;
  agent_.Launch(Order("l", 1));
  EXPECT_EQ(std::get<absl::Status>(reports_.back().body).code(), absl::StatusCode::kNotFound);
}

TEST_F(AgentTest, LeaseEndsTheWorld) {
  agent_.RenewLease(absl::Seconds(15));
  agent_.Launch(Order("j", 1));
  Advance(absl::Seconds(14));
  agent_.RenewLease(absl::Seconds(15));
  Advance(absl::Seconds(14));
  EXPECT_TRUE(signals_.empty());
  Advance(absl::Seconds(2));
  EXPECT_THAT(signals_, ElementsAre(SIGTERM));
}

// --- real processes
// -------------------------------------------------------------------------------
int AwaitExit(WorldProcess& process, std::vector<LogLine>* lines) {
  int wait_status = -1;
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (absl::Now() < deadline) {
    pollfd fds[] = {{process.exit_fd(), POLLIN, 0},
                    {process.output_fd(), POLLIN, 0},
                    {process.error_fd(), POLLIN, 0}};
    (void)poll(fds, 3, 100);
    const bool ended = process.Reap(&wait_status);
    for (LogLine& line : process.ReadLines(ended)) lines->push_back(std::move(line));
    if (ended) return wait_status;
  }
  return -1;
}

TEST(WorldProcessTest, CapturesOutputAndExit) {
  auto process = WorldProcess::Start(
      {"/bin/sh", "-c", "echo out; echo err >&2; printf tail; exit 3"}, {"PATH=/bin:/usr/bin"});
  ASSERT_TRUE(process.ok()) << process.status();
  std::vector<LogLine> lines;
  const int status = AwaitExit(*process, &lines);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 3);
  ASSERT_EQ(lines.size(), 3u);
  std::vector<std::string> texts;
  for (const LogLine& line : lines) texts.push_back(line.text);
  EXPECT_THAT(texts, ::testing::UnorderedElementsAre("out", "err", "tail"));
}

// What a world leaves behind, even in another process group or session, is gone with it.
TEST(WorldProcessTest, LeavesNoOrphan) {
  auto process = WorldProcess::Start(
      {"/bin/sh", "-c", "setsid sleep 600 & echo $!; sleep 600 & echo $!; exit 0"},
      {"PATH=/bin:/usr/bin"});
  ASSERT_TRUE(process.ok()) << process.status();
  std::vector<LogLine> lines;
  ASSERT_EQ(AwaitExit(*process, &lines), 0);
  ASSERT_EQ(lines.size(), 2u);
  for (const LogLine& line : lines) {
    const int pid = std::atoi(line.text.c_str());
    ASSERT_GT(pid, 1);
    EXPECT_NE(kill(pid, 0), 0) << pid;
  }
}

TEST(WorldProcessTest, MissingProgramExits127) {
  auto process = WorldProcess::Start({"/nonexistent/mpirun"}, {});
  ASSERT_TRUE(process.ok());
  std::vector<LogLine> lines;
  EXPECT_EQ(WEXITSTATUS(AwaitExit(*process, &lines)), 127);
}

TEST(WorldProcessTest, EnvironmentIsAllowListed) {
  setenv("LD_PRELOAD_TEST_SECRET", "x", 1);
  setenv("TOROID_TEST_VARIABLE", "x", 1);
  setenv("TOROID_CONTROLLER", "x", 1);
  const std::vector<std::string> names = AllowedEnvironment();
  EXPECT_THAT(names, ::testing::Contains("TOROID_TEST_VARIABLE=x"));
  EXPECT_THAT(names, ::testing::Not(::testing::Contains(HasSubstr("SECRET"))));
  EXPECT_THAT(names, ::testing::Not(::testing::Contains(HasSubstr("TOROID_CONTROLLER"))));
  unsetenv("LD_PRELOAD_TEST_SECRET");
  unsetenv("TOROID_TEST_VARIABLE");
  unsetenv("TOROID_CONTROLLER");
}

// --- files
// ----------------------------------------------------------------------------------------
class FilesTest : public ::testing::Test {
 protected:
  FilesTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    dir_ = absl::StrCat(::testing::TempDir(), "/files-", info->name(), "-", getpid());
    std::filesystem::create_directories(dir_ + "/root/sub");
    std::filesystem::create_directories(dir_ + "/rootlike");
    dir_ = std::filesystem::canonical(dir_).string();
  }
  ~FilesTest() override { std::filesystem::remove_all(dir_); }
  std::string dir_;
};

TEST_F(FilesTest, PathsStayUnderTheRoots) {
  const auto root = ParseRoot("r=" + dir_ + "/root");
  ASSERT_TRUE(root.ok());
  const std::vector<Root> roots = {*root};
  EXPECT_EQ(*ResolvePath("r/sub", roots), dir_ + "/root/sub");
  EXPECT_EQ(*ResolvePath(dir_ + "/root/sub", roots), dir_ + "/root/sub");
  EXPECT_EQ(*ResolvePath("random:tiny", {}), "random:tiny");
  std::filesystem::create_symlink("/etc", dir_ + "/root/link");
  for (const std::string& path :
       {std::string("/etc/passwd"), std::string("r/../rootlike"), std::string("r/link/passwd"),
        dir_ + "/rootlike", std::string("r/sub/../../rootlike")}) {
    EXPECT_EQ(ResolvePath(path, roots).status().code(), absl::StatusCode::kPermissionDenied)
        << path;
  }
  const absl::Status none = ResolvePath("r/none", roots).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  EXPECT_THAT(std::string(none.message()),
              ::testing::HasSubstr(absl::StrCat("r/none on host ", host)));
  EXPECT_EQ(ResolvePath("other/none", roots).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(ResolvePath(std::string("r/a\0b", 5), roots).ok());
  EXPECT_TRUE(MakeOutputDirectory("r/out/deep", roots).ok());
  EXPECT_TRUE(std::filesystem::is_directory(dir_ + "/root/out/deep"));
  EXPECT_FALSE(MakeOutputDirectory("r/link/out", roots).ok());
  EXPECT_FALSE(ParseRoot("r").ok());
  EXPECT_FALSE(ParseRoot("r=/nonexistent").ok());
}

TEST_F(FilesTest, ClientsHearTheNamesOfRootsAlone) {
  const std::vector<Root> roots = {{"r", dir_ + "/root"}, {"deep", dir_ + "/root/sub"}};
  std::vector<std::string> log;
  const auto said = [&](const absl::Status& status) {
    const absl::Status told =
        ForClient(status, roots, [&](const std::string& kept) { log.push_back(kept); });
    EXPECT_EQ(told.code(), status.code());
    EXPECT_EQ(GetErrorInfo(told).reason, GetErrorInfo(status).reason);
    EXPECT_THAT(told.ToString(), ::testing::Not(HasSubstr(dir_)));
    return std::string(told.message());
  };
  for (const char* path : {"/etc/passwd", "r/../rootlike", "r/../rootlike/new", "other/x"}) {
    EXPECT_THAT(said(ResolvePath(path, roots).status()), HasSubstr("the roots are r, deep"));
    EXPECT_THAT(said(MakeOutputDirectory(path, roots).status()), HasSubstr("the roots are r"));
  }
  ASSERT_EQ(log.size(), 6u);  // "other" leads nowhere
  EXPECT_THAT(log[0], HasSubstr("/etc/passwd leads to /etc/passwd"));
  EXPECT_THAT(log[2], HasSubstr(absl::StrCat("r/../rootlike leads to ", dir_, "/rootlike")));
  EXPECT_THAT(log[0], HasSubstr(absl::StrCat("deep=", dir_, "/root/sub")));  // negative control
  log.clear();
  const absl::Status below = absl::NotFoundError(absl::StrCat("no file: ", dir_, "/root/m/a.json"));
  EXPECT_EQ(said(below), "no file: r/m/a.json");
  EXPECT_THAT(log, ::testing::ElementsAre(below.message()));
  EXPECT_EQ(said(MakeError(absl::StatusCode::kNotFound, "x", {"WHY", {{"p", dir_ + "/root"}}, {}})),
            "x");
  EXPECT_EQ(NameRoots(absl::StrCat(dir_, "/root/sub/x, ", dir_, "/root: "), roots), "deep/x, r: ");
  // What only looks like it stays: a neighbour, a part of a longer path, and everything under "/".
  for (const std::string& other : {dir_ + "/rootlike/x", "/a" + dir_ + "/root", std::string("/")}) {
    EXPECT_EQ(NameRoots(other, roots), other);
  }
  EXPECT_EQ(NameRoots("/x", {{"all", "/"}}), "/x");
}

TEST_F(FilesTest, LaunchFileIsPrivate) {
  const std::string path = dir_ + "/launch.json";
  WorkerOptions options{"127.0.0.1:1", "j", 3, 4, "a", "secret", dir_, {{"r", dir_}}, "pki/a"};
  options.throttle = {1e6, absl::Milliseconds(5), absl::Milliseconds(20), absl::Seconds(3), 9};
  ASSERT_TRUE(WriteLaunchFile(path, options).ok());
  struct stat info;
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  const auto read = ReadLaunchFile(path);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->credential, "secret");
  EXPECT_EQ(read->tls_dir, "pki/a");
  EXPECT_EQ(read->epoch, 3u);
  EXPECT_EQ(read->roots.at(0).name, "r");
  EXPECT_EQ(read->throttle.bytes_per_second, 1e6);
  EXPECT_EQ(read->throttle.latency, absl::Milliseconds(5));
  EXPECT_EQ(read->throttle.jitter, absl::Milliseconds(20));
  EXPECT_EQ(read->throttle.cut_every, absl::Seconds(3));
  EXPECT_EQ(read->throttle.seed, 9u);
  chmod(path.c_str(), 0644);
  EXPECT_EQ(ReadLaunchFile(path).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ReadLaunchFile(dir_ + "/none").status().code(), absl::StatusCode::kNotFound);
  // Ranks of a host that does not see the file: what rank 0 reads is all ranks'.
  chmod(path.c_str(), 0600);
  RunOnRanks(3, [&](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();
    const auto shared = ShareLaunchFile(*world, ReadLaunchFile(rank == 2 ? dir_ + "/none" : path));
    ASSERT_TRUE(shared.ok()) << shared.status();
    EXPECT_EQ(shared->credential, "secret");
    EXPECT_EQ(shared->roots.at(0).dir, dir_);
    const absl::Status none =
        ShareLaunchFile(*world, ReadLaunchFile(rank == 0 ? dir_ + "/none" : path)).status();
    EXPECT_EQ(none.code(), absl::StatusCode::kNotFound) << none;
    EXPECT_NE(none.message().find("first in --hosts"), none.message().npos) << none;
  });
  RecordRank(options, 1);
  const auto records = ReadRankRecords(dir_, 4);
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].rank, 1);
  EXPECT_EQ(records[0].pid, getpid());
}

}  // namespace
}  // namespace toroid
