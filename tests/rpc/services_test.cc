// Every service over real gRPC in one process: a controller, a fake agent that launches fake worlds
// as threads, and the client. No mpirun, ports chosen by the kernel.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <future>
#include <mutex>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "core/text/tokenizer.h"
#include "core/version.h"
#include "rpc/agent_client.h"
#include "rpc/client.h"
#include "rpc/error_info.h"
#include "rpc/server.h"
#include "rpc/worker_process.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

constexpr auto kLimit = std::chrono::seconds(20);

// What a test lets a fake world do.
struct Gate {
  std::mutex mutex;
  std::condition_variable changed;
  bool open = true;
  int cancelled_programs = 0;

  void Set(bool value) {
    const std::lock_guard<std::mutex> lock(mutex);
    open = value;
    changed.notify_all();
  }
  template <typename Condition>
  bool Await(Condition condition) {
    std::unique_lock<std::mutex> lock(mutex);
    return changed.wait_for(lock, kLimit, condition);
  }
};

// One answer: the prompt again. After each token it waits for the gate.
GenerateResult RepeatOnce(uint64_t number, const std::vector<int32_t>& prompt, int64_t prompt_index,
                          int64_t index, const ProgramChannel& channel, Gate& gate) {
  GenerateResult result;
  result.finish = FinishReason::kStop;
  result.prompt_index = prompt_index;
  result.index = index;
  for (int32_t id : prompt) {
    result.ids.push_back(id);
    result.text += static_cast<char>(id);
    const bool last = result.ids.size() == prompt.size();
    channel.on_token(number,
                     {id, std::string(1, static_cast<char>(id)), -1, prompt_index, index, last});
    std::unique_lock<std::mutex> lock(gate.mutex);
    while (!gate.open && !channel.cancelled(number)) {
      gate.changed.wait_for(lock, std::chrono::milliseconds(5));
    }
    if (!channel.cancelled(number)) continue;
    result.finish = FinishReason::kCancelled;
    ++gate.cancelled_programs;
    gate.changed.notify_all();
    break;
  }
  return result;
}

GenerateResult Repeat(const Program& program, const ProgramChannel& channel, Gate& gate) {
  std::vector<std::vector<int32_t>> prompts = program.generate.more_prompt_ids;
  prompts.insert(prompts.begin(), program.generate.prompt_ids);
  std::vector<GenerateResult> answers;
  for (size_t p = 0; p < prompts.size(); ++p) {
    for (int64_t i = 0; i < program.generate.n; ++i) {
      answers.push_back(
          RepeatOnce(program.number, prompts[p], static_cast<int64_t>(p), i, channel, gate));
    }
  }
  GenerateResult result = answers.front();
  result.more.assign(answers.begin() + 1, answers.end());
  return result;
}

// RunPrograms' contract with rank 0, on one thread and without a model: ids are bytes, the answer
// is the prompt again. After the first token it waits for the gate.
absl::Status RunFakeWorld(const ProgramChannel& channel, Gate& gate) {
  while (true) {
    const Program program = channel.next();
    const uint64_t number = program.number;
    if (program.kind == ProgramKind::kExit) return absl::OkStatus();
    if (program.kind == ProgramKind::kLoad) {
      if (program.load.model == "random:bad") {
        channel.on_loaded(number, absl::InvalidArgumentError("unknown shape: bad"));
        continue;
      }
      LoadedModel model;
      model.name = program.load.model;
      model.context = 100;
      model.vocab = 256;
      model.load_s = 2.5;
      model.mesh = program.load.mesh;
      if (program.load.model != "random:no-tokenizer") model.tokenizer = *Tokenizer::FromBytes();
      channel.on_loaded(number, model);
    } else if (program.kind == ProgramKind::kScore) {
      ScoreResult result;
      result.tokens = static_cast<int64_t>(program.score.ids.size()) - 1;
      result.mean_nll = 0.5;
      channel.on_scored(number, result);
    } else if (program.kind == ProgramKind::kVerify) {
      channel.on_progress(number, {"verify", 1, 3});
      std::unique_lock<std::mutex> lock(gate.mutex);
      while (!gate.open && !channel.cancelled(number)) {
        gate.changed.wait_for(lock, std::chrono::milliseconds(5));
      }
      if (channel.cancelled(number)) {
        ++gate.cancelled_programs;
        gate.changed.notify_all();
        channel.on_verified(number, absl::CancelledError("cancelled"));
        continue;
      }
      VerifyResult result;
      result.pass = true;
      result.worst = {"logits", -1, 0.25, static_cast<double>(program.verify.layers)};
      for (int32_t id : program.verify.ids) result.tensors.push_back({"q", id, 0, 1});
      channel.on_verified(number, result);
    } else if (program.kind == ProgramKind::kGenerate) {
      channel.on_progress(number, {"prefill", 1, 1});
      channel.on_generated(number, Repeat(program, channel, gate));
    }
  }
}

// An agent whose worlds are threads.
class FakePod {
 public:
  FakePod(const std::string& controller, const std::string& name, int slots, Gate* gate)
      : controller_(controller), name_(name), gate_(gate) {
    client_ = DialController(controller, Tls(), {name, "here", slots, kVersion, 7, {}}, [this] {
      const std::lock_guard<std::mutex> lock(mutex_);
      woken_ = true;
      changed_.notify_all();
    });
    loop_ = std::thread([this] { Loop(); });
  }
  ~FakePod() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      changed_.notify_all();
    }
    loop_.join();
    if (world_.joinable()) world_.join();
    client_.reset();
  }

 private:
  void Loop() {
    while (true) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait_for(lock, std::chrono::milliseconds(500), [this] { return stop_ || woken_; });
        if (stop_) return;
        woken_ = false;
      }
      client_->Heartbeat();
      for (const AgentOrder& order : client_->Take()) {
        const auto* launch = std::get_if<LaunchOrder>(&order);
        if (launch != nullptr) Launch(*launch);
      }
    }
  }

  void Launch(const LaunchOrder& order) {
    if (order.model == "random:refused") {
      client_->Report({order.world, absl::Status(absl::NotFoundError("no such file: refused"))});
      return;
    }
    if (world_.joinable()) world_.join();
    world_ = std::thread([this, order] {
      WorkerOptions options;
      options.controller = controller_;
      options.job = order.world.job;
      options.epoch = order.world.epoch;
      options.pod = name_;
      options.credential = order.credential;
      options.roots = {{"tests", ::testing::TempDir()}};
      auto connection = ConnectWorker(options);
      WorldExit exit{0, 0, -1, "", ""};
      if (connection.ok()) {
        client_->Report({order.world, std::vector<LogLine>{{0, 0, false, "a world begins"},
                                                           {0, 1, true, "rank one is here"}}});
        const absl::Status status = RunFakeWorld((*connection)->channel(), *gate_);
        (*connection)->Finish(status);
      }
      client_->Report({order.world, exit});
    });
  }

  const std::string controller_, name_;
  Gate* const gate_;
  std::unique_ptr<AgentClient> client_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false, woken_ = true;
  std::thread loop_, world_;
};

class ServicesTest : public ::testing::Test {
 protected:
  ServicesTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    options_.state_dir =
        absl::StrCat(::testing::TempDir(), "/services-", info->name(), "-", getpid());
    options_.listen = "127.0.0.1:0";
    auto server = StartController(options_);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    ClientOptions client;
    client.controller = server_->address();
    client.interrupt = &interrupt_;
    client_ = NewClient(client);
  }
  ~ServicesTest() override {
    gate_.Set(true);
    client_.reset();
    server_->Shutdown(absl::ZeroDuration());  // worlds lose their stream and end
    pod_.reset();
    server_.reset();
    std::filesystem::remove_all(options_.state_dir);
  }
  void StartPod() {
    pod_ = std::make_unique<FakePod>(server_->address(), "a", 2, &gate_);
    ASSERT_TRUE(client_->AwaitPods(1, absl::Seconds(20)).ok());
  }
  InferenceRequest Request(const std::string& text) {
    InferenceRequest request;
    request.placement.load.model = "random:tiny";
    GenerateTask task;
    task.prompt.text = text;
    request.task = task;
    request.timeout = absl::Seconds(20);
    return request;
  }
  JobSpec Job() {
    JobSpec spec;
    spec.name = "book";
    spec.placement.load.model = "random:tiny";
    GenerateTask task;
    task.prompt.text = "abc";
    spec.task = task;
    return spec;
  }
  JobStatus AwaitEnd(const std::string& id) {
    JobStatus last;
    EXPECT_TRUE(client_
                    ->WatchJob(id, 0,
                               [&](const JobEvent& event) {
                                 last = event.status;
                                 return true;
                               })
                    .ok());
    return last;
  }

  // One message to any method; its status and its first answer.
  std::pair<grpc::Status, std::string> Call(const std::string& method, const std::string& bytes) {
    grpc::GenericStub stub(
        grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kLimit);
    grpc::Slice slice(bytes);
    grpc::ByteBuffer request(&slice, 1), response;
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    grpc::Status status;
    stub.UnaryCall(&context, method, grpc::StubOptions(), &request, &response, [&](grpc::Status s) {
      const std::lock_guard<std::mutex> lock(mutex);
      status = std::move(s);
      done = true;
      changed.notify_all();
    });
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return done; });
    grpc::Slice out;
    (void)response.DumpToSingleSlice(&out);
    return {status, std::string(out.begin(), out.end())};
  }

  ControllerOptions options_;
  std::atomic<bool> interrupt_{false};
  Gate gate_;
  std::unique_ptr<ControllerServer> server_;
  std::unique_ptr<Client> client_;
  std::unique_ptr<FakePod> pod_;
};

TEST_F(ServicesTest, FirstTokenArrivesBeforeTheLastIsComputed) {
  StartPod();
  gate_.Set(false);
  std::string seen;
  bool progress = false, accepted = false;
  GenerateObserver observer;
  observer.on_accepted = [&](const Accepted& where) {
    accepted = true;
    EXPECT_EQ(where.pod, "a");
    EXPECT_EQ(where.mesh.ring, 2);
  };
  observer.on_progress = [&](const Progress& p) { progress |= std::string(p.phase) == "prefill"; };
  observer.on_token = [&](const TokenEvent& token) {
    seen += token.text;
    gate_.Set(true);  // the world cannot go on until the client has the first token
  };
  const auto result = client_->Generate(Request("abc"), observer);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(accepted && progress);
  EXPECT_EQ(seen, "abc");
  EXPECT_EQ(result->text, "abc");
  EXPECT_EQ(result->report.timing.load_s, 2.5);
  const auto second = client_->Generate(Request("d"), GenerateObserver());
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->report.timing.load_s, 0);
  ASSERT_EQ(client_->ListModels()->size(), 1u);
  EXPECT_EQ(client_->GetModel("random:tiny")->context, 100);
  EXPECT_EQ(client_->GetModel("x").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ServicesTest, SeveralAnswersComeWithTheirIndices) {
  StartPod();
  InferenceRequest request = Request("ab");
  GenerateTask& task = std::get<GenerateTask>(request.task);
  task.more_prompts.resize(1);
  task.more_prompts[0].text = "cde";
  task.request.n = 2;
  std::string seen;
  GenerateObserver observer;
  observer.on_token = [&](const TokenEvent& token) {
    absl::StrAppend(&seen, token.text, token.prompt_index, token.index, token.last ? ". " : " ");
  };
  const auto result = client_->Generate(request, observer);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(seen, "a00 b00. a01 b01. c10 d10 e10. c11 d11 e11. ");
  EXPECT_EQ(result->text, "ab");
  ASSERT_EQ(result->more.size(), 3u);
  EXPECT_EQ(result->more[2].text, "cde");
  EXPECT_EQ(result->more[2].prompt_index, 1);
  EXPECT_EQ(result->more[2].index, 1);

  JobSpec job = Job();
  job.task = task;
  const auto submitted = client_->SubmitJob(job, "");
  ASSERT_TRUE(submitted.ok()) << submitted.status();
  const JobStatus ended = AwaitEnd(submitted->id);
  ASSERT_EQ(ended.state, JobState::kSucceeded) << ended.message;
  const auto stored = client_->GetJob(submitted->id);
  ASSERT_TRUE(stored.ok());
  EXPECT_EQ(std::get<GenerateResult>(stored->result).more.size(), 3u);
  EXPECT_EQ(std::get<GenerateResult>(stored->result).more[1].text, "cde");
}

TEST_F(ServicesTest, TheNumberOfAnswersHasLimitsAndABadPromptIsNamed) {
  StartPod();
  const auto refusal = [&](int64_t n, std::vector<std::string> more) {
    InferenceRequest request = Request("ab");
    GenerateTask& task = std::get<GenerateTask>(request.task);
    task.request.n = n;
    for (const std::string& text : more) {
      task.more_prompts.emplace_back();
      task.more_prompts.back().text = text;
    }
    return client_->Generate(request, GenerateObserver()).status();
  };
  EXPECT_THAT(refusal(0, {}).ToString(), HasSubstr("n is 0"));
  EXPECT_EQ(GetErrorInfo(refusal(0, {})).fields.at(0).field, "n");
  EXPECT_THAT(refusal(1025, {}).ToString(), HasSubstr("at most 1024 answers"));
  EXPECT_THAT(refusal(600, {"c"}).ToString(), HasSubstr("2 prompts with n = 600"));
  EXPECT_TRUE(refusal(2, {"c"}).ok());
  const absl::Status empty = refusal(1, {"c", ""});
  EXPECT_THAT(empty.ToString(), HasSubstr("prompt 2: "));
  EXPECT_EQ(GetErrorInfo(empty).fields.size(), 1u);
}

TEST_F(ServicesTest, ADisconnectedClientFreesTheWorld) {
  StartPod();
  gate_.Set(false);
  GenerateObserver observer;
  observer.on_token = [&](const TokenEvent&) { interrupt_ = true; };
  const auto result = client_->Generate(Request("abc"), observer);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(gate_.Await([this] { return gate_.cancelled_programs == 1; }));
  interrupt_ = false;
  gate_.Set(true);
  EXPECT_TRUE(client_->Generate(Request("abc"), GenerateObserver()).ok());
}

TEST_F(ServicesTest, ErrorsCarryReasonsAndNumbers) {
  auto result = client_->Generate(Request("a"), GenerateObserver());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(GetErrorInfo(result.status()).reason, "NO_POD");
  StartPod();
  result = client_->Generate(Request(std::string(101, 'x')), GenerateObserver());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GetErrorInfo(result.status()).reason, "PROMPT_TOO_LONG");
  EXPECT_EQ(GetErrorInfo(result.status()).metadata.at("tokens"), "101");
  EXPECT_EQ(GetErrorInfo(result.status()).metadata.at("context"), "100");
  InferenceRequest bad = Request("a");
  std::get<GenerateTask>(bad.task).request.sampling.top_p = 2;
  result = client_->Generate(bad, GenerateObserver());
  ASSERT_EQ(GetErrorInfo(result.status()).fields.size(), 1u);
  EXPECT_EQ(GetErrorInfo(result.status()).fields[0].field, "sampling.top_p");
  result = client_->Generate(Request("\xff"), GenerateObserver());
  EXPECT_THAT(result.status().ToString(), HasSubstr("not UTF-8 at byte 0"));
  bad = Request("a");
  std::get<GenerateTask>(bad.task).prompt.kind = PromptSpec::Kind::kIds;
  std::get<GenerateTask>(bad.task).prompt.ids = {5, 300};
  result = client_->Generate(bad, GenerateObserver());
  EXPECT_THAT(result.status().ToString(), HasSubstr("token id 300 at position 1 is out of range"));
  // The world lives through all of that: no negative control needs a second launch.
  result = client_->Generate(Request("a"), GenerateObserver());
  ASSERT_TRUE(result.ok()) << result.status();
  bad = Request("a");
  bad.placement.load.model = "random:refused";
  EXPECT_EQ(client_->Generate(bad, GenerateObserver()).status().code(),
            absl::StatusCode::kNotFound);
  bad.placement.load.model = "random:bad";
  EXPECT_EQ(client_->Generate(bad, GenerateObserver()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ServicesTest, ScoreTokenizeDetokenize) {
  StartPod();
  InferenceRequest request = Request("");
  ScoreTask task;
  task.text.text = "abcd";
  task.limit = 3;
  request.task = task;
  const auto score = client_->Score(request);
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_EQ(score->tokens, 2);
  TokenizeRequest tokenize;
  tokenize.placement = request.placement;
  tokenize.text = "AB";
  const auto ids = client_->Tokenize(tokenize);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(ids->ids, (std::vector<int32_t>{65, 66}));
  EXPECT_EQ(*client_->Detokenize(request.placement, {72, 105}), "Hi");
}

TEST_F(ServicesTest, VerifyAnswersWithProgressAndEveryTensor) {
  StartPod();
  InferenceRequest request = Request("");
  VerifyTask task;
  task.request.layers = 2;
  task.tokens = 3;
  request.task = task;
  std::vector<std::string> seen;
  RequestObserver observer;
  observer.on_accepted = [&](const Accepted& where) { seen.push_back(where.pod); };
  observer.on_progress = [&](const Progress& p) { seen.emplace_back(p.phase); };
  auto result = client_->Verify(request, observer);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(seen, ::testing::ElementsAre("a", "verify"));
  EXPECT_TRUE(result->pass);
  EXPECT_EQ(result->worst.tensor, "logits");
  EXPECT_EQ(result->worst.layer, -1);
  EXPECT_EQ(result->worst.error, 0.25);
  EXPECT_EQ(result->worst.bound, 2);
  EXPECT_EQ(result->tensors.size(), 3u);
  EXPECT_EQ(result->report.timing.load_s, 2.5);

  task.text.emplace();  // a text's first tokens, however long it is
  task.text->text = "AB" + std::string(200, 'x');
  task.tokens = 2;
  request.task = task;
  result = client_->Verify(request, observer);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->tensors.size(), 2u);
  EXPECT_EQ(result->tensors[1].layer, 'B');
  task.full = true;
  request.task = task;
  EXPECT_EQ(GetErrorInfo(client_->Verify(request, observer).status()).reason, "PROMPT_TOO_LONG");
}

TEST_F(ServicesTest, VerifyRefusesAndIsCancelled) {
  StartPod();
  InferenceRequest request = Request("");
  request.task = VerifyTask();
  request.placement.load.model = "random:refused";
  EXPECT_EQ(client_->Verify(request, RequestObserver()).status().code(),
            absl::StatusCode::kNotFound);
  request.placement.load.model = "random:tiny";
  request.placement.mesh = {1, 3, 1};
  EXPECT_EQ(GetErrorInfo(client_->Verify(request, RequestObserver()).status()).reason,
            "TOO_FEW_SLOTS");
  request.placement.mesh = MeshWish();
  VerifyTask bad;
  bad.request.layers = -1;
  request.task = bad;
  EXPECT_EQ(GetErrorInfo(client_->Verify(request, RequestObserver()).status()).fields.at(0).field,
            "layers");
  request.task = VerifyTask();
  gate_.Set(false);
  RequestObserver leave;
  leave.on_progress = [&](const Progress&) { interrupt_ = true; };
  EXPECT_EQ(client_->Verify(request, leave).status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(gate_.Await([this] { return gate_.cancelled_programs == 1; }));
  interrupt_ = false;
  gate_.Set(true);
  EXPECT_TRUE(client_->Verify(request, RequestObserver()).ok());  // the world lives on
}

TEST_F(ServicesTest, AModelWithoutATokenizerTakesIdsAlone) {
  StartPod();
  InferenceRequest request = Request("abc");
  request.placement.load.model = "random:no-tokenizer";
  EXPECT_THAT(client_->Generate(request, GenerateObserver()).status().ToString(),
              HasSubstr("no tokenizer"));
  TokenizeRequest tokenize;
  tokenize.placement = request.placement;
  tokenize.text = "AB";
  EXPECT_THAT(client_->Tokenize(tokenize).status().ToString(), HasSubstr("no tokenizer"));
  EXPECT_THAT(client_->Detokenize(request.placement, {72}).status().ToString(),
              HasSubstr("no tokenizer"));
  PromptSpec& prompt = std::get<GenerateTask>(request.task).prompt;
  prompt.kind = PromptSpec::Kind::kIds;
  prompt.ids = {72, 105};
  EXPECT_TRUE(client_->Generate(request, GenerateObserver()).ok());
}

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

TEST_F(ServicesTest, AWorkerWithoutTheCredentialIsRefused) {
  WorkerOptions options;
  options.controller = server_->address();
  options.job = "kept.a";
  options.epoch = 1;
  options.pod = "a";
  options.credential = "guess";
  EXPECT_EQ(ConnectWorker(options).status().code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(ServicesTest, OversizedMessagesAreRefused) {
  JobSpec spec = Job();
  std::get<GenerateTask>(spec.task).prompt.text = std::string(2 << 20, 'x');
  const auto job = client_->SubmitJob(spec, "");
  EXPECT_EQ(job.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorInfo(job.status()).reason, "MESSAGE_TOO_LARGE");
  EXPECT_THAT(job.status().ToString(), HasSubstr("1048576"));
  EXPECT_TRUE(client_->SubmitJob(Job(), "").ok());
  std::get<GenerateTask>(spec.task).prompt.text = std::string(17 << 20, 'x');
  const auto huge = client_->SubmitJob(spec, "");  // the client sees that by itself
  EXPECT_EQ(GetErrorInfo(huge.status()).metadata.at("limit"), "16777216");
}

// Whatever is in a message: a field that nobody knows counts too. A method that is added to these
// services is looked at without being named here.
TEST_F(ServicesTest, EveryControlMethodRefusesWhatIsTooLarge) {
  const std::string padding(1 << 20, 'x');
  // Field 1000, length-delimited, of 2^20 bytes.
  const std::string large = std::string("\xc2\x3e\x80\x80\x40", 5) + padding;
  const std::string fits = std::string("\xc2\x3e\x80\x80\x20", 5) + padding.substr(1 << 19);
  std::vector<std::string> methods = {
      "/toroid.v1.Inference/GetModel", "/toroid.v1.Inference/ListModels",
      "/toroid.internal.v1.Agents/Connect", "/toroid.internal.v1.Workers/Attach"};
  for (const char* name : {"toroid.v1.Jobs", "toroid.v1.Pods"}) {
    const auto* service =
        google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(name);
    ASSERT_NE(service, nullptr);
    for (int i = 0; i < service->method_count(); ++i) {
      methods.push_back(absl::StrCat("/", name, "/", service->method(i)->name()));
    }
  }
  ASSERT_GE(methods.size(), 14u);
  for (const std::string& method : methods) {
    const grpc::Status refused = Call(method, large).first;
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << method;
    EXPECT_THAT(refused.error_message(), HasSubstr("1048581 bytes")) << method;
    EXPECT_THAT(refused.error_message(), HasSubstr("at most 1048576")) << method;
    EXPECT_NE(Call(method, fits).first.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
        << method;  // negative control
  }
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

TEST_F(ServicesTest, AddressesThatCannotBeListenedOn) {
  ControllerOptions second = options_;
  second.state_dir += "-2";
  second.listen = server_->address();
  const auto in_use = StartController(second);
  EXPECT_EQ(in_use.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(in_use.status().ToString(), HasSubstr("Address already in use"));
  second.listen = "0.0.0.0:0";
  const auto open = StartController(second);
  EXPECT_EQ(open.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(open.status().ToString(), HasSubstr("not loopback"));
  second.listen = "127.0.0.1";
  EXPECT_EQ(StartController(second).status().code(), absl::StatusCode::kInvalidArgument);
  second.listen = "127.0.0.1:0";
  second.state_dir = options_.state_dir;
  EXPECT_EQ(StartController(second).status().code(), absl::StatusCode::kFailedPrecondition);
  std::filesystem::remove_all(options_.state_dir + "-2");
}

TEST_F(ServicesTest, HealthAndReflectionAnswer) {
  auto [status, bytes] = Call("/grpc.health.v1.Health/Check", "\x0a\x0etoroid.v1.Jobs");
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(bytes, "\x08\x01");  // status: SERVING
  EXPECT_EQ(Call("/grpc.health.v1.Health/Check", "\x0a\x04nope").first.error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Call("/grpc.channelz.v1.Channelz/GetServers", "").first.ok());
  // Reflection streams, so here only that the method is known.
  EXPECT_NE(
      Call("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "").first.error_code(),
      grpc::StatusCode::UNIMPLEMENTED);
}

TEST(ClientTest, UnreachableControllerSaysSo) {
  ClientOptions options;
  options.controller = "127.0.0.1:1";
  const auto jobs = NewClient(options)->ListPods();
  EXPECT_EQ(jobs.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(jobs.status().ToString(), HasSubstr("controller is not reachable: 127.0.0.1:1"));
}

// An address that takes connections and never says a word, as a network does that swallows all.
TEST(ClientTest, AWatchNoticesThatNobodyAnswers) {
  const int silent = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(bind(silent, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(listen(silent, 8), 0);
  ASSERT_EQ(getsockname(silent, reinterpret_cast<sockaddr*>(&address), &length), 0);
  ClientOptions options;
  options.controller = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  options.stream = options.timeout = absl::Milliseconds(50);
  const std::unique_ptr<Client> client = NewClient(options);
  const absl::Status watched = client->WatchJob("j", 0, [](const JobEvent&) { return true; });
  const absl::Status logged =
      client->StreamLogs({"j", 0, true, {}}, [](const LogLine&) { return true; });
  for (const absl::Status& status : {watched, logged, client->ListPods().status()}) {
    EXPECT_EQ(GetErrorInfo(status).reason, "NOT_REACHABLE") << status;
    EXPECT_THAT(status.ToString(), HasSubstr("no answer within 50ms"));
  }
  close(silent);
}

}  // namespace
}  // namespace toroid
