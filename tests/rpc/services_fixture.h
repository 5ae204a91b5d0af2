// A controller over real gRPC, a fake agent that launches fake worlds as threads, and the client,
// in one process. No mpirun, ports chosen by the kernel.
#pragma once

#include <grpcpp/support/status.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/text/tokenizer.h"
#include "core/version.h"
#include "rpc/agent_client.h"
#include "rpc/client.h"
#include "rpc/server.h"
#include "rpc/worker_process.h"

namespace toroid {

inline constexpr auto kLimit = std::chrono::seconds(20);

// What a test lets a fake world do.
struct Gate {
  std::mutex mutex;
  std::condition_variable changed;
  bool open = true;
  int cancelled_programs = 0;
  std::vector<TrainingPlan> trained;  // in the order of launches

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
inline GenerateResult RepeatOnce(uint64_t number, const std::vector<int32_t>& prompt,
                                 int64_t prompt_index, int64_t index, const ProgramChannel& channel,
                                 Gate& gate) {
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

inline GenerateResult Repeat(const Program& program, const ProgramChannel& channel, Gate& gate) {
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
// is the prompt again. After the first token it waits for the gate. A first launch that trains ends
// behind a checkpoint, the next one succeeds.
inline absl::Status RunFakeWorld(const ProgramChannel& channel, Gate& gate) {
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
    } else if (program.kind == ProgramKind::kTrain) {
      const TrainingEvents events = channel.training(number);
      std::unique_lock<std::mutex> lock(gate.mutex);
      gate.trained.push_back(program.train);
      if (gate.trained.size() > 1) {
        channel.on_trained(number, TrainingResult());
        continue;
      }
      CheckpointOutcome outcome;
      outcome.step = 5;
      outcome.path = program.train.directory + "/checkpoints/step-00000005-b2";
      events.on_checkpoint(outcome);
      return absl::UnavailableError("a rank is lost");
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
  std::pair<grpc::Status, std::string> Call(const std::string& method, const std::string& bytes);

  ControllerOptions options_;
  std::atomic<bool> interrupt_{false};
  Gate gate_;
  std::unique_ptr<ControllerServer> server_;
  std::unique_ptr<Client> client_;
  std::unique_ptr<FakePod> pod_;
};

}  // namespace toroid
