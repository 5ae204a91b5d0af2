// Policy `continue`: a job on several pods that begins with those that are free, and those that
// come later. With policy `halt` it waits for all, and says for whom.
#include <gmock/gmock.h>

#include "absl/strings/str_join.h"
#include "tests/rpc/controller_fixture.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

const WorldExit kKilled = {137, 9, 0, "host", "rank 0 died"};

class JoinsTest : public ControllerTest {
 protected:
  JobSpec OfTwo(PodsOptions::Policy policy = PodsOptions::Policy::kContinue) {
    JobSpec spec = OnTwoPods();
    TrainingPlan& plan = std::get<TrainTask>(spec.task).plan;
    plan.options.pods.policy = policy;
    plan.steps = 1000;
    return spec;
  }
  // Its world listens, pod `pod` of the job.
  std::shared_ptr<FakeWorld> Listens(const FakeAgent& agent) {
    const auto world = Attach(agent);
    Tell(*world, ListensAnswer{{absl::StrCat(agent.pod, ":1")}});
    return world;
  }
  void Step(const FakeWorld& world, int64_t step) {
    Tell(world, TaskProgress{"train", step, 1000, 1.5, 100});
  }
  // By pod of the job, "0a": pod 0 listens where an agent a is.
  static std::string TableOf(const FakeWorld& world) {
    std::vector<std::string> out;
    for (const PodAddresses& each : world.tables.back().pods) {
      out.push_back(absl::StrCat(each.pod, each.ranks[0].substr(0, 1)));
    }
    std::sort(out.begin(), out.end());
    return absl::StrJoin(out, " ");
  }
  const TrainOrder& OrderOf(const FakeWorld& world) {
    return std::get<TrainOrder>(world.programs.back().task);
  }
  // Seconds in which the agents are heard.
  void Pass(int seconds, const std::vector<std::shared_ptr<FakeAgent>>& agents) {
    for (int i = 0; i < seconds; ++i) {
      for (const auto& agent : agents) controller_->AgentHeartbeat(agent->session);
      Advance(absl::Seconds(1));
    }
  }
};

TEST_F(JoinsTest, AJobBeginsWithThePodsThatAreFreeAndTheOthersJoin) {
  const auto a = Connect("a");
  const std::string id = Submit(OfTwo()).id;
  Pass(4, {a});
  EXPECT_TRUE(a->launches.empty());  // another one may come
  EXPECT_EQ(Get(id).state, JobState::kQueued);
  Pass(1, {a});
  ASSERT_EQ(a->launches.size(), 1u);
  EXPECT_EQ(Get(id).reason, "FewerPods");
  EXPECT_THAT(Get(id).message, HasSubstr("1 of 2 pods had no place when the others began"));
  const auto first = Listens(*a);
  EXPECT_EQ(Get(id).state, JobState::kRunning);
  EXPECT_THAT(Get(id).message, HasSubstr("1 of 2 pods had no place"));
  EXPECT_EQ(OrderOf(*first).pod, 0);
  EXPECT_FALSE(OrderOf(*first).joins);
  EXPECT_EQ(TableOf(*first), "0a");  // it does not wait for the other
  EXPECT_EQ(Get(id).pod, "a");
  ASSERT_EQ(Get(id).pods.size(), 2u);
  EXPECT_EQ(Get(id).pods[1].state, "WAITING");

  const auto b = Connect("b", 8);
  EXPECT_TRUE(b->launches.empty());  // those that begin have not met yet
  Step(*first, 1);
  Advance(absl::ZeroDuration());
  ASSERT_EQ(b->launches.size(), 1u);
  EXPECT_EQ(b->last().ranks, 2);  // the mesh that the first takes it to have, of eight slots
  EXPECT_EQ(Get(id).reason, "PodJoins");
  EXPECT_EQ(Get(id).pod, "a,b");
  EXPECT_EQ(Get(id).pods[1].state, "JOINING");
  const auto second = Listens(*b);
  EXPECT_EQ(OrderOf(*second).pod, 1);
  EXPECT_TRUE(OrderOf(*second).joins);
  EXPECT_EQ(TableOf(*first), "0a 1b");
  EXPECT_EQ(TableOf(*second), "0a 1b");
  Step(*second, 7);
  EXPECT_EQ(Get(id).pods[1].state, "TRAINING");
  EXPECT_EQ(Get(id).reason, "PodJoined");
  EXPECT_EQ(Get(id).message, "pod 1 has joined: all 2 train");
  EXPECT_EQ(Get(id).restarts, 0);  // it was not lost
  // From here on it is as any pod.
  EndWorld(*b, second->id, kKilled);
  EXPECT_EQ(Get(id).reason, "PodReturns");
  EXPECT_EQ(Get(id).restarts, 1);
  Tell(*first, TrainResult());
  EXPECT_EQ(Get(id).state, JobState::kSucceeded);
}

TEST_F(JoinsTest, ThoseThatComeSoonBeginTogether) {
  const auto a = Connect("a");
  const std::string id = Submit(OfTwo()).id;
  Pass(3, {a});
  const auto b = Connect("b");
  ASSERT_EQ(a->launches.size() + b->launches.size(), 2u);
  const auto first = Listens(*a);
  EXPECT_TRUE(first->tables.empty());
  const auto second = Listens(*b);
  EXPECT_EQ(TableOf(*first), "0a 1b");
  EXPECT_FALSE(OrderOf(*second).joins);
  EXPECT_EQ(Get(id).message, "");
}

// A launch that fails on its way to its first step is no restart of a pod that was not lost yet.
TEST_F(JoinsTest, APodThatHadNoPlaceMayTryThreeTimes) {
  JobSpec spec = OfTwo();
  spec.max_restarts = 0;
  const auto a = Connect("a");
  const std::string id = Submit(spec).id;
  Pass(5, {a});
  const auto first = Listens(*a);
  Step(*first, 1);
  const auto b = Connect("b");
  for (const int seconds : {1, 2, 0}) {
    const size_t launches = b->launches.size();
    const auto joins = Listens(*b);
    EXPECT_TRUE(OrderOf(*joins).joins);
    EndWorld(*b, joins->id, kKilled);
    EXPECT_EQ(Get(id).restarts, 0);
    if (seconds == 0) break;
    Pass(seconds - 1, {a, b});
    EXPECT_EQ(b->launches.size(), launches);
    Pass(1, {a, b});
    ASSERT_EQ(b->launches.size(), launches + 1);
  }
  EXPECT_THAT(Get(id).message, HasSubstr("it does not return: max_restarts is 0"));
  Pass(100, {a, b});
  EXPECT_EQ(b->launches.size(), 3u);
  EXPECT_EQ(Get(id).state, JobState::kRunning);
}

// Control: one that has trained is lost, and no restart is left.
TEST_F(JoinsTest, APodThatIsLostHasItsRestartsAlone) {
  JobSpec spec = OfTwo();
  spec.max_restarts = 0;
  const auto a = Connect("a"), b = Connect("b");
  const std::string id = Submit(spec).id;
  const auto first = Listens(*a), second = Listens(*b);
  Step(*first, 1);
  Step(*second, 1);
  EndWorld(*b, second->id, kKilled);
  Pass(100, {a, b});
  EXPECT_EQ(b->launches.size(), 1u);
  EXPECT_EQ(Get(id).state, JobState::kRunning);
}

// Also over launches that began without it, and beside one that has lost its own.
TEST_F(JoinsTest, APodKeepsItsNumberWhileItHasNoPlace) {
  JobSpec spec = OfTwo();
  std::get<TrainTask>(spec.task).plan.options.pods.count = 3;
  const auto a = Connect("a");
  auto b = Connect("b"), c = Connect("c");
  const std::string id = Submit(spec).id;
  const auto fail = [&](const std::vector<FakeAgent*>& agents) {
    std::vector<std::shared_ptr<FakeWorld>> worlds;
    for (FakeAgent* agent : agents) worlds.push_back(Attach(*agent));
    for (size_t i = 0; i < agents.size(); ++i) EndWorld(*agents[i], worlds[i]->id, kKilled);
    EXPECT_EQ(Get(id).state, JobState::kRestarting);
  };
  EXPECT_EQ(Get(id).pod, "a,b,c");
  fail({a.get(), b.get(), c.get()});
  controller_->AgentGone(b->session);
  controller_->AgentGone(c->session);
  Pass(7, {a});
  EXPECT_EQ(Get(id).pod, "a");  // begins alone
  fail({a.get()});
  c = Connect("c");
  Pass(9, {a, c});
  ASSERT_EQ(c->launches.size(), 1u);
  const auto first = Listens(*a), third = Listens(*c);
  EXPECT_EQ(OrderOf(*first).pod, 0);
  EXPECT_EQ(OrderOf(*third).pod, 2);
  EXPECT_EQ(third->programs.back().output_dir, "runs/wide/pod-2");
  // As those that join: the place of b, which comes first, is not for c.
  Step(*first, 1);
  Step(*third, 1);
  EndWorld(*c, third->id, kKilled);
  ASSERT_EQ(c->launches.size(), 2u);
  EXPECT_EQ(OrderOf(*Listens(*c)).pod, 2);
  // Another agent takes the place that is left.
  const auto d = Connect("d");
  ASSERT_EQ(d->launches.size(), 1u);
  EXPECT_EQ(OrderOf(*Listens(*d)).pod, 1);
}

// However often pods come and go while a job waits.
TEST_F(JoinsTest, WhyAJobWaitsIsAnEventOnceAndAFewAtMost) {
  const auto a = Connect("a");
  JobSpec narrow = Job("narrow");
  narrow.placement.pod = "a";
  narrow.priority = 1;
  std::string busy = Submit(narrow).id;
  const std::string id = Submit(OfTwo(PodsOptions::Policy::kHalt)).id;
  std::vector<JobEvent> told;
  JobSink sink;
  sink.event = [&](const JobEvent& event) { told.push_back(event); };
  ASSERT_TRUE(controller_->WatchJob(id, 0, sink).ok());
  const auto kept = [&] { return store_->Events(id, 1)->size(); };
  for (int i = 0; i < 50; ++i) {
    const auto b = Connect("b");
    EXPECT_EQ(Get(id).reason, "PodsBusy");
    EXPECT_EQ(Get(id).message, absl::StrCat("the job needs 2 pods, 1 is free: a runs job ", busy));
    controller_->AgentGone(b->session);
    controller_->Tick();
    EXPECT_EQ(Get(id).reason, "TooFewPods");
  }
  EXPECT_EQ(kept(), 3u);  // queued, too few, busy
  EXPECT_LE(told.size(), 4u);
  // Those that watch hear the last word all the same, a second later, and once.
  Pass(1, {a});
  EXPECT_EQ(told.back().status.reason, "TooFewPods");
  const size_t heard = told.size();
  Pass(10, {a});
  EXPECT_EQ(told.size(), heard);
  // Each of these is another sentence.
  const auto b = Connect("b");
  for (int i = 0; i < 40; ++i) {
    const std::string next = Submit(narrow).id;
    const auto world = AttachAndLoad(*a);
    Tell(*world, GenerateResult());
    EndWorld(*a, world->id);
    EXPECT_EQ(Get(busy).state, JobState::kSucceeded);
    busy = next;
    controller_->Tick();
    EXPECT_THAT(Get(id).message, HasSubstr(absl::StrCat("a runs job ", busy)));
  }
  EXPECT_GT(kept(), 10u);  // control: what is new is kept
  EXPECT_LE(kept(), 21u);
}

// It ends with those that it has; who had no place is not waited for.
TEST_F(JoinsTest, AJobMayEndBeforeAllHadAPlace) {
  const auto a = Connect("a");
  const std::string id = Submit(OfTwo()).id;
  Pass(5, {a});
  const auto world = Listens(*a);
  Step(*world, 1);
  EXPECT_THAT(Get(id).message, HasSubstr("it joins once an agent has room"));
  Tell(*world, TrainResult());
  EXPECT_EQ(Get(id).state, JobState::kSucceeded);
}

// What it has nobody else has: it trains on, and its pod takes nothing else.
TEST_F(JoinsTest, TheLastPodThatTrainsDoesNotLeave) {
  const auto a = Connect("a"), b = Connect("b");
  const std::string id = Submit(OfTwo()).id;
  const auto first = Listens(*a), second = Listens(*b);
  Step(*first, 1);
  Step(*second, 1);
  ASSERT_TRUE(controller_->DrainPod("b", true).ok());
  EXPECT_EQ(b->stops.size(), 1u);  // control: the other one has its state
  ASSERT_TRUE(controller_->DrainPod("a", true).ok());
  Pass(30, {a, b});
  EXPECT_TRUE(a->stops.empty());
  EXPECT_EQ(Get(id).state, JobState::kRunning);
  Tell(*first, TrainResult());
  EXPECT_EQ(Get(id).state, JobState::kSucceeded);
}

TEST_F(JoinsTest, WithPolicyHaltItWaitsForAllAndSaysForWhom) {
  const auto a = Connect("a");
  const std::string id = Submit(OfTwo(PodsOptions::Policy::kHalt)).id;
  Pass(60, {a});
  EXPECT_TRUE(a->launches.empty());
  EXPECT_EQ(Get(id).state, JobState::kQueued);
  EXPECT_EQ(Get(id).reason, "TooFewPods");
  EXPECT_THAT(Get(id).message, HasSubstr("needs 2 pods, of those that are registered 1 can"));
  // A second one is there, and at something else.
  const auto b = Connect("b");
  ASSERT_EQ(a->launches.size(), 1u);
  const auto first = Listens(*a), second = Listens(*b);
  const std::string next = Submit(OfTwo(PodsOptions::Policy::kHalt)).id;
  EXPECT_EQ(Get(next).reason, "PodsBusy");
  EXPECT_EQ(Get(next).message,
            absl::StrCat("the job needs 2 pods, 0 are free: a runs job ", id, ", b runs job ", id));
  Tell(*first, TrainResult());
  EndWorld(*a, first->id);
  EXPECT_EQ(Get(next).message, absl::StrCat("the job needs 2 pods, 1 is free: b runs job ", id));
  Tell(*second, TrainResult());
  EndWorld(*b, second->id);
  EXPECT_EQ(a->launches.size() + b->launches.size(), 4u);
}

// After a failure of all, too; a pod keeps its number: what it has written lies on its host.
TEST_F(JoinsTest, AJobStartsAgainWithThosePodsThatAreLeft) {
  const auto a = Connect("a"), b = Connect("b");
  const std::string id = Submit(OfTwo()).id;
  const auto first = Listens(*a), second = Listens(*b);
  EndWorld(*a, first->id, kKilled);  // before a step: all start again
  EndWorld(*b, second->id, kKilled);
  EXPECT_EQ(Get(id).state, JobState::kRestarting);
  controller_->AgentGone(a->session);
  Pass(7, {b});
  ASSERT_EQ(b->launches.size(), 2u);
  const auto alone = Listens(*b);
  EXPECT_EQ(OrderOf(*alone).pod, 1);
  EXPECT_EQ(alone->programs.back().output_dir, "runs/wide/pod-1");
  EXPECT_EQ(Get(id).pods[0].state, "WAITING");
  EXPECT_EQ(TableOf(*alone), "1b");
  Step(*alone, 1);
  const auto back = Connect("a");
  ASSERT_EQ(back->launches.size(), 1u);
  EXPECT_EQ(OrderOf(*Listens(*back)).pod, 0);
  EXPECT_EQ(TableOf(*alone), "0a 1b");
}

// Where the newest checkpoint lies: another one has nothing to go on from, and would begin anew.
TEST_F(JoinsTest, AJobGoesOnWhereItsCheckpointLies) {
  const auto a = Connect("a");
  const std::string id = Submit(OfTwo()).id;
  Pass(5, {a});
  const auto first = Listens(*a);
  Step(*first, 5);
  Tell(*first, JobCheckpoint{first->id.epoch, 5, "c/5", 1});
  EndWorld(*a, first->id, kKilled);
  controller_->AgentGone(a->session);
  const auto b = Connect("b");
  Pass(20, {b});
  EXPECT_TRUE(b->launches.empty());
  EXPECT_EQ(Get(id).state, JobState::kRestarting);
  const auto back = Connect("a");
  Pass(7, {back, b});
  EXPECT_TRUE(b->launches.empty());  // both are free: begun with, it would lack that step
  ASSERT_EQ(back->launches.size(), 1u);
  const auto second = Listens(*back);
  EXPECT_EQ(OrderOf(*second).pod, 0);
  EXPECT_FALSE(OrderOf(*second).joins);
  EXPECT_EQ(Get(id).pods[0].checkpoint->step, 5);
  Step(*second, 6);
  ASSERT_EQ(b->launches.size(), 1u);
  const auto joins = Listens(*b);
  EXPECT_EQ(OrderOf(*joins).pod, 1);
  EXPECT_TRUE(OrderOf(*joins).joins);
}

// One whose mesh is its own, and one of the others: those are not done without.
TEST_F(JoinsTest, APodThatIsNamedIsNotDoneWithout) {
  JobSpec spec = OfTwo();
  spec.placement.pod_meshes["b"] = {1, 1, 1};
  const auto a = Connect("a");
  const std::string id = Submit(spec).id;
  Pass(20, {a});
  EXPECT_TRUE(a->launches.empty());
  EXPECT_THAT(Get(id).message, HasSubstr("pod_mesh: no such pod: b"));
  const auto b = Connect("b");
  ASSERT_EQ(b->launches.size(), 1u);
  EXPECT_EQ(b->last().ranks, 1);
  EXPECT_EQ(a->last().ranks, 2);
}

TEST_F(JoinsTest, AControllerThatWasRestartedKnowsWhoHadNoPlace) {
  auto a = Connect("a");
  const std::string id = Submit(OfTwo()).id;
  Pass(5, {a});
  auto first = Listens(*a);
  Step(*first, 1);
  const LaunchOrder order = a->last();
  const uint64_t program = first->number();
  Start();
  EXPECT_EQ(controller_->ListPods().size(), 1u);  // no pod without a name
  a = Connect("a", 2, {{order.world, order.credential}});
  first = Attach("a", order, program);
  controller_->WorkerAnswered(first->session, first->id, {program, ListensAnswer{{"a:1"}}});
  controller_->WorkerAnswered(first->session, first->id,
                              {program, ProgressAnswer{"train", 5, 1000}});
  EXPECT_EQ(Get(id).pods[1].state, "WAITING");
  const auto b = Connect("b");
  ASSERT_EQ(b->launches.size(), 1u);
  const auto second = Listens(*b);
  EXPECT_TRUE(OrderOf(*second).joins);
  Step(*second, 7);
  EXPECT_EQ(Get(id).message, "pod 1 has joined: all 2 train");
}

// Until somebody says otherwise, to whichever controller.
TEST_F(JoinsTest, APodThatDrainsStaysSoOverARestartOfTheController) {
  Connect("a");
  Connect("b");
  ASSERT_TRUE(controller_->DrainPod("a", true).ok());
  Start();
  ASSERT_EQ(controller_->ListPods().size(), 1u);
  EXPECT_EQ(controller_->ListPods()[0].name, "a");
  EXPECT_EQ(controller_->ListPods()[0].state, "LOST");  // it is not there yet
  const auto a = Connect("a"), b = Connect("b");
  EXPECT_EQ(controller_->ListPods()[0].state, "DRAINING");
  EXPECT_EQ(controller_->ListPods()[1].state, "READY");
  Submit(Job("one"));
  EXPECT_TRUE(a->launches.empty());
  EXPECT_EQ(b->launches.size(), 1u);
  Submit(Job("two"));
  EXPECT_TRUE(a->launches.empty());
  ASSERT_TRUE(controller_->DrainPod("a", false).ok());
  EXPECT_EQ(a->launches.size(), 1u);
  Start();
  EXPECT_EQ(Connect("a")->pod, "a");
  EXPECT_EQ(controller_->ListPods()[0].state, "READY");
}

}  // namespace
}  // namespace toroid
