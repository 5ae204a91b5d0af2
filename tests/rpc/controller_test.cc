// The controller's logic with a fake clock, fake agents and fake worlds: no gRPC, no processes.
#include "rpc/controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "rpc/error_info.h"
#include "tests/rpc/controller_fixture.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(ControllerTest, SecondRequestFindsTheModelLoaded) {
  auto agent = Connect("a");
  auto first = Ask(Request("m"));
  ASSERT_EQ(agent->launches.size(), 1u);
  EXPECT_EQ(agent->last().ranks, 2);  // ring over all slots
  auto world = AttachAndLoad(*agent);
  ASSERT_TRUE(world->Runs<GenerateTask>());
  Tell(*world, std::vector<TokenEvent>{{7, "x", 0}});
  EXPECT_THAT(first->tokens, ElementsAre(7));
  EXPECT_TRUE(first->done.empty());
  Tell(*world, GenerateResult());
  ASSERT_EQ(first->done.size(), 1u);
  EXPECT_EQ(std::get<GenerateResult>(*first->done[0]).report.timing.load_s, 1.5);

  auto second = Ask(Request("m"));
  EXPECT_TRUE(second->accepted.at(0).kept);
  EXPECT_EQ(agent->launches.size(), 1u);
  Tell(*world, GenerateResult());
  EXPECT_EQ(std::get<GenerateResult>(*second->done.at(0)).report.timing.load_s, 0);

  auto other = Ask(Request("other"));  // negative control: another model is another world
  EXPECT_TRUE(other->accepted.empty());
}

TEST_F(ControllerTest, AnOutputDirectoryNamesItsJob) {
  auto agent = Connect("a");
  JobSpec spec = Job("book");
  spec.output_dir = "runs/{name}";
  Submit(spec);
  auto world = AttachAndLoad(*agent);
  ASSERT_TRUE(world->Runs<GenerateTask>());
  EXPECT_EQ(world->programs.back().output_dir, "runs/book");
  Tell(*world, GenerateResult());
  EndWorld(*agent, world->id);

  spec.name.clear();
  const std::string id = Submit(spec).id;
  world = AttachAndLoad(*agent);
  EXPECT_EQ(world->programs.back().output_dir, "runs/" + id);
}

TEST_F(ControllerTest, AQueuedJobSaysWhyNoPodCanTakeIt) {
  JobSpec spec = Job("wide");
  spec.placement.mesh.ring = 3;
  const std::string id = Submit(spec).id;
  EXPECT_EQ(Get(id).state, JobState::kQueued);
  EXPECT_EQ(Get(id).reason, "NoPod");
  auto small = Connect("a", 2);
  EXPECT_EQ(Get(id).reason, "TooFewSlots");
  EXPECT_THAT(Get(id).message, HasSubstr("mesh needs 3, pod has 2"));
  const auto store = store_->Get(id);
  Advance(absl::Seconds(1));
  EXPECT_EQ(store_->Get(id)->sequence, store->sequence);  // said once, not at every tick
  auto large = Connect("b", 4);
  EXPECT_EQ(large->launches.size(), 1u);
  EXPECT_EQ(Get(id).state, JobState::kStarting);
  EXPECT_EQ(Get(id).reason, "");
}

TEST_F(ControllerTest, KeptWorldEndsAfterKeepAlive) {
  auto agent = Connect("a");
  RequestSpec spec = Request("m");
  spec.keep_alive = absl::Seconds(30);
  auto client = Ask(spec);
  auto world = AttachAndLoad(*agent);
  Tell(*world, GenerateResult());
  controller_->AgentHeartbeat(agent->session);
  now_ += absl::Seconds(10);
  controller_->AgentHeartbeat(agent->session);
  now_ += absl::Seconds(10);
  controller_->AgentHeartbeat(agent->session);
  Advance(absl::Seconds(9));
  EXPECT_FALSE(world->Runs<ExitTask>());
  controller_->AgentHeartbeat(agent->session);
  Advance(absl::Seconds(2));
  EXPECT_TRUE(world->Runs<ExitTask>());
  EndWorld(*agent, world->id);
  EXPECT_EQ(controller_->ListPods()[0].state, "READY");
}

TEST_F(ControllerTest, AJobOnTwoPodsStartsOnBothAndTellsEachWhereTheOtherListens) {
  auto a = Connect("a");
  const std::string id = Submit(OnTwoPods()).id;
  EXPECT_EQ(Get(id).reason, "TooFewPods");
  EXPECT_THAT(Get(id).message, HasSubstr("needs 2 pods, of those that are registered 1"));
  EXPECT_TRUE(a->launches.empty());
  auto b = Connect("b", 1);
  ASSERT_EQ(a->launches.size(), 1u);
  ASSERT_EQ(b->launches.size(), 1u);
  EXPECT_NE(a->last().world.epoch, b->last().world.epoch);
  EXPECT_EQ(Get(id).pod, "b,a");  // the tighter fit first
  auto first = Attach(*b), second = Attach(*a);
  for (const auto& [world, pod] : {std::pair(first, 0), std::pair(second, 1)}) {
    ASSERT_TRUE(world->Runs<TrainOrder>());
    EXPECT_EQ(std::get<TrainOrder>(world->programs.back().task).pod, pod);
    EXPECT_EQ(world->programs.back().output_dir, absl::StrCat("runs/wide/pod-", pod));
  }
  Tell(*second, ListensAnswer{{"h:3", "h:4"}});
  EXPECT_TRUE(second->tables.empty());  // the other does not listen yet
  const uint64_t view = controller_->view();
  Tell(*first, ListensAnswer{{"h:1"}});
  for (const auto& world : {first, second}) {
    ASSERT_EQ(world->tables.size(), 1u);
    EXPECT_GT(world->tables[0].view, view);
    ASSERT_EQ(world->tables[0].pods.size(), 2u);
    for (const PodAddresses& pod : world->tables[0].pods) {
      const FakeWorld& of = pod.pod == 0 ? *first : *second;
      EXPECT_EQ(pod.epoch, of.id.epoch);
      EXPECT_EQ(absl::StrJoin(pod.ranks, " "), pod.pod == 0 ? "h:1" : "h:3 h:4");
    }
  }
  TrainResult result;
  result.directory = "first";
  Tell(*first, result);
  EndWorld(*b, first->id);
  EXPECT_EQ(Get(id).state, JobState::kRunning);  // the other pod is not there yet
  result.directory = "second";
  Tell(*second, result);
  EXPECT_EQ(Get(id).state, JobState::kSucceeded);
  EXPECT_EQ(std::get<TrainResult>(Get(id).result).directory, "first");
  EXPECT_TRUE(second->Runs<ExitTask>());
}

TEST_F(ControllerTest, APodHasAMeshOfItsOwn) {
  auto a = Connect("a"), b = Connect("b", 2);
  JobSpec spec = OnTwoPods();
  spec.placement.mesh = {1, 2, 1};
  spec.placement.pod_meshes = {{"c", {1, 1, 2}}};
  const std::string id = Submit(spec).id;
  EXPECT_EQ(Get(id).reason, "NoPod");
  EXPECT_THAT(Get(id).message, HasSubstr("pod_mesh: no such pod: c"));
  EXPECT_TRUE(a->launches.empty());
  auto c = Connect("c", 2);
  ASSERT_EQ(c->launches.size(), 1u);
  EXPECT_EQ(a->launches.size() + b->launches.size(), 1u);
  const JobStatus status = Get(id);
  EXPECT_EQ(status.pod, "c,a");
  ASSERT_EQ(status.pods.size(), 2u);
  EXPECT_EQ(status.pods[0].pod, "c");
  EXPECT_EQ(status.pods[0].mesh, (MeshShape{1, 1, 2}));
  EXPECT_EQ(status.pods[1].mesh, (MeshShape{1, 2, 1}));
  EXPECT_EQ(status.pods[1].epoch, a->last().world.epoch);
  auto first = Attach(*c), second = Attach(*a);
  for (const auto& [world, mesh] :
       {std::pair(first, MeshShape{1, 1, 2}), std::pair(second, MeshShape{1, 2, 1})}) {
    ASSERT_TRUE(world->Runs<TrainOrder>());
    const JobSpec& told = std::get<TrainOrder>(world->programs.back().task).spec;
    EXPECT_EQ(told.placement.load.mesh, mesh);
  }
}

// What each pod tells is kept apart, and what all of them have told alike is found.
TEST_F(ControllerTest, AJobOnTwoPodsTellsOfEach) {
  auto a = Connect("a"), b = Connect("b");
  const std::string id = Submit(OnTwoPods()).id;
  auto first = Attach(*a), second = Attach(*b);
  std::vector<JobEvent> events;
  JobSink sink;
  sink.event = [&events](const JobEvent& event) { events.push_back(event); };
  ASSERT_TRUE(controller_->WatchJob(id, 0, sink).ok());
  const auto at = [](int64_t step, double loss, int64_t hashed, uint64_t hash) {
    TaskProgress progress{"train", step, 7, loss, 100};
    progress.exchange = ExchangeProgress{2, 1, 100 * step, 0.25, hashed, hash};
    return progress;
  };
  Tell(*first, at(2, 5.5, 2, 7));
  EXPECT_EQ(Get(id).agreement.hash_step, 0);  // of one pod alone
  Tell(*second, at(2, 5.25, 2, 7));
  EXPECT_EQ(Get(id).agreement.hash_step, 2);
  Tell(*first, at(4, 4.5, 4, 8));
  const JobStatus status = Get(id);
  EXPECT_EQ(status.agreement.hash_step, 2);
  EXPECT_EQ(status.agreement.hash, 7u);
  EXPECT_FALSE(status.agreement.hashes_differ);
  EXPECT_EQ(status.progress->loss, 4.5);
  ASSERT_EQ(status.pods.size(), 2u);
  EXPECT_EQ(status.pods[0].progress->loss, 4.5);
  EXPECT_EQ(status.pods[1].progress->loss, 5.25);
  EXPECT_EQ(status.pods[1].progress->exchange->bytes_sent, 200);
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back().status.pods.size(), 2u);
  Tell(*second, at(4, 4.25, 4, 9));
  EXPECT_EQ(Get(id).agreement.hash_step, 4);
  EXPECT_TRUE(Get(id).agreement.hashes_differ);

  Tell(*first, JobCheckpoint{first->id.epoch, 2, "c/2", 1});
  Tell(*first, JobCheckpoint{first->id.epoch, 4, "c/4", 1});
  EXPECT_EQ(Get(id).agreement.checkpoint_step, 0);
  Tell(*second, JobCheckpoint{second->id.epoch, 2, "c/2", 1});
  EXPECT_NE(first->id.epoch, second->id.epoch);
  EXPECT_EQ(Get(id).agreement.checkpoint_step, 2);
  EXPECT_EQ(Get(id).pods[0].checkpoint->step, 4);
  EXPECT_EQ(Get(id).pods[1].checkpoint->step, 2);
  // What an ended job's pods have told last is kept.
  Tell(*first, TrainResult());
  Tell(*second, TrainResult());
  ASSERT_EQ(Get(id).state, JobState::kSucceeded);
  ASSERT_EQ(Get(id).pods.size(), 2u);
  EXPECT_EQ(Get(id).pods[1].progress->loss, 4.25);
  EXPECT_EQ(Get(id).agreement.checkpoint_step, 2);
}

TEST_F(ControllerTest, PodsOfAJobStartAgainTogether) {
  auto a = Connect("a"), b = Connect("b");
  const std::string id = Submit(OnTwoPods()).id;
  auto first = Attach(*a), second = Attach(*b);
  Tell(*first, ListensAnswer{{"h:1"}});
  Tell(*second, ListensAnswer{{"h:2"}});
  EndWorld(*b, second->id, {137, 9, 1, "host-b", "rank 1 died"});
  ASSERT_EQ(a->stops.size(), 1u);  // it would wait for ever
  EXPECT_EQ(a->stops[0], first->id);
  Advance(absl::Seconds(5));
  EXPECT_EQ(b->launches.size(), 1u);  // not while the other still runs
  EndWorld(*a, first->id, {143, 15, -1, "", ""});
  EXPECT_EQ(Get(id).state, JobState::kRestarting);
  EXPECT_EQ(Get(id).restarts, 1);
  EXPECT_THAT(Get(id).message, HasSubstr("rank 1 died"));
  Advance(absl::Seconds(2));
  ASSERT_EQ(a->launches.size(), 2u);
  ASSERT_EQ(b->launches.size(), 2u);
  EXPECT_GT(std::min(a->last().world.epoch, b->last().world.epoch),
            std::max(first->id.epoch, second->id.epoch));
  first = Attach(*a);
  second = Attach(*b);
  Tell(*second, ListensAnswer{{"h:3"}});
  EXPECT_TRUE(second->tables.empty());  // what the last launch said is forgotten
  Tell(*first, ListensAnswer{{"h:4"}});
  EXPECT_EQ(second->tables.size(), 1u);
  // A pod whose part is done is not needed for the other to start again; both do.
  Tell(*first, TrainResult());
  EndWorld(*a, first->id);
  EndWorld(*b, second->id, {137, 9, 1, "host-b", "rank 1 died"});
  EXPECT_EQ(Get(id).state, JobState::kRestarting);
  Advance(absl::Seconds(3));
  EXPECT_EQ(a->launches.size(), 3u);
}

// Policy `continue`: a new view, without the pod that is lost, and the job ends with the others.
TEST_F(ControllerTest, PodsGoOnWithoutOneThatIsLost) {
  auto a = Connect("a"), b = Connect("b"), c = Connect("c");
  JobSpec spec = OnTwoPods();
  spec.max_restarts = 1;  // which is used for the first: nobody returns
  std::get<TrainTask>(spec.task).plan.options.pods.count = 3;
  std::get<TrainTask>(spec.task).plan.options.pods.policy = PodsOptions::Policy::kContinue;
  const std::string id = Submit(spec).id;
  std::vector<std::shared_ptr<FakeAgent>> agents = {a, b, c};
  std::vector<std::shared_ptr<FakeWorld>> worlds;
  const auto begin = [&] {
    worlds.clear();
    for (const auto& agent : agents) worlds.push_back(Attach(*agent));
    for (const auto& world : worlds) Tell(*world, ListensAnswer{{"h:1"}});
  };
  begin();
  Tell(*worlds[1], ProgressAnswer{"train", 1, 10});
  Tell(*worlds[2], ProgressAnswer{"tokenise", 1, 10});
  // One has not begun: it waits for all pods, and all start again.
  EndWorld(*a, worlds[0]->id, {137, 9, 0, "host-a", "rank 0 died"});
  EXPECT_EQ(b->stops.size(), 1u);
  EXPECT_EQ(c->stops.size(), 1u);
  EndWorld(*b, worlds[1]->id);
  EndWorld(*c, worlds[2]->id);
  EXPECT_EQ(Get(id).state, JobState::kRestarting);
  Advance(absl::Seconds(2));
  begin();

  for (const auto& world : worlds) Tell(*world, ProgressAnswer{"train", 1, 10});
  ASSERT_EQ(worlds[1]->tables.size(), 1u);
  const uint64_t program = worlds[2]->number();
  controller_->WorkerGone(worlds[2]->session);
  EndWorld(*a, worlds[0]->id, {137, 9, 0, "host-a", "rank 0 died"});
  EXPECT_EQ(b->stops.size(), 1u);
  EXPECT_EQ(Get(id).state, JobState::kRunning);
  EXPECT_EQ(Get(id).reason, "PodLost");
  EXPECT_THAT(Get(id).message, HasSubstr("1 of 3 pods lost, the others go on"));
  EXPECT_THAT(Get(id).message, HasSubstr("rank 0 died"));
  ASSERT_EQ(worlds[1]->tables.size(), 2u);
  EXPECT_EQ(worlds[1]->tables[1].pods.size(), 2u);
  EXPECT_GT(worlds[1]->tables[1].view, worlds[1]->tables[0].view);
  EXPECT_EQ(worlds[2]->tables.size(), 1u);
  worlds[2] = Attach(*c, program);  // it hears what it missed
  ASSERT_EQ(worlds[2]->tables.size(), 1u);
  EXPECT_EQ(worlds[2]->tables[0].pods.size(), 2u);
  EXPECT_EQ(worlds[2]->tables[0].view, worlds[1]->tables.back().view);
  Tell(*worlds[1], ProgressAnswer{"train", 7, 10});  // the first that is left speaks for the job
  EXPECT_EQ(Get(id).progress->done, 7);

  TrainResult result;
  result.directory = "second";
  Tell(*worlds[1], result);
  EndWorld(*b, worlds[1]->id);
  EXPECT_EQ(Get(id).state, JobState::kRunning);
  EndWorld(*c, worlds[2]->id, {137, 9, 0, "host-c", "rank 0 died"});
  EXPECT_EQ(Get(id).state, JobState::kSucceeded);
  EXPECT_EQ(std::get<TrainResult>(Get(id).result).directory, "second");
}

TEST_F(ControllerTest, AnErrorOfOnePodEndsTheJobOnAll) {
  auto a = Connect("a"), b = Connect("b");
  const std::string id = Submit(OnTwoPods()).id;
  auto first = Attach(*a), second = Attach(*b);
  Tell(*second, absl::Status(absl::InvalidArgumentError("no such data")));
  EXPECT_EQ(Get(id).state, JobState::kFailed);
  EXPECT_EQ(Get(id).message, "no such data");
  EXPECT_EQ(first->cancels.size(), 1u);
  EXPECT_TRUE(second->Runs<ExitTask>());
  EndWorld(*b, second->id);
  Tell(*first, absl::Status(absl::CancelledError("cancelled")));
  EndWorld(*a, first->id);
  EXPECT_EQ(controller_->ListPods()[0].state, "READY");
  EXPECT_EQ(controller_->ListPods()[1].state, "READY");
  // Cancelled by its client: both.
  const std::string other = Submit(OnTwoPods()).id;
  first = Attach(*a);
  second = Attach(*b);
  ASSERT_TRUE(controller_->CancelJob(other).ok());
  EXPECT_EQ(first->cancels.size() + second->cancels.size(), 2u);
}

TEST_F(ControllerTest, AJobOnTwoPodsNamesNone) {
  JobSpec spec = OnTwoPods();
  spec.placement.pod = "a";
  EXPECT_THAT(std::string(controller_->SubmitJob(spec, "").status().message()),
              HasSubstr("the job has 2 pods"));
}

// Its pods train on, and hear where the others listen; one that its agent does not have is lost.
TEST_F(ControllerTest, AJobOnTwoPodsOutlivesItsController) {
  for (const bool all : {true, false}) {
    auto a = Connect("a"), b = Connect("b");
    const std::string id = Submit(OnTwoPods()).id;
    auto first = Attach(*a), second = Attach(*b);
    const LaunchOrder of_first = a->last(), of_second = b->last();
    const uint64_t program = first->number();
    Start();
    EXPECT_EQ(Get(id).state, JobState::kRunning);
    WorldLink link;  // rank 0 is here before its agent: too early, not refused
    EXPECT_EQ(
        controller_
            ->WorkerAttached({of_first.world, "a", of_first.credential, "h", 1, program}, link)
            .status()
            .code(),
        absl::StatusCode::kUnavailable);
    a = Connect("a", 2, {{of_first.world, of_first.credential}});
    b = Connect("b", 2, {{of_second.world, of_second.credential}});
    EXPECT_TRUE(a->stops.empty());
    first = Attach("a", of_first, program);
    const auto tell = [&](const FakeWorld& world, auto body) {
      controller_->WorkerAnswered(world.session, world.id, {program, std::move(body)});
    };
    tell(*first, ListensAnswer{{"h:1"}});
    if (all) {
      second = Attach("b", of_second, program);
      EXPECT_TRUE(first->tables.empty());
      tell(*second, ListensAnswer{{"h:2"}});
      EXPECT_EQ(first->tables.size(), 1u);
      for (int passed = 0; passed < 25; ++passed) {
        for (const auto& agent : {a, b}) controller_->AgentHeartbeat(agent->session);
        Advance(absl::Seconds(1));
      }
      EXPECT_TRUE(a->launches.empty());
      tell(*first, ProgressAnswer{"train", 3, 7});
      EXPECT_EQ(Get(id).progress->done, 3);
      tell(*first, TrainResult());
      EXPECT_EQ(Get(id).state, JobState::kRunning);
      EndWorld(*a, first->id);
      // Again: the one whose part is done is not missed.
      Start();
      a = Connect("a");
      b = Connect("b", 2, {{of_second.world, of_second.credential}});
      second = Attach("b", of_second, program);
      tell(*second, TrainResult());
      EXPECT_EQ(Get(id).state, JobState::kSucceeded);
      EndWorld(*b, second->id);
    } else {  // with policy `halt` all start again
      EndWorld(*b, of_second.world);
      EXPECT_EQ(a->stops.size(), 1u);
      EndWorld(*a, of_first.world);
      EXPECT_EQ(Get(id).state, JobState::kRestarting);
      Advance(absl::Seconds(2));
      EXPECT_EQ(a->launches.size() + b->launches.size(), 2u);
    }
  }
}

TEST_F(ControllerTest, IdleKeptWorldYieldsToAJob) {
  auto agent = Connect("a");
  auto client = Ask(Request("m"));
  auto world = AttachAndLoad(*agent);
  const JobStatus job = Submit(Job("book"));
  EXPECT_FALSE(world->Runs<ExitTask>());  // busy: the job waits
  Tell(*world, GenerateResult());
  EXPECT_TRUE(world->Runs<ExitTask>());
  EXPECT_EQ(Get(job.id).state, JobState::kQueued);
  EndWorld(*agent, world->id);
  EXPECT_EQ(agent->last().world.job, job.id);
  EXPECT_EQ(Get(job.id).state, JobState::kStarting);
}

TEST_F(ControllerTest, JobRunsToItsResult) {
  const JobStatus job = Submit(Job("book"));
  auto agent = Connect("a");
  EXPECT_EQ(Get(job.id).state, JobState::kStarting);
  auto world = AttachAndLoad(*agent);
  EXPECT_EQ(Get(job.id).state, JobState::kRunning);
  GenerateResult result;
  result.text = "done";
  Tell(*world, result);
  const JobStatus ended = Get(job.id);
  EXPECT_EQ(ended.state, JobState::kSucceeded);
  EXPECT_EQ(std::get<GenerateResult>(ended.result).text, "done");
  EXPECT_TRUE(world->Runs<ExitTask>());

  std::vector<JobState> states;
  uint64_t events = 0;
  JobSink sink;
  sink.event = [&](const JobEvent& event) {
    EXPECT_EQ(event.sequence, ++events);
    // While it is queued its message says what it waits for.
    if (states.empty() || states.back() != event.status.state) states.push_back(event.status.state);
  };
  bool end = false;
  sink.end = [&](const absl::Status&) { end = true; };
  ASSERT_TRUE(controller_->WatchJob(job.id, 1, sink).ok());
  EXPECT_THAT(states, ElementsAre(JobState::kQueued, JobState::kStarting, JobState::kRunning,
                                  JobState::kSucceeded));
  EXPECT_TRUE(end);
}

TEST_F(ControllerTest, AJobForGpusIsRefusedNotRunOnCpus) {
  JobSpec job = Job("book");
  job.device = Device::kCuda;
  const absl::Status refused = controller_->SubmitJob(job, "").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument) << refused;
  EXPECT_NE(refused.message().find("AUTO or CPU"), absl::string_view::npos) << refused;
  job.device = Device::kCpu;  // negative control
  EXPECT_TRUE(controller_->SubmitJob(job, "").ok());
}

TEST_F(ControllerTest, SubmitIsIdempotent) {
  const JobStatus first = Submit(Job("book"), "r1");
  EXPECT_EQ(Submit(Job("book"), "r1").id, first.id);
  EXPECT_EQ(controller_->SubmitJob(Job("other"), "r1").status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_NE(Submit(Job("book"), "r2").id, first.id);
  Start();  // the key outlives the controller
  EXPECT_EQ(Submit(Job("book"), "r1").id, first.id);
}

TEST_F(ControllerTest, DeadRankFailsTheJobAndIsNamed) {
  auto agent = Connect("a");
  const JobStatus job = Submit(Job("book"));
  auto world = AttachAndLoad(*agent);
  controller_->WorkerGone(world->session);
  EndWorld(*agent, world->id, {137, 9, 1, "h2", "rank 1 on host h2 was ended by signal 9"});
  const JobStatus ended = Get(job.id);
  EXPECT_EQ(ended.state, JobState::kFailed);
  EXPECT_EQ(ended.reason, "RankFailed");
  EXPECT_EQ(ended.exit.rank, 1);
  EXPECT_EQ(ended.exit.host, "h2");
  EXPECT_EQ(ended.exit.signal, 9);
  EXPECT_THAT(ended.message, HasSubstr("rank 1 on host h2"));
}

TEST_F(ControllerTest, DeadRankFailsTheRequestWithErrorInfo) {
  auto agent = Connect("a");
  auto client = Ask(Request("m"));
  auto world = AttachAndLoad(*agent);
  EndWorld(*agent, world->id, {3, 0, 0, "h1", "rank 0 on host h1 exited with code 3"});
  ASSERT_EQ(client->done.size(), 1u);
  EXPECT_EQ(client->done[0].status().code(), absl::StatusCode::kUnavailable);
  const ErrorInfo info = GetErrorInfo(client->done[0].status());
  EXPECT_EQ(info.reason, "RANK_FAILED");
  EXPECT_EQ(info.metadata.at("rank"), "0");
  EXPECT_EQ(info.metadata.at("exit_code"), "3");
}

TEST_F(ControllerTest, RestartsBackOffAndBumpTheEpoch) {
  auto agent = Connect("a");
  JobSpec spec = Job("book");
  spec.max_restarts = 1;
  const JobStatus job = Submit(spec);
  auto world = AttachAndLoad(*agent);
  EXPECT_EQ(world->id.epoch, 1u);
  EndWorld(*agent, world->id, {137, 9, 1, "h", "died"});
  EXPECT_EQ(Get(job.id).state, JobState::kRestarting);
  EXPECT_EQ(agent->launches.size(), 1u);  // not before the back-off
  Advance(absl::Milliseconds(1100));
  ASSERT_EQ(agent->launches.size(), 2u);
  EXPECT_EQ(agent->last().world.epoch, 2u);
  // The old epoch's words are dropped and counted.
  const uint64_t dropped = controller_->stale_dropped();
  EndWorld(*agent, world->id, {0, 0, -1, "", ""});
  EXPECT_EQ(controller_->stale_dropped(), dropped + 1);
  EXPECT_EQ(Get(job.id).state, JobState::kStarting);
  world = AttachAndLoad(*agent);
  EndWorld(*agent, world->id, {137, 9, 1, "h", "died again"});
  EXPECT_EQ(Get(job.id).state, JobState::kFailed);
}

TEST_F(ControllerTest, ATrainingJobLoadsForItselfAndGoesOnAfterAFailure) {
  auto agent = Connect("a");
  JobSpec spec = Training(Job("book"));
  spec.placement.mesh.data = MeshWish::kRest;
  spec.max_restarts = 1;
  const JobStatus job = Submit(spec);
  auto world = Attach(*agent);
  ASSERT_TRUE(world->Runs<TrainOrder>());  // no LoadTask before
  EXPECT_EQ(Get(job.id).state, JobState::kRunning);
  const JobSpec& ordered = std::get<TrainOrder>(world->programs.back().task).spec;
  EXPECT_EQ(ordered.placement.load.mesh, (MeshShape{2, 1, 1}));
  EXPECT_EQ(std::get<TrainTask>(ordered.task).plan.steps, 7);
  EXPECT_EQ(world->programs.back().output_dir, "runs/book");
  std::vector<JobEvent> events;  // of one who watches
  JobSink sink;
  sink.event = [&events](const JobEvent& event) { events.push_back(event); };
  ASSERT_TRUE(controller_->WatchJob(job.id, 0, sink).ok());
  ASSERT_EQ(events.size(), 1u);
  EXPECT_FALSE(events[0].status.progress.has_value());
  Tell(*world, ProgressAnswer{"train", 1, 7, 5.5, 100});
  Tell(*world, ProgressAnswer{"train", 2, 7, 5.25, 100});  // too soon to be told
  EXPECT_EQ(Get(job.id).progress->done, 2);
  Advance(absl::Milliseconds(1100));
  Tell(*world, ProgressAnswer{"train", 3, 7, 5.0, 200});
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[1].sequence, events[0].sequence);
  EXPECT_EQ(events[2].sequence, events[0].sequence);
  EXPECT_EQ(events[1].status.progress->done, 1);
  EXPECT_EQ(events[2].status.progress->loss, 5.0);
  EXPECT_EQ(events[2].status.progress->tokens_per_s, 200);
  events.clear();
  ASSERT_TRUE(controller_->WatchJob(job.id, 1, sink).ok());  // none of them was kept
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i].sequence, i + 1);
  EndWorld(*agent, world->id, {137, 9, 1, "h", "died"});
  EXPECT_EQ(Get(job.id).state, JobState::kRestarting);
  Advance(absl::Milliseconds(1100));
  world = Attach(*agent);
  ASSERT_TRUE(world->Runs<TrainOrder>());
  EXPECT_EQ(world->id.epoch, 2u);
  TrainResult result;
  result.run.steps = 7;
  Tell(*world, result);
  const JobStatus ended = Get(job.id);
  EXPECT_EQ(ended.state, JobState::kSucceeded);
  EXPECT_EQ(std::get<TrainResult>(ended.result).run.steps, 7);
  EXPECT_TRUE(world->Runs<ExitTask>());
}

TEST_F(ControllerTest, RestartsWithoutANewCheckpointAreThree) {
  auto agent = Connect("a");
  const auto die = [&](const FakeWorld& world) {
    EndWorld(*agent, world.id, {137, 9, 1, "h", "rank 1 on host h was ended by signal 9"});
    const size_t launches = agent->launches.size();
    for (int second = 0; second < 61 && agent->launches.size() == launches; ++second) {
      controller_->AgentHeartbeat(agent->session);
      Advance(absl::Seconds(1));
    }
  };
  JobSpec spec = Job("book");
  spec.task = TrainTask();
  spec.max_restarts = 100;
  const JobStatus job = Submit(spec);
  for (int launch = 0; launch < 2; ++launch) die(*Attach(*agent));
  EXPECT_EQ(Get(job.id).restarts_since_checkpoint, 2);
  EXPECT_FALSE(Get(job.id).checkpoint.has_value());
  auto world = Attach(*agent);
  Tell(*world, JobCheckpoint{0, 10, "runs/book/checkpoints/step-00000010", 77});
  JobStatus status = Get(job.id);
  EXPECT_EQ(status.restarts_since_checkpoint, 0);
  ASSERT_TRUE(status.checkpoint.has_value());
  EXPECT_EQ(status.checkpoint->step, 10);
  EXPECT_EQ(status.checkpoint->epoch, 3u);  // the launch's, whatever was told
  EXPECT_EQ(status.checkpoint->path, "runs/book/checkpoints/step-00000010");
  EXPECT_EQ(store_->Committed(job.id)->hash, 77u);
  EXPECT_EQ(store_->Committed(job.id)->epoch, 3u);
  die(*world);
  for (int launch = 0; launch < 3; ++launch) {
    EXPECT_EQ(Get(job.id).restarts_since_checkpoint, launch + 1);
    world = Attach(*agent);
    // Where it goes on from is durable, but nothing new.
    Tell(*world, JobCheckpoint{0, 10, "runs/book/checkpoints/step-00000010", 77});
    EXPECT_EQ(store_->Committed(job.id)->epoch, 4u + launch);
    die(*world);
  }
  status = Get(job.id);
  EXPECT_EQ(status.state, JobState::kFailed);
  EXPECT_EQ(status.reason, "NoProgress");
  EXPECT_THAT(status.message, HasSubstr("3 restarts without a new checkpoint"));
  EXPECT_THAT(status.message, HasSubstr("step-00000010"));
  EXPECT_THAT(status.message, HasSubstr("signal 9"));
  EXPECT_EQ(status.restarts, 5);
  EXPECT_EQ(status.exit.rank, 1);
  Start();  // all of it is durable
  EXPECT_EQ(Get(job.id).checkpoint->hash, 77u);
}

TEST_F(ControllerTest, ACheckpointOfAnEarlierLaunchIsDropped) {
  auto agent = Connect("a");
  JobSpec spec = Job("book");
  spec.task = TrainTask();
  spec.max_restarts = 1;
  const JobStatus job = Submit(spec);
  auto first = Attach(*agent);
  EndWorld(*agent, first->id, {137, 9, 1, "h", "died"});
  Advance(absl::Milliseconds(1100));
  auto second = Attach(*agent);
  Tell(*second, JobCheckpoint{0, 5, "five", 55});
  const uint64_t dropped = controller_->stale_dropped();
  Tell(*first, JobCheckpoint{0, 9, "nine", 99});
  EXPECT_EQ(controller_->stale_dropped(), dropped + 1);
  EXPECT_EQ(Get(job.id).checkpoint->step, 5);
  EXPECT_EQ(store_->Committed(job.id)->hash, 55u);
}

TEST_F(ControllerTest, AJobThatMovesToAnotherPodHasALaterEpoch) {
  auto a = Connect("a");
  JobSpec spec = Job("book");
  spec.max_restarts = 1;
  const JobStatus job = Submit(spec);
  EXPECT_EQ(a->last().world.epoch, 1u);
  EndWorld(*a, a->last().world, {137, 9, 1, "h", "died"});
  ASSERT_TRUE(controller_->DrainPod("a", true).ok());
  auto b = Connect("b");
  Advance(absl::Milliseconds(1100));
  ASSERT_EQ(b->launches.size(), 1u);
  EXPECT_EQ(b->last().world.epoch, 2u);
  EXPECT_EQ(Get(job.id).epoch, 2u);
}

// A launch hears what the job has committed, and is where that lies if it can be.
TEST_F(ControllerTest, ALaunchIsToldWhatIsCommitted) {
  JobSpec spec = Training(Job("book"));
  const auto b = Connect("b");
  const JobStatus job = Submit(spec);
  const auto order = [](const FakeWorld& world) {
    return std::get<TrainOrder>(world.programs.back().task);
  };
  auto world = Attach(*b);
  EXPECT_EQ(order(*world).committed_step, 0);
  EXPECT_EQ(order(*world).committed_path, "");
  const auto a = Connect("a");  // it comes first by name
  Tell(*world, JobCheckpoint{0, 5, "runs/book/checkpoints/step-00000005", 55});
  EndWorld(*b, world->id, {137, 9, 1, "h", "died"});
  Advance(absl::Milliseconds(1100));
  EXPECT_TRUE(a->launches.empty());
  ASSERT_EQ(b->launches.size(), 2u);
  world = Attach(*b);
  EXPECT_EQ(order(*world).committed_step, 5);
  EXPECT_EQ(order(*world).committed_path, "runs/book/checkpoints/step-00000005");
  EXPECT_EQ(Get(job.id).checkpoint->step, 5);
}

TEST_F(ControllerTest, AJobThatIsVerifiedHasItsVerdict) {
  auto agent = Connect("a");
  JobSpec spec = Job("proof");
  spec.task = TrainTask();
  spec.verify = VerifyTask();
  spec.verify->tokens = 9;
  const JobStatus job = Submit(spec);
  auto world = Attach(*agent);
  ASSERT_TRUE(world->Runs<TrainOrder>());
  EXPECT_EQ(std::get<TrainOrder>(world->programs.back().task).spec.verify->tokens, 9);
  VerifyResult result;
  result.worst = {"loss", -1, 1e-7, 1e-6};
  Tell(*world, result);
  const JobStatus ended = Get(job.id);
  EXPECT_EQ(ended.state, JobState::kSucceeded);
  EXPECT_EQ(std::get<VerifyResult>(ended.result).worst.tensor, "loss");
}

TEST_F(ControllerTest, OnlyThePresentLaunchMayAttach) {
  auto agent = Connect("a");
  auto client = Ask(Request("m"));
  WorldLink link;
  link.run = [](const WorldProgram&) {};
  WorkerAttachment attachment{agent->last().world, "a", "wrong", "h", 1};
  EXPECT_EQ(controller_->WorkerAttached(attachment, link).status().code(),
            absl::StatusCode::kPermissionDenied);
  attachment.credential = agent->last().credential;
  attachment.world.epoch += 1;
  EXPECT_EQ(controller_->WorkerAttached(attachment, link).status().code(),
            absl::StatusCode::kPermissionDenied);
  attachment.world.epoch -= 1;
  EXPECT_TRUE(controller_->WorkerAttached(attachment, link).ok());
}

TEST_F(ControllerTest, CancelStopsTheProgramOrTheWorld) {
  auto agent = Connect("a");
  auto client = Ask(Request("m"));
  auto world = AttachAndLoad(*agent);
  controller_->CancelRequest(client->id);
  ASSERT_EQ(client->done.size(), 1u);
  EXPECT_EQ(client->done[0].status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(world->cancels, ElementsAre(world->number()));
  GenerateResult cancelled;
  cancelled.finish = FinishReason::kCancelled;
  Tell(*world, cancelled);
  auto next = Ask(Request("m"));  // the world takes the next request
  EXPECT_TRUE(world->Runs<GenerateTask>());
  controller_->CancelRequest(next->id);
  Advance(absl::Milliseconds(2100));  // no answer this time
  EXPECT_EQ(agent->stops.size(), 1u);
}

TEST_F(ControllerTest, VerifyUsesTheKeptWorldAndIsCancelled) {
  auto agent = Connect("a");
  auto first = Ask(Request("m"));
  auto world = AttachAndLoad(*agent);
  Tell(*world, GenerateResult());
  RequestSpec spec = Request("m");
  VerifyTask task;
  task.tokens = 9;
  task.request.layers = 2;
  spec.task = task;
  auto verify = Ask(spec);
  EXPECT_TRUE(verify->accepted.at(0).kept);
  ASSERT_TRUE(world->Runs<VerifyTask>());
  EXPECT_EQ(std::get<VerifyTask>(world->programs.back().task).request.layers, 2);
  Tell(*world, ProgressAnswer{"verify", 1, 3});
  EXPECT_THAT(verify->phases, ElementsAre("verify"));
  VerifyResult result;
  result.worst = {"q", 1, 1e-7, 1e-6};
  Tell(*world, result);
  ASSERT_EQ(verify->done.size(), 1u);
  EXPECT_EQ(std::get<VerifyResult>(*verify->done[0]).worst.tensor, "q");

  auto gone = Ask(spec);  // the client leaves: the world stops, and takes the next request
  controller_->CancelRequest(gone->id);
  EXPECT_EQ(gone->done.at(0).status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(world->cancels, ElementsAre(world->number()));
  Tell(*world, absl::Status(absl::CancelledError("cancelled")));
  Ask(Request("m"));
  EXPECT_TRUE(world->Runs<GenerateTask>());
  spec.placement.mesh = {1, 3, 1};  // more ranks than the largest pod has
  EXPECT_EQ(Ask(spec)->done.at(0).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(ControllerTest, CancelledJobs) {
  const JobStatus queued = Submit(Job("queued"));
  ASSERT_TRUE(controller_->CancelJob(queued.id).ok());
  EXPECT_EQ(Get(queued.id).state, JobState::kCancelled);
  auto agent = Connect("a");
  const JobStatus running = Submit(Job("running"));
  auto world = AttachAndLoad(*agent);
  EXPECT_EQ(controller_->CancelJob(running.id)->state, JobState::kRunning);
  EXPECT_EQ(world->cancels.size(), 1u);
  GenerateResult cancelled;
  cancelled.finish = FinishReason::kCancelled;
  Tell(*world, cancelled);
  EXPECT_EQ(Get(running.id).state, JobState::kCancelled);
  ASSERT_TRUE(controller_->CancelJob(running.id).ok());  // ended: nothing changes
  EXPECT_EQ(Get(running.id).state, JobState::kCancelled);
  EXPECT_TRUE(controller_->DeleteJob(running.id).ok());
  EXPECT_EQ(controller_->GetJob(running.id).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ControllerTest, LostAgentIsReplacedOnlyAfterTheLease) {
  auto a = Connect("a");
  auto b = Connect("b");
  JobSpec spec = Job("book");
  spec.max_restarts = 1;
  const JobStatus job = Submit(spec);
  ASSERT_EQ(a->launches.size(), 1u);
  auto world = AttachAndLoad(*a);
  controller_->AgentGone(a->session);
  EXPECT_EQ(Get(job.id).state, JobState::kRunning);  // the world's own stream still lives
  controller_->WorkerGone(world->session);
  EXPECT_EQ(Get(job.id).state, JobState::kRestarting);
  EXPECT_EQ(Get(job.id).reason, "AgentLost");
  ASSERT_NO_FATAL_FAILURE(ExpectLaunchAfterTheLease(*b));
  EXPECT_EQ(b->last().world.job, job.id);
}

TEST_F(ControllerTest, ReturningAgentConfirmsTheEnd) {
  auto a = Connect("a");
  JobSpec spec = Job("book");
  spec.max_restarts = 1;
  const JobStatus job = Submit(spec);
  controller_->AgentGone(a->session);
  EXPECT_EQ(Get(job.id).state, JobState::kRestarting);
  a = Connect("a");  // without the world
  Advance(absl::Milliseconds(1100));
  EXPECT_EQ(a->launches.size(), 1u);
}

// An order that was given while its agent was away is given again, once it is back.
TEST_F(ControllerTest, AReturningAgentIsToldTheStopThatItMissed) {
  auto a = Connect("a");
  const JobStatus job = Submit(Training(Job("book")));
  auto world = Attach(*a);
  const HeldWorld held = {a->last().world, a->last().credential};
  const auto returns = [&] {
    controller_->AgentGone(a->session);
    a = Connect("a", 2, {held});
  };
  returns();
  EXPECT_TRUE(a->stops.empty());  // control: nobody wants it to end
  ASSERT_TRUE(controller_->CancelJob(job.id).ok());
  returns();
  EXPECT_TRUE(a->stops.empty());  // its program has two seconds
  controller_->AgentGone(a->session);
  Advance(absl::Seconds(2));  // it does not end: the order goes nowhere
  Advance(absl::Seconds(4));
  a = Connect("a", 2, {held});
  EXPECT_THAT(a->stops, ElementsAre(held.id));
  Advance(absl::Seconds(5));
  returns();  // again: the order may have been lost with the stream
  EXPECT_THAT(a->stops, ElementsAre(held.id));
  // It has what is left of the ten seconds, and the three that a world takes to end at least.
  controller_->AgentHeartbeat(a->session);
  Advance(absl::Milliseconds(2900));
  EXPECT_EQ(controller_->ListPods()[0].job, job.id);
  EXPECT_EQ(Get(job.id).state, JobState::kRunning);
  EndWorld(*a, held.id, {143, 15, -1, "", "ended"});
  EXPECT_EQ(Get(job.id).state, JobState::kCancelled);
  EXPECT_EQ(controller_->ListPods()[0].state, "READY");
}

TEST_F(ControllerTest, LeaseExpiryLosesThePod) {
  auto agent = Connect("a");
  auto client = Ask(Request("m"));
  auto world = AttachAndLoad(*agent);
  const uint64_t view = controller_->view();
  Advance(absl::Seconds(16));
  ASSERT_EQ(client->done.size(), 1u);
  EXPECT_EQ(GetErrorInfo(client->done[0].status()).reason, "AGENT_LOST");
  EXPECT_EQ(controller_->ListPods()[0].state, "LOST");
  EXPECT_GT(controller_->view(), view);
}

TEST_F(ControllerTest, ControllerRestartReconcilesBeforeItActs) {
  auto agent = Connect("a");
  const JobStatus job = Submit(Job("book"));
  const WorldId old = agent->last().world;
  Start();
  EXPECT_EQ(Get(job.id).state, JobState::kRestarting);
  EXPECT_EQ(Get(job.id).reason, "ControllerRestarted");
  agent = Connect("a", 2, {{old, "word"}});  // its world still runs: it is ended first
  EXPECT_THAT(agent->stops, ElementsAre(old));
  Advance(absl::Milliseconds(1100));
  EXPECT_TRUE(agent->launches.empty());
  EndWorld(*agent, old);
  ASSERT_EQ(agent->launches.size(), 1u);
  EXPECT_GT(agent->last().world.epoch, old.epoch);
}

TEST_F(ControllerTest, AControllerThatWasRestartedKeepsAWorldThatTrains) {
  auto agent = Connect("a");
  const JobStatus job = Submit(Training(Job("book")));
  auto world = Attach(*agent);
  const LaunchOrder order = agent->last();
  const uint64_t program = world->number();
  Start();
  const uint64_t sequence = store_->Get(job.id)->sequence;
  EXPECT_EQ(Get(job.id).state, JobState::kRunning);
  WorldLink link;  // rank 0 is here before its agent: too early, not refused
  link.run = [](const WorldProgram&) {};
  WorkerAttachment early{order.world, "a", order.credential, "h", 1, program};
  EXPECT_EQ(controller_->WorkerAttached(early, link).status().code(),
            absl::StatusCode::kUnavailable);
  agent = Connect("a", 2, {{order.world, order.credential}});
  EXPECT_EQ(Get(job.id).state, JobState::kRunning);
  early.credential = "wrong";
  EXPECT_EQ(controller_->WorkerAttached(early, link).status().code(),
            absl::StatusCode::kPermissionDenied);
  world = Attach("a", order, program);
  for (int second = 0; second < 30; ++second) {
    controller_->AgentHeartbeat(agent->session);
    Advance(absl::Seconds(1));
  }
  EXPECT_TRUE(agent->stops.empty());
  EXPECT_TRUE(agent->launches.empty());
  EXPECT_TRUE(world->programs.empty());  // it has its program
  EXPECT_EQ(Get(job.id).state, JobState::kRunning);
  EXPECT_EQ(Get(job.id).epoch, 1u);
  EXPECT_EQ(Get(job.id).restarts, 0);
  EXPECT_EQ(store_->Get(job.id)->sequence, sequence);
  const auto tell = [&](auto body) {
    controller_->WorkerAnswered(world->session, world->id, {program, std::move(body)});
  };
  tell(ProgressAnswer{"train", 3, 7, 5.5, 100});
  EXPECT_EQ(Get(job.id).progress->done, 3);
  tell(TrainResult());
  EXPECT_EQ(Get(job.id).state, JobState::kSucceeded);
  EXPECT_TRUE(world->Runs<ExitTask>());
  EXPECT_GT(world->number(), program);
}

TEST_F(ControllerTest, AControllerThatWasRestartedEndsWhatIsNotThePresentLaunch) {
  auto agent = Connect("a");
  const JobStatus job = Submit(Training(Job("book")));
  Attach(*agent);
  LaunchOrder order = agent->last();
  Start();
  ++order.world.epoch;
  agent = Connect("a", 2, {{order.world, order.credential}});
  EXPECT_THAT(agent->stops, ElementsAre(order.world));
  EXPECT_EQ(Get(job.id).state, JobState::kRestarting);
  EXPECT_EQ(Get(job.id).reason, "ControllerRestarted");
}

TEST_F(ControllerTest, AControllerThatWasRestartedReplacesAWorldThatIsGone) {
  auto agent = Connect("a");
  const JobStatus job = Submit(Training(Job("book")));
  Attach(*agent);
  Start();
  agent = Connect("a");  // without the world
  EXPECT_EQ(Get(job.id).reason, "ControllerRestarted");
  Advance(absl::Milliseconds(1100));
  ASSERT_EQ(agent->launches.size(), 1u);
  EXPECT_EQ(agent->last().world.epoch, 2u);
  EXPECT_EQ(Get(job.id).restarts, 0);  // nobody saw a failure
  Attach(*agent);
  Start();  // and now the pod is gone
  auto other = Connect("b");
  ASSERT_NO_FATAL_FAILURE(ExpectLaunchAfterTheLease(*other));
  EXPECT_EQ(other->last().world.epoch, 3u);
}

TEST_F(ControllerTest, AWorldThatTrainsMayLoseItsStream) {
  auto agent = Connect("a");
  const JobStatus job = Submit(Training(Job("book")));
  auto world = Attach(*agent);
  const uint64_t program = world->number();
  const auto wait = [&](int seconds) {
    for (int second = 0; second < seconds; ++second) {
      controller_->AgentHeartbeat(agent->session);
      Advance(absl::Seconds(1));
    }
  };
  controller_->WorkerGone(world->session);
  wait(10);
  EXPECT_TRUE(agent->stops.empty());
  world = Attach(*agent, program);
  EXPECT_TRUE(world->programs.empty());
  wait(30);
  EXPECT_EQ(Get(job.id).state, JobState::kRunning);
  controller_->WorkerGone(world->session);  // and does not come back
  wait(16);
  EXPECT_THAT(agent->stops, ElementsAre(world->id));
  EndWorld(*agent, world->id, {143, 15, -1, "", "ended"});
  EXPECT_EQ(Get(job.id).state, JobState::kRestarting);
  EXPECT_EQ(Get(job.id).reason, "StreamLost");
  EXPECT_EQ(Get(job.id).restarts, 1);
}

TEST_F(ControllerTest, AJobThatTrainsSavesWhenItsTimeIsUp) {
  auto agent = Connect("a");
  JobSpec spec = Training(Job("book"));
  spec.active_deadline = absl::Seconds(5);
  const JobStatus job = Submit(spec);
  auto world = Attach(*agent);
  Advance(absl::Seconds(6));
  EXPECT_TRUE(world->cancels.empty());
  EXPECT_THAT(world->saves, ElementsAre(world->number()));
  controller_->AgentHeartbeat(agent->session);
  Advance(absl::Seconds(10));  // saving may take a while
  EXPECT_TRUE(agent->stops.empty());
  Tell(*world, JobCheckpoint{0, 8, "runs/book/checkpoints/step-00000008", 7});
  Tell(*world, absl::Status(absl::CancelledError("checkpointed")));
  JobStatus ended = Get(job.id);
  EXPECT_EQ(ended.state, JobState::kFailed);
  EXPECT_EQ(ended.reason, "DeadlineExceeded");
  EXPECT_THAT(ended.message, HasSubstr("step-00000008"));
  EndWorld(*agent, world->id);
  // Also if nobody was there when it was up.
  const JobStatus late = Submit(spec);
  const auto program = Attach(*agent)->number();
  const LaunchOrder order = agent->last();
  Start();
  Advance(absl::Seconds(6));
  agent = Connect("a", 2, {{order.world, order.credential}});
  world = Attach("a", order, program);
  controller_->Tick();
  EXPECT_THAT(world->saves, ElementsAre(program));
  EXPECT_TRUE(agent->stops.empty());
  controller_->WorkerAnswered(world->session, world->id,
                              {program, absl::Status(absl::CancelledError("checkpointed"))});
  EXPECT_EQ(Get(late.id).reason, "DeadlineExceeded");
  EndWorld(*agent, world->id);
  // A client's cancel does not wait for that.
  const JobStatus other = Submit(Training(Job("other")));
  world = Attach(*agent);
  ASSERT_TRUE(controller_->CancelJob(other.id).ok());
  EXPECT_THAT(world->cancels, ElementsAre(world->number()));
  EXPECT_TRUE(world->saves.empty());
}

TEST_F(ControllerTest, RefusalsNameWhatIsMissing) {
  auto client = Ask(Request("m"));
  EXPECT_EQ(client->done.at(0).status().code(), absl::StatusCode::kFailedPrecondition);
  auto agent = Connect("a", 4);
  RequestSpec spec = Request("m");
  spec.placement.mesh = {0, 8, 0};
  client = Ask(spec);
  EXPECT_EQ(client->done.at(0).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(client->done[0].status().ToString(), HasSubstr("mesh needs 8, pod has 4"));
  spec = Request("m");
  spec.placement.pod = "z";
  client = Ask(spec);
  EXPECT_EQ(client->done.at(0).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(
      controller_->AgentConnected({"a", "h", 1, kVersion, 2, {}}, AgentLink()).status().code(),
      absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(controller_->AgentConnected({"b", "h", 1, "0.0.0", 2, {}}, AgentLink()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(ControllerTest, UnknownModelIsNotRetried) {
  auto agent = Connect("a");
  JobSpec spec = Job("book");
  spec.max_restarts = 3;
  const JobStatus job = Submit(spec);
  controller_->LaunchRefused(
      agent->session, agent->last().world,
      MakeError(absl::StatusCode::kNotFound, "no such file: m", {"NO_SUCH_PATH", {}, {}}));
  EXPECT_EQ(Get(job.id).state, JobState::kFailed);
  EXPECT_EQ(Get(job.id).reason, "NoSuchPath");
  auto client = Ask(Request("m"));
  controller_->LaunchRefused(agent->session, agent->last().world, absl::NotFoundError("no file"));
  EXPECT_EQ(client->done.at(0).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ControllerTest, DeadlinesOfJobsRequestsAndStarts) {
  auto agent = Connect("a");
  JobSpec spec = Job("book");
  spec.active_deadline = absl::Seconds(5);
  const JobStatus job = Submit(spec);
  auto world = AttachAndLoad(*agent);
  Advance(absl::Seconds(6));
  EXPECT_EQ(world->cancels.size(), 1u);
  Tell(*world, GenerateResult());
  EXPECT_EQ(Get(job.id).state, JobState::kFailed);
  EXPECT_EQ(Get(job.id).reason, "DeadlineExceeded");
  EndWorld(*agent, world->id);

  RequestSpec request = Request("m");
  request.timeout = absl::Seconds(1);
  auto client = Ask(request);
  controller_->AgentHeartbeat(agent->session);
  Advance(absl::Seconds(2));
  EXPECT_EQ(client->done.at(0).status().code(), absl::StatusCode::kDeadlineExceeded);
  for (int i = 0; i < 61; ++i) {  // that world never attaches
    controller_->AgentHeartbeat(agent->session);
    Advance(absl::Seconds(1));
  }
  EXPECT_EQ(agent->stops.size(), 1u);
}

TEST_F(ControllerTest, DrainedPodTakesNothingNew) {
  auto agent = Connect("a");
  ASSERT_TRUE(controller_->DrainPod("a", true).ok());
  const JobStatus job = Submit(Job("book"));
  EXPECT_TRUE(agent->launches.empty());
  EXPECT_EQ(controller_->DrainPod("a", false)->state, "BUSY");
  EXPECT_EQ(agent->launches.size(), 1u);
  EXPECT_EQ(controller_->DrainPod("z", true).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ControllerTest, ListsByPagesAndStates) {
  for (int i = 0; i < 5; ++i) Submit(Job(absl::StrCat("j", i)));
  auto page = controller_->ListJobs({}, 2, "");
  ASSERT_TRUE(page.ok());
  EXPECT_EQ(page->jobs[0].name, "j4");  // newest first
  std::vector<std::string> names;
  std::string token;
  do {
    page = controller_->ListJobs({JobState::kQueued}, 2, token);
    ASSERT_TRUE(page.ok());
    for (const JobStatus& job : page->jobs) names.push_back(job.name);
    token = page->next_page_token;
  } while (!token.empty());
  EXPECT_THAT(names, ElementsAre("j4", "j3", "j2", "j1", "j0"));
  EXPECT_TRUE(controller_->ListJobs({JobState::kFailed}, 0, "")->jobs.empty());
  EXPECT_FALSE(controller_->ListJobs({}, 0, "x").ok());
}

TEST_F(ControllerTest, HigherPriorityGoesFirst) {
  JobSpec low = Job("low"), high = Job("high");
  high.priority = 5;
  Submit(low);
  const JobStatus first = Submit(high);
  auto agent = Connect("a");
  EXPECT_EQ(agent->last().world.job, first.id);
}

}  // namespace
}  // namespace toroid
