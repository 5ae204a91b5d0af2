// Jobs that train on several pods: all at once, and all again (controller_joins_test.cc and
// controller_returns_test.cc have those that go on with fewer).
#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/rpc/controller_fixture.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

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

}  // namespace
}  // namespace toroid
