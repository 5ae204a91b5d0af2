// The Jobs and Pods services: jobs, pools, watches that outlive their streams.
#include <gmock/gmock.h>
#include <poll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "rpc/error_info.h"
#include "tests/rpc/services_fixture.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

TEST_F(ServicesTest, JobFromSubmitToDelete) {
  const auto job = client_->SubmitJob(Job(), "key");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(client_->SubmitJob(Job(), "key")->id, job->id);
  JobSpec other = Job();
  other.priority = 1;
  EXPECT_EQ(client_->SubmitJob(other, "key").status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(client_->DeleteJob(job->id).code(), absl::StatusCode::kFailedPrecondition);
  StartPod();
  const JobStatus ended = AwaitEnd(job->id);
  EXPECT_EQ(ended.state, JobState::kSucceeded) << ended.message;
  EXPECT_EQ(std::get<GenerateResult>(ended.result).text, "abc");
  std::vector<LogLine> lines;
  const auto collect = [&](const LogLine& line) {
    lines.push_back(line);
    return true;
  };
  ASSERT_TRUE(client_->StreamLogs({job->id, 0, true, {}}, collect).ok());
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].text, "a world begins");
  const uint64_t offset = lines[0].next_offset;
  lines.clear();
  ASSERT_TRUE(client_->StreamLogs({job->id, offset, false, {1}}, collect).ok());
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].text, "rank one is here");
  EXPECT_EQ(client_->ListJobs({JobState::kSucceeded}, 0, "")->jobs.size(), 1u);
  EXPECT_TRUE(client_->DeleteJob(job->id).ok());
  EXPECT_EQ(client_->GetJob(job->id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(GetErrorInfo(client_->CancelJob("nope").status()).reason, "NO_JOB");
}

// From the controller's store to the ranks' plan: what lies in this directory is told with its
// branch.
TEST_F(ServicesTest, ALaunchThatTrainsHearsWhatIsCommitted) {
  StartPod();
  const std::string directory = absl::StrCat(::testing::TempDir(), "/committed-", getpid());
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/text.txt") << "text";
  auto spec = ParseJobSpec(
      R"(output { dir: "out" } model { path: "random:tiny" } max_restarts: 1 train { steps: 7
         data { path: "text" sequence_length: 8 batch_tokens: 16 } optimizer { adamw { lr: 1 } } })",
      {});
  ASSERT_TRUE(spec.ok()) << spec.status();
  std::get<TrainTask>(spec->task).plan.data.paths = {directory + "/text.txt"};
  spec->output_dir = directory;
  const auto job = client_->SubmitJob(*spec, "");
  ASSERT_TRUE(job.ok()) << job.status();
  const JobStatus ended = AwaitEnd(job->id);
  EXPECT_EQ(ended.state, JobState::kSucceeded) << ended.message;
  EXPECT_EQ(ended.restarts, 1);
  const std::lock_guard lock(gate_.mutex);
  ASSERT_EQ(gate_.trained.size(), 2u);
  EXPECT_EQ(gate_.trained[0].committed_step, 0);
  EXPECT_EQ(gate_.trained[1].committed_step, 5);
  EXPECT_EQ(gate_.trained[1].committed_branch, 2);
  std::filesystem::remove_all(directory);
}

// While the first client's program runs (it waits for the gate) the second's is made ready: its
// file is read, and may go away.
TEST_F(ServicesTest, ProgramsOfAPoolArePreparedWhileOthersRun) {
  StartPod();
  JobSpec pool;
  pool.name = "crew";
  pool.task = PoolTask();
  ASSERT_TRUE(client_->SubmitJob(pool, "").ok());
  const std::string path = absl::StrCat(::testing::TempDir(), "/pooled-", getpid(), ".txt");
  std::ofstream(path) << "abcdef";
  const int watch = inotify_init1(IN_CLOEXEC);
  ASSERT_GE(inotify_add_watch(watch, path.c_str(), IN_CLOSE_NOWRITE), 0);

  gate_.Set(false);
  std::promise<void> begun;
  GenerateObserver observer;
  observer.on_token = [&, told = false](const TokenEvent&) mutable {
    if (!std::exchange(told, true)) begun.set_value();
  };
  auto first = std::async(std::launch::async, [&] {
    InferenceRequest request = Request("abc");
    request.placement.on_pool = "crew";
    return client_->Generate(request, observer);
  });
  ASSERT_EQ(begun.get_future().wait_for(kLimit), std::future_status::ready);
  auto second = std::async(std::launch::async, [&] {
    InferenceRequest request = Request("");
    request.placement.on_pool = "crew";
    ScoreTask task;
    task.text.kind = PromptSpec::Kind::kFile;
    task.text.file = path;
    request.task = task;
    return client_->Score(request);
  });
  pollfd readable = {watch, POLLIN, 0};
  EXPECT_EQ(poll(&readable, 1, 10000), 1) << "the file was not read while the first ran";
  close(watch);
  std::filesystem::remove(path);
  EXPECT_EQ(second.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
  gate_.Set(true);
  const auto generated = first.get();
  const auto scored = second.get();
  ASSERT_TRUE(generated.ok()) << generated.status();
  EXPECT_EQ(generated->text, "abc");
  ASSERT_TRUE(scored.ok()) << scored.status();
  EXPECT_EQ(scored->tokens, 5);
}

// One of its programs runs, the others wait behind it, among those of another client.
TEST_F(ServicesTest, ADisconnectedClientFreesItsPlacesInAPool) {
  StartPod();
  JobSpec pool;
  pool.name = "crew";
  pool.task = PoolTask();
  ASSERT_TRUE(client_->SubmitJob(pool, "").ok());
  gate_.Set(false);
  ClientOptions options;
  options.controller = server_->address();
  std::atomic<bool> interrupt{false};
  options.interrupt = &interrupt;
  const auto leaver = NewClient(options);
  std::promise<void> begun;
  GenerateObserver observer;
  observer.on_token = [&, told = false](const TokenEvent&) mutable {
    if (!std::exchange(told, true)) begun.set_value();
  };
  std::vector<std::future<absl::Status>> left;
  const auto ask = [&](Client& client, const std::string& text, const GenerateObserver& heard) {
    InferenceRequest request = Request(text);
    request.placement.on_pool = "crew";
    return client.Generate(request, heard);
  };
  left.push_back(
      std::async(std::launch::async, [&] { return ask(*leaver, "abc", observer).status(); }));
  ASSERT_EQ(begun.get_future().wait_for(kLimit), std::future_status::ready);
  for (int i = 0; i < 20; ++i) {  // more than are sent ahead
    left.push_back(std::async(std::launch::async,
                              [&] { return ask(*leaver, "wxyz", GenerateObserver()).status(); }));
  }
  auto stays =
      std::async(std::launch::async, [&] { return ask(*client_, "de", GenerateObserver()); });
  interrupt = true;
  EXPECT_TRUE(gate_.Await([this] { return gate_.cancelled_programs >= 1; }));
  for (auto& answer : left) EXPECT_EQ(answer.get().code(), absl::StatusCode::kCancelled);
  gate_.Set(true);
  const auto answer = stays.get();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->text, "de");
}

TEST_F(ServicesTest, ProgramsOfAPoolFailAlone) {
  StartPod();
  JobSpec pool;
  pool.name = "crew";
  pool.task = PoolTask();
  const auto submitted = client_->SubmitJob(pool, "");
  ASSERT_TRUE(submitted.ok());
  const auto ask = [&](const std::string& model, const std::string& text) {
    InferenceRequest request = Request(text);
    request.placement.load.model = model;
    request.placement.on_pool = submitted->id;
    return client_->Generate(request, GenerateObserver());
  };
  EXPECT_THAT(std::string(ask("random:bad", "abc").status().message()), HasSubstr("unknown shape"));
  EXPECT_EQ(ask("random:tiny", "abc")->text, "abc");
  EXPECT_THAT(std::string(ask("random:tiny", std::string(101, 'x')).status().message()),
              HasSubstr("101"));
  EXPECT_THAT(std::string(ask("random:no-tokenizer", "abc").status().message()),
              HasSubstr("no tokenizer"));
  EXPECT_EQ(ask("random:tiny", "de")->text, "de");
  EXPECT_EQ(client_->GetJob(submitted->id)->state, JobState::kRunning);
}

TEST_F(ServicesTest, CancelledJobEndsAtTheNextLayer) {
  StartPod();
  gate_.Set(false);
  const auto job = client_->SubmitJob(Job(), "");
  ASSERT_TRUE(job.ok());
  JobState state = JobState::kQueued;
  ASSERT_TRUE(client_
                  ->WatchJob(job->id, 0,
                             [&](const JobEvent& event) {
                               state = event.status.state;
                               return state != JobState::kRunning;
                             })
                  .ok());
  ASSERT_EQ(state, JobState::kRunning);
  ASSERT_TRUE(client_->CancelJob(job->id).ok());
  EXPECT_EQ(AwaitEnd(job->id).state, JobState::kCancelled);
}

TEST_F(ServicesTest, PodsAreListedAndDrained) {
  EXPECT_EQ(client_->GetPod("a").status().code(), absl::StatusCode::kNotFound);
  StartPod();
  EXPECT_EQ(client_->GetPod("a")->slots, 2);
  EXPECT_EQ(client_->DrainPod("a", true)->state, "DRAINING");
  EXPECT_EQ(client_->DrainPod("a", false)->state, "READY");
  // A second agent of that name is refused while the first lives.
  std::mutex mutex;
  std::condition_variable changed;
  bool woken = false;
  auto twin = DialController(server_->address(), Tls(), {"a", "there", 2, kVersion, 8, {}}, [&] {
    const std::lock_guard<std::mutex> lock(mutex);
    woken = true;
    changed.notify_all();
  });
  std::unique_lock<std::mutex> lock(mutex);
  ASSERT_TRUE(changed.wait_for(lock, kLimit, [&] { return woken; }));
  const auto orders = twin->Take();
  ASSERT_EQ(orders.size(), 1u);
  EXPECT_EQ(std::get<StreamClosed>(orders[0]).why.code(), absl::StatusCode::kAlreadyExists);
  lock.unlock();
}

// A watch lives longer than its streams: each ends by its deadline, the next goes on where it
// ended.
TEST_F(ServicesTest, StreamsGoOnBeyondTheirDeadlines) {
  StartPod();
  gate_.Set(false);
  ClientOptions options;
  options.controller = server_->address();
  options.stream = absl::Milliseconds(60);
  const std::unique_ptr<Client> client = NewClient(options);
  const auto job = client_->SubmitJob(Job(), "");
  ASSERT_TRUE(job.ok()) << job.status();
  std::vector<uint64_t> sequences;
  std::vector<std::string> lines;
  JobState state = JobState::kQueued;
  auto watched = std::async(std::launch::async, [&] {
    return client->WatchJob(job->id, 1, [&](const JobEvent& event) {
      const bool progress = !sequences.empty() && event.sequence == sequences.back() &&
                            event.status.progress.has_value();
      if (!progress) sequences.push_back(event.sequence);
      state = event.status.state;
      return true;
    });
  });
  auto logged = std::async(std::launch::async, [&] {
    return client->StreamLogs({job->id, 0, /*follow=*/true, {}}, [&](const LogLine& line) {
      lines.push_back(line.text);
      return true;
    });
  });
  // Neither ends as long as the job goes on, and by then several streams have ended.
  EXPECT_EQ(watched.wait_for(std::chrono::milliseconds(400)), std::future_status::timeout);
  EXPECT_EQ(logged.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
  gate_.Set(true);
  EXPECT_TRUE(watched.get().ok());
  EXPECT_TRUE(logged.get().ok());
  EXPECT_EQ(state, JobState::kSucceeded);
  std::vector<uint64_t> all(sequences.size());
  std::iota(all.begin(), all.end(), uint64_t{1});
  EXPECT_GE(all.size(), 3u);
  EXPECT_EQ(sequences, all);  // nothing lost, nothing twice
  EXPECT_THAT(lines, ::testing::ElementsAre("a world begins", "rank one is here"));
}

}  // namespace
}  // namespace toroid
