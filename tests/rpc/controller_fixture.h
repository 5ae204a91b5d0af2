// A controller with a fake clock, fake agents and fake worlds, for tests of its logic.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/version.h"
#include "rpc/controller.h"
#include "rpc/convert.h"

namespace toroid {

struct FakeAgent {
  std::string pod;
  uint64_t session = 0;
  std::vector<LaunchOrder> launches;
  std::vector<WorldId> stops;
  const LaunchOrder& last() const { return launches.back(); }
};

struct FakeWorld {
  WorldId id;
  uint64_t session = 0;
  std::vector<WorldProgram> programs;
  std::vector<uint64_t> cancels, saves;
  std::vector<PodTable> tables;
  uint64_t number() const { return programs.back().number; }
  template <typename Task>
  bool Runs() const {
    return !programs.empty() && std::holds_alternative<Task>(programs.back().task);
  }
};

struct FakeClient {
  uint64_t id = 0;
  std::vector<Accepted> accepted;
  std::vector<int32_t> tokens;
  std::vector<std::string> phases;
  std::vector<absl::StatusOr<RequestResult>> done;
};

inline JobSpec Training(JobSpec spec) {
  TrainTask task;
  task.plan.steps = 7;
  task.plan.data.paths = {"text"};
  task.plan.data.sequence_length = 8;
  task.plan.data.batch_tokens.stages = {{0, 16}};
  task.plan.options.optimizer.rate.peak = 1;
  spec.task = task;
  spec.output_dir = "runs/{name}";
  spec.max_restarts = 5;
  return spec;
}

class ControllerTest : public ::testing::Test {
 protected:
  ControllerTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    dir_ = absl::StrCat(::testing::TempDir(), "/controller-", info->name(), "-", getpid());
    std::filesystem::create_directories(dir_);
    Start();
  }
  ~ControllerTest() override { std::filesystem::remove_all(dir_); }

  void Start() {
    controller_.reset();
    store_.reset();
    auto store = JobStore::Open(dir_ + "/jobs.sqlite");
    TOROID_ASSERT(store.ok());
    store_ = *std::move(store);
    logs_ = std::make_unique<LogStore>(dir_);
    controller_ = std::make_unique<Controller>(store_.get(), logs_.get(), ProtoJobCodec(),
                                               ControllerTimes(), [this] { return now_; });
  }
  static void TOROID_ASSERT(bool ok) { ASSERT_TRUE(ok); }

  std::shared_ptr<FakeAgent> Connect(const std::string& pod, int slots = 2,
                                     std::vector<HeldWorld> running = {}) {
    auto agent = std::make_shared<FakeAgent>();
    agent->pod = pod;
    AgentLink link;
    link.launch = [agent](const LaunchOrder& order) { agent->launches.push_back(order); };
    link.stop = [agent](const WorldId& id, const std::string&) { agent->stops.push_back(id); };
    const auto session =
        controller_->AgentConnected({pod, "host-" + pod, slots, kVersion, 1, running}, link);
    EXPECT_TRUE(session.ok()) << session.status();
    agent->session = session.value_or(0);
    controller_->Tick();
    return agent;
  }

  // `program`: that it is at since before.
  std::shared_ptr<FakeWorld> Attach(const FakeAgent& agent, uint64_t program = 0) {
    return Attach(agent.pod, agent.last(), program);
  }
  std::shared_ptr<FakeWorld> Attach(const std::string& pod, const LaunchOrder& order,
                                    uint64_t program) {
    auto world = std::make_shared<FakeWorld>();
    world->id = order.world;
    WorldLink link;
    link.run = [world](const WorldProgram& program) { world->programs.push_back(program); };
    link.cancel = [world](uint64_t number, CancelHow how) {
      (how == CancelHow::kNow ? world->cancels : world->saves).push_back(number);
    };
    link.pods = [world](const PodTable& table) { world->tables.push_back(table); };
    const auto session =
        controller_->WorkerAttached({world->id, pod, order.credential, "host", 1, program}, link);
    EXPECT_TRUE(session.ok()) << session.status();
    world->session = session.value_or(0);
    return world;
  }
  template <typename Body>
  void Tell(const FakeWorld& world, Body body) {
    controller_->WorkerAnswered(world.session, world.id, {world.number(), std::move(body)});
  }
  std::shared_ptr<FakeWorld> AttachAndLoad(const FakeAgent& agent) {
    auto world = Attach(agent);
    EXPECT_TRUE(world->Runs<LoadTask>());
    Tell(*world, LoadAnswer{ModelStatus(), 1.5});
    return world;
  }
  void EndWorld(const FakeAgent& agent, const WorldId& id, WorldExit exit = {0, 0, -1, "", ""}) {
    controller_->WorldEnded(agent.session, id, exit);
  }

  RequestSpec Request(const std::string& model) {
    RequestSpec spec;
    spec.placement.load.model = model;
    GenerateTask task;
    task.prompt.text = "hello";
    spec.task = task;
    return spec;
  }
  std::shared_ptr<FakeClient> Ask(const RequestSpec& spec) {
    auto client = std::make_shared<FakeClient>();
    RequestSink sink;
    sink.accepted = [client](const Accepted& accepted) { client->accepted.push_back(accepted); };
    sink.progress = [client](const ProgressAnswer& p) { client->phases.push_back(p.phase); };
    sink.tokens = [client](const std::vector<TokenEvent>& tokens) {
      for (const TokenEvent& token : tokens) client->tokens.push_back(token.id);
    };
    sink.done = [client](const absl::StatusOr<RequestResult>& result) {
      client->done.push_back(result);
    };
    client->id = controller_->StartRequest(spec, sink);
    return client;
  }
  JobSpec Job(const std::string& name) {
    JobSpec spec;
    spec.name = name;
    spec.placement.load.model = "m";
    GenerateTask task;
    task.prompt.text = "hello";
    spec.task = task;
    return spec;
  }
  JobSpec OnTwoPods() {
    JobSpec spec = Training(Job("wide"));
    spec.placement.mesh.data = MeshWish::kRest;
    spec.max_restarts = 3;
    std::get<TrainTask>(spec.task).plan.options.pods.count = 2;
    return spec;
  }
  JobStatus Submit(const JobSpec& spec, const std::string& request_id = "") {
    const auto job = controller_->SubmitJob(spec, request_id);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.value_or(JobStatus());
  }
  JobStatus Get(const std::string& id) {
    const auto job = controller_->GetJob(id);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.value_or(JobStatus());
  }
  void Advance(absl::Duration duration) {
    now_ += duration;
    controller_->Tick();
  }

  // Of a world that nobody saw end: not before its lease and five seconds more are over.
  void ExpectLaunchAfterTheLease(const FakeAgent& agent) {
    for (int second = 0; second < 19; ++second) {
      controller_->AgentHeartbeat(agent.session);
      Advance(absl::Seconds(1));
      EXPECT_TRUE(agent.launches.empty()) << second;
    }
    controller_->AgentHeartbeat(agent.session);
    Advance(absl::Seconds(2));
    ASSERT_EQ(agent.launches.size(), 1u);
  }

  std::string dir_;
  absl::Time now_ = absl::FromUnixSeconds(1700000000);
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<LogStore> logs_;
  std::unique_ptr<Controller> controller_;
};

}  // namespace toroid
