// Policy `continue`: pods of a job that go away while the others train, and come back.
#include <gmock/gmock.h>

#include "absl/strings/str_join.h"
#include "tests/rpc/controller_fixture.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

const WorldExit kKilled = {137, 9, 0, "host", "rank 0 died"};

class ReturnsTest : public ControllerTest {
 protected:
  // A job on pods a, b, c, which all train; pod i of the job is the i-th.
  void Begin(const std::function<void(JobSpec&)>& change = [](JobSpec&) {}) {
    for (const char* name : {"a", "b", "c"}) agents_.push_back(Connect(name));
    JobSpec spec = OnTwoPods();
    TrainingPlan& plan = std::get<TrainTask>(spec.task).plan;
    plan.options.pods.count = 3;
    plan.options.pods.policy = PodsOptions::Policy::kContinue;
    plan.steps = 1000;
    change(spec);
    id_ = Submit(spec).id;
    BeginWorlds();
    for (size_t pod = 0; pod < 3; ++pod) Step(pod, 1);
  }
  void BeginWorlds() {
    worlds_.clear();
    for (const auto& agent : agents_) worlds_.push_back(Attach(*agent));
    for (size_t pod = 0; pod < 3; ++pod) Listen(pod);
  }
  void Listen(size_t pod) { Tell(*worlds_[pod], ListensAnswer{{absl::StrCat("h:", pod)}}); }
  void Step(size_t pod, int64_t step, uint64_t hash = 0) {
    TaskProgress progress{"train", step, 1000, 1.5, 100};
    if (hash != 0) progress.exchange = ExchangeProgress{3, 0, 1, 0, step, hash};
    Tell(*worlds_[pod], progress);
  }
  void Kill(size_t pod) { EndWorld(*agents_[pod], worlds_[pod]->id, kKilled); }
  // The launch that follows attaches, and listens.
  void Return(size_t pod, size_t agent) {
    worlds_[pod] = Attach(*agents_[agent]);
    Listen(pod);
  }
  std::string MembersOf(size_t pod) {
    std::vector<std::string> out;
    for (const PodAddresses& each : worlds_[pod]->tables.back().pods) {
      out.push_back(absl::StrCat(each.pod, "@", each.epoch));
    }
    std::sort(out.begin(), out.end());
    return absl::StrJoin(out, " ");
  }
  std::string At(size_t pod) { return absl::StrCat(pod, "@", worlds_[pod]->id.epoch); }
  std::string StateOf(size_t pod) { return Get(id_).pods[pod].state; }

  std::vector<std::shared_ptr<FakeAgent>> agents_;
  std::vector<std::shared_ptr<FakeWorld>> worlds_;
  std::string id_;
};

TEST_F(ReturnsTest, ALostPodIsLaunchedAgainWhileTheOthersTrain) {
  Begin();
  const uint64_t first_epoch = worlds_[1]->id.epoch;
  EXPECT_EQ(StateOf(1), "TRAINING");
  std::vector<JobEvent> events;
  JobSink sink;
  sink.event = [&events](const JobEvent& event) { events.push_back(event); };
  ASSERT_TRUE(controller_->WatchJob(id_, 0, sink).ok());
  Kill(1);
  ASSERT_GE(events.size(), 2u);
  const JobStatus lost = events[events.size() - 2].status;
  EXPECT_EQ(lost.state, JobState::kRunning);
  EXPECT_EQ(lost.reason, "PodLost");
  EXPECT_THAT(lost.message, HasSubstr("1 of 3 pods lost, the others go on: pod 1 on b: "));
  EXPECT_THAT(lost.message, HasSubstr("rank 0 died"));
  EXPECT_EQ(lost.pods[1].state, "LOST");
  EXPECT_EQ(MembersOf(0), absl::StrCat(At(0), " ", At(2)));
  ASSERT_EQ(agents_[1]->launches.size(), 2u);  // at once
  EXPECT_EQ(Get(id_).reason, "PodReturns");
  EXPECT_EQ(Get(id_).restarts, 1);
  EXPECT_EQ(Get(id_).restarts_since_checkpoint, 0);
  EXPECT_EQ(StateOf(1), "JOINING");
  EXPECT_EQ(agents_[0]->stops.size() + agents_[2]->stops.size(), 0u);

  worlds_[1] = Attach(*agents_[1]);
  EXPECT_GT(worlds_[1]->id.epoch, first_epoch);
  ASSERT_TRUE(worlds_[1]->Runs<TrainOrder>());
  const TrainOrder order = std::get<TrainOrder>(worlds_[1]->programs.back().task);
  EXPECT_EQ(order.pod, 1);
  EXPECT_TRUE(order.joins);
  EXPECT_FALSE(std::get<TrainOrder>(worlds_[0]->programs.back().task).joins);
  EXPECT_EQ(worlds_[1]->programs.back().output_dir, "runs/wide/pod-1");
  EXPECT_EQ(MembersOf(0), absl::StrCat(At(0), " ", At(2)));  // it does not listen yet
  Listen(1);
  const std::string all = absl::StrCat(At(0), " ", At(1), " ", At(2));
  for (size_t pod = 0; pod < 3; ++pod) EXPECT_EQ(MembersOf(pod), all);
  EXPECT_EQ(worlds_[1]->tables.back().view, worlds_[0]->tables.back().view);

  // On its way it speaks for nobody, and the others are told apart from it.
  Step(0, 5);
  Tell(*worlds_[1], TaskProgress{"tokenise", 1, 10});
  EXPECT_EQ(StateOf(1), "JOINING");
  Step(1, 6);
  EXPECT_EQ(StateOf(1), "TRAINING");
  EXPECT_EQ(Get(id_).reason, "PodReturned");
  const size_t views = worlds_[2]->tables.size();
  // What comes after is as before: it may be lost again, and others.
  Kill(1);
  Kill(0);
  EXPECT_EQ(worlds_[2]->tables.size(), views + 2);
  EXPECT_EQ(Get(id_).restarts, 3);
  EXPECT_EQ(MembersOf(2), At(2));
  Step(2, 9);
  EXPECT_EQ(Get(id_).progress->done, 9);
}

TEST_F(ReturnsTest, AFailedReturnIsFollowedByALaterOneUntilRestartsAreUsed) {
  Begin();
  Kill(1);
  // It dies on its way, once it was told of: the others hear of that.
  Return(1, 1);
  const size_t views = worlds_[0]->tables.size();
  Kill(1);
  EXPECT_EQ(Get(id_).state, JobState::kRunning);
  EXPECT_EQ(agents_[0]->stops.size() + agents_[2]->stops.size(), 0u);
  EXPECT_EQ(worlds_[0]->tables.size(), views + 1);
  EXPECT_EQ(MembersOf(0), absl::StrCat(At(0), " ", At(2)));
  EXPECT_EQ(agents_[1]->launches.size(), 2u);
  Advance(absl::Milliseconds(1100));
  ASSERT_EQ(agents_[1]->launches.size(), 3u);
  // Its program ends in an error: the job's other pods have none.
  Return(1, 1);
  Tell(*worlds_[1], absl::Status(absl::FailedPreconditionError("no copy of the state")));
  EXPECT_EQ(Get(id_).state, JobState::kRunning);
  EXPECT_TRUE(worlds_[1]->Runs<ExitTask>());
  EndWorld(*agents_[1], worlds_[1]->id);
  Advance(absl::Milliseconds(1100));
  EXPECT_EQ(agents_[1]->launches.size(), 3u);
  Advance(absl::Seconds(1));
  ASSERT_EQ(agents_[1]->launches.size(), 4u);
  EXPECT_EQ(Get(id_).restarts, 3);
  Return(1, 1);
  Kill(1);
  EXPECT_EQ(Get(id_).state, JobState::kRunning);
  EXPECT_THAT(Get(id_).message, HasSubstr("does not return: max_restarts is 3"));
  for (int i = 0; i < 100; ++i) {
    for (const auto& agent : agents_) controller_->AgentHeartbeat(agent->session);
    Advance(absl::Seconds(1));
  }
  EXPECT_EQ(agents_[1]->launches.size(), 4u);
  Tell(*worlds_[0], TrainResult());
  Tell(*worlds_[2], TrainResult());
  EXPECT_EQ(Get(id_).state, JobState::kSucceeded);
  EXPECT_EQ(Get(id_).pods[0].state, "DONE");
  EXPECT_EQ(Get(id_).pods[1].state, "LOST");
}

// Returns count as restarts, but three of them without a checkpoint are no lack of progress.
TEST_F(ReturnsTest, ReturnsAreNoLackOfProgress) {
  Begin([](JobSpec& spec) { spec.max_restarts = 10; });
  for (int i = 1; i <= 5; ++i) {
    Kill(1);
    Return(1, 1);
    Step(1, 10 * i);
    EXPECT_EQ(Get(id_).restarts, i);
  }
  EXPECT_EQ(Get(id_).state, JobState::kRunning);
}

TEST_F(ReturnsTest, AWorldThatNobodySawEndIsReplacedAfterItsLease) {
  Begin();
  auto spare = Connect("d");
  // Its agent says nothing more, its stream is gone.
  controller_->WorkerGone(worlds_[1]->session);
  for (int second = 0; second < 19; ++second) {
    for (size_t i : {0, 2}) controller_->AgentHeartbeat(agents_[i]->session);
    controller_->AgentHeartbeat(spare->session);
    Advance(absl::Seconds(1));
    EXPECT_TRUE(spare->launches.empty()) << second;
    EXPECT_EQ(StateOf(1), second < 14 ? "TRAINING" : "LOST") << second;
  }
  for (size_t i : {0, 2}) controller_->AgentHeartbeat(agents_[i]->session);
  controller_->AgentHeartbeat(spare->session);
  Advance(absl::Seconds(2));
  ASSERT_EQ(spare->launches.size(), 1u);  // its own agent is not there
  EXPECT_EQ(Get(id_).pods[1].pod, "d");
  EXPECT_EQ(Get(id_).pod, "a,d,c");
  agents_.push_back(spare);
  Return(1, 3);
  Step(1, 3);
  EXPECT_EQ(StateOf(1), "TRAINING");
}

TEST_F(ReturnsTest, AnAgentThatComesBackWithoutItsWorldHasSeenItEnd) {
  Begin();
  controller_->WorkerGone(worlds_[1]->session);
  controller_->AgentGone(agents_[1]->session);
  EXPECT_EQ(agents_[1]->launches.size(), 1u);
  for (int second = 0; second < 16; ++second) {
    for (size_t i : {0, 2}) controller_->AgentHeartbeat(agents_[i]->session);
    Advance(absl::Seconds(1));
  }
  EXPECT_EQ(StateOf(1), "LOST");
  agents_[1] = Connect("b");
  EXPECT_EQ(agents_[1]->launches.size(), 1u);
  EXPECT_EQ(StateOf(1), "JOINING");
}

TEST_F(ReturnsTest, WhenAllThatTrainHaveEndedThoseThatJoinAreEndedToo) {
  Begin();
  Kill(1);
  Return(1, 1);
  Tell(*worlds_[0], TrainResult());
  EXPECT_EQ(Get(id_).state, JobState::kRunning);
  Tell(*worlds_[2], TrainResult());
  EXPECT_EQ(Get(id_).state, JobState::kSucceeded);
  EXPECT_THAT(agents_[1]->stops, ElementsAre(worlds_[1]->id));
  EndWorld(*agents_[1], worlds_[1]->id);
  EXPECT_EQ(controller_->ListPods()[1].state, "READY");
}

// Nobody is left who has the state: all begin again, as after any failure.
TEST_F(ReturnsTest, IfOnlyThoseThatJoinAreLeftAllStartAgain) {
  Begin();
  Kill(0);
  Kill(1);
  Return(0, 0);
  Kill(2);
  EXPECT_EQ(agents_[0]->stops.size() + agents_[1]->stops.size(), 2u);
  EXPECT_EQ(Get(id_).state, JobState::kRunning);  // not before these have ended
  Kill(0);
  EndWorld(*agents_[1], agents_[1]->last().world);
  EXPECT_EQ(Get(id_).state, JobState::kRestarting);
  EXPECT_EQ(Get(id_).restarts, 3);
  Advance(absl::Seconds(10));
  ASSERT_EQ(agents_[2]->launches.size(), 2u);
  BeginWorlds();
  for (const auto& world : worlds_) {
    EXPECT_FALSE(std::get<TrainOrder>(world->programs.back().task).joins);
    EXPECT_EQ(world->tables.size(), 1u);
  }
  EXPECT_EQ(StateOf(0), "STARTING");
}

// While one joins, another that trains is lost: the rest goes on, without waiting for either.
TEST_F(ReturnsTest, AJoiningPodIsNoReasonToStartAllAgain) {
  Begin();
  Kill(1);
  Return(1, 1);
  Kill(0);
  EXPECT_EQ(Get(id_).state, JobState::kRunning);
  EXPECT_EQ(agents_[1]->stops.size() + agents_[2]->stops.size(), 0u);
  EXPECT_EQ(MembersOf(2), absl::StrCat(At(1), " ", At(2)));
  EXPECT_EQ(MembersOf(1), MembersOf(2));
}

TEST_F(ReturnsTest, WhatPodsAgreeOnIsOfThoseThatTrain) {
  Begin();
  for (size_t pod = 0; pod < 3; ++pod) {
    Step(pod, 2, 22);
    Tell(*worlds_[pod], JobCheckpoint{worlds_[pod]->id.epoch, 2, "c/2", 1});
  }
  EXPECT_EQ(Get(id_).agreement.hash_step, 2);
  Kill(1);
  for (const size_t pod : {0, 2}) {
    Step(pod, 4, 44);
    Tell(*worlds_[pod], JobCheckpoint{worlds_[pod]->id.epoch, 4, "c/4", 1});
  }
  EXPECT_EQ(Get(id_).agreement.hash_step, 4);
  EXPECT_EQ(Get(id_).agreement.hash, 44u);
  EXPECT_EQ(Get(id_).agreement.checkpoint_step, 4);
  EXPECT_EQ(Get(id_).checkpoint->step, 4);
  Return(1, 1);
  Step(1, 5, 0);
  for (const size_t pod : {0, 2}) Step(pod, 6, 66);
  EXPECT_EQ(Get(id_).agreement.hash_step, 4);  // the one that came back has told of none yet
  Step(1, 6, 67);
  EXPECT_EQ(Get(id_).agreement.hash_step, 6);
  EXPECT_TRUE(Get(id_).agreement.hashes_differ);
  // A checkpoint of an earlier launch than the newest is not stale while that launch is present.
  Tell(*worlds_[1], JobCheckpoint{worlds_[1]->id.epoch, 6, "c/6", 1});
  Tell(*worlds_[0], JobCheckpoint{worlds_[0]->id.epoch, 8, "c/8", 1});
  EXPECT_EQ(Get(id_).checkpoint->step, 8);
  EXPECT_EQ(controller_->stale_dropped(), 0u);
}

TEST_F(ReturnsTest, ADrainedPodLeavesAndItsPartGoesElsewhere) {
  Begin();
  const size_t views = worlds_[0]->tables.size();
  ASSERT_TRUE(controller_->DrainPod("b", true).ok());
  EXPECT_EQ(worlds_[0]->tables.size(), views + 1);  // before its world has ended
  EXPECT_EQ(MembersOf(0), absl::StrCat(At(0), " ", At(2)));
  EXPECT_THAT(agents_[1]->stops, ElementsAre(worlds_[1]->id));
  EXPECT_THAT(Get(id_).message, HasSubstr("pod b drains"));
  auto spare = Connect("d");
  Advance(absl::Seconds(1));
  EXPECT_TRUE(spare->launches.empty());  // it still runs
  Kill(1);
  EXPECT_EQ(agents_[1]->launches.size(), 1u);
  ASSERT_EQ(spare->launches.size(), 1u);
  EXPECT_EQ(Get(id_).restarts, 0);  // nothing has failed
  agents_.push_back(spare);
  Return(1, 3);
  Step(1, 3);
  // Here again, once it is no longer drained.
  ASSERT_TRUE(controller_->DrainPod("d", true).ok());
  EndWorld(*spare, worlds_[1]->id);
  EXPECT_EQ(agents_[1]->launches.size(), 1u);
  ASSERT_TRUE(controller_->DrainPod("d", false).ok());
  EXPECT_EQ(spare->launches.size(), 2u);
}

TEST_F(ReturnsTest, WithPolicyHaltADrainedPodGoesOn) {
  Begin([](JobSpec& spec) {
    std::get<TrainTask>(spec.task).plan.options.pods.policy = PodsOptions::Policy::kHalt;
  });
  const size_t views = worlds_[0]->tables.size();
  ASSERT_TRUE(controller_->DrainPod("b", true).ok());
  Tell(*worlds_[0], SilentAnswer{2, worlds_[2]->id.epoch});
  EXPECT_TRUE(agents_[1]->stops.empty());
  EXPECT_TRUE(agents_[2]->stops.empty());
  EXPECT_EQ(worlds_[0]->tables.size(), views);
}

TEST_F(ReturnsTest, ASilentPodIsLeftOutAtOnceAndEnded) {
  Begin();
  const uint64_t epoch = worlds_[1]->id.epoch;
  Tell(*worlds_[0], SilentAnswer{1, epoch + 100});  // no such launch
  EXPECT_TRUE(agents_[1]->stops.empty());
  Tell(*worlds_[0], SilentAnswer{1, epoch});
  EXPECT_THAT(agents_[1]->stops, ElementsAre(worlds_[1]->id));
  EXPECT_EQ(MembersOf(0), absl::StrCat(At(0), " ", At(2)));
  EXPECT_EQ(MembersOf(2), MembersOf(0));
  EXPECT_THAT(Get(id_).message, HasSubstr("pod b says nothing"));
  const size_t views = worlds_[0]->tables.size();
  Tell(*worlds_[2], SilentAnswer{1, epoch});  // so it is
  // One that is left out says the same of others: nobody listens to it.
  Tell(*worlds_[1], SilentAnswer{0, worlds_[0]->id.epoch});
  EXPECT_TRUE(agents_[0]->stops.empty());
  EXPECT_EQ(worlds_[0]->tables.size(), views);
  EXPECT_EQ(agents_[1]->launches.size(), 1u);
  Kill(1);
  EXPECT_EQ(agents_[1]->launches.size(), 2u);
  Return(1, 1);
  Step(1, 9);
  EXPECT_EQ(StateOf(1), "TRAINING");
  Tell(*worlds_[0], SilentAnswer{1, epoch});  // of a launch that is over
  EXPECT_EQ(agents_[1]->stops.size(), 1u);
}

// It is heard, and said to be slow.
TEST_F(ReturnsTest, ASlowPodIsLeftOutAndReturns) {
  Begin();
  const uint64_t epoch = worlds_[1]->id.epoch;
  Tell(*worlds_[0], SilentAnswer{1, epoch, 3.5});
  EXPECT_THAT(agents_[1]->stops, ElementsAre(worlds_[1]->id));
  EXPECT_EQ(MembersOf(0), absl::StrCat(At(0), " ", At(2)));
  EXPECT_THAT(Get(id_).message, HasSubstr("pod b is slow: the others waited 3.5 s for it"));
  EXPECT_THAT(Get(id_).message, Not(HasSubstr("says nothing")));
  Kill(1);
  Return(1, 1);
  // Until its first step nobody waits for it that could say so; what is told of it then is not so.
  Tell(*worlds_[0], SilentAnswer{1, worlds_[1]->id.epoch, 9});
  Advance(absl::Seconds(6));
  EXPECT_EQ(agents_[1]->stops.size(), 1u);
  Step(1, 9);
  EXPECT_EQ(StateOf(1), "TRAINING");
  EXPECT_EQ(Get(id_).restarts, 1);
}

// mpirun takes seconds to end after one of its ranks: the others do not wait for that.
TEST_F(ReturnsTest, APodWhoseRankHasEndedIsLeftOutBeforeItsWorldHas) {
  Begin();
  controller_->RankEnded(agents_[1]->session, worlds_[1]->id, 0, "host-b");
  EXPECT_EQ(MembersOf(0), absl::StrCat(At(0), " ", At(2)));
  EXPECT_THAT(Get(id_).message, HasSubstr("rank 0 on host-b has ended"));
  EXPECT_EQ(agents_[1]->launches.size(), 1u);
  Step(1, 5);  // another rank of it may still speak
  EXPECT_EQ(StateOf(1), "LOST");
  Advance(absl::Seconds(3));
  EXPECT_EQ(agents_[1]->stops.size(), 1u);  // it should have ended by itself
  Kill(1);
  EXPECT_EQ(agents_[1]->launches.size(), 2u);
  // Ranks end when their part is done, too.
  Tell(*worlds_[0], TrainResult());
  const size_t views = worlds_[2]->tables.size();
  controller_->RankEnded(agents_[0]->session, worlds_[0]->id, 0, "host-a");
  EXPECT_EQ(StateOf(0), "DONE");
  EXPECT_EQ(worlds_[2]->tables.size(), views);
}

// The controller is started anew while one pod is away, and another on its way back.
TEST_F(ReturnsTest, AControllerThatWasRestartedKnowsWhoIsAway) {
  Begin();
  ASSERT_TRUE(controller_->DrainPod("c", true).ok());
  Kill(2);  // waits for a pod
  Kill(1);
  const LaunchOrder of_first = agents_[0]->last(), joins = agents_[1]->last();
  const uint64_t program = worlds_[0]->number();
  const int64_t restarts = Get(id_).restarts;
  Start();
  EXPECT_EQ(Get(id_).state, JobState::kRunning);
  agents_[0] = Connect("a", 2, {{of_first.world, of_first.credential}});
  agents_[1] = Connect("b", 2, {{joins.world, joins.credential}});
  worlds_[0] = Attach("a", of_first, program);
  const auto tell = [&](size_t pod, auto body) {
    controller_->WorkerAnswered(worlds_[pod]->session, worlds_[pod]->id,
                                {program, std::move(body)});
  };
  tell(0, ListensAnswer{{"h:0"}});
  EXPECT_TRUE(worlds_[0]->tables.empty());  // it may train with pod 1 already, which will say so
  tell(0, ProgressAnswer{"train", 5, 1000});
  worlds_[1] = Attach("b", joins, 0);  // it had not attached yet
  EXPECT_TRUE(std::get<TrainOrder>(worlds_[1]->programs.back().task).joins);
  Listen(1);
  EXPECT_EQ(MembersOf(0), absl::StrCat(At(0), " ", At(1)));
  EXPECT_EQ(StateOf(1), "JOINING");
  Step(1, 6);
  EXPECT_EQ(StateOf(1), "TRAINING");
  EXPECT_EQ(StateOf(2), "LOST");
  agents_[2] = Connect("c");
  EXPECT_TRUE(agents_[2]->launches.empty());  // it still drains
  ASSERT_TRUE(controller_->DrainPod("c", false).ok());
  ASSERT_EQ(agents_[2]->launches.size(), 1u);
  Return(2, 2);
  EXPECT_EQ(MembersOf(0), absl::StrCat(At(0), " ", At(1), " ", At(2)));
  EXPECT_EQ(Get(id_).restarts, restarts);  // who was drained has not failed
}

// Of one that trained there is no trace: the others go on, and it returns elsewhere after its
// lease.
TEST_F(ReturnsTest, AControllerThatWasRestartedReplacesAPodThatIsGone) {
  Begin();
  const LaunchOrder of_first = agents_[0]->last(), of_second = agents_[1]->last();
  const uint64_t program = worlds_[0]->number();
  Start();
  agents_[0] = Connect("a", 2, {{of_first.world, of_first.credential}});
  agents_[1] = Connect("b", 2, {{of_second.world, of_second.credential}});
  auto spare = Connect("d");
  worlds_[0] = Attach("a", of_first, program);
  worlds_[1] = Attach("b", of_second, program);
  for (const size_t pod : {0, 1}) {
    controller_->WorkerAnswered(worlds_[pod]->session, worlds_[pod]->id,
                                {program, ListensAnswer{{"h"}}});
    controller_->WorkerAnswered(worlds_[pod]->session, worlds_[pod]->id,
                                {program, ProgressAnswer{"train", 2, 1000}});
  }
  for (int second = 0; second < 40 && spare->launches.empty(); ++second) {
    for (const auto& agent : {agents_[0], agents_[1], spare}) {
      controller_->AgentHeartbeat(agent->session);
    }
    Advance(absl::Seconds(1));
    EXPECT_TRUE(second >= 19 || spare->launches.empty()) << second;
  }
  EXPECT_EQ(spare->launches.size(), 1u);
  EXPECT_EQ(agents_[0]->stops.size() + agents_[1]->stops.size(), 0u);
  EXPECT_EQ(Get(id_).state, JobState::kRunning);
}

// Not before all others have done a step, and not because of a pod that joins.
TEST_F(ReturnsTest, ASilentPodIsLeftOutOnceAllOthersHaveBegun) {
  Begin();
  for (size_t pod = 0; pod < 3; ++pod) Kill(pod);
  for (size_t pod = 0; pod < 2; ++pod) EndWorld(*agents_[pod], agents_[pod]->last().world);
  Advance(absl::Seconds(5));
  BeginWorlds();
  Step(0, 1);
  Step(1, 1);
  Tell(*worlds_[0], SilentAnswer{1, worlds_[1]->id.epoch});
  EXPECT_EQ(StateOf(1), "TRAINING");
  Step(2, 1);
  Advance(absl::Milliseconds(100));
  EXPECT_EQ(StateOf(1), "LOST");
}

TEST_F(ReturnsTest, AJoiningPodThatComesToAStopIsEnded) {
  Begin();
  Kill(1);
  Return(1, 1);
  Tell(*worlds_[0], SilentAnswer{1, worlds_[1]->id.epoch});
  Advance(absl::Seconds(4));
  Tell(*worlds_[1], TaskProgress{"load", 1, 10});  // it is alive
  Advance(absl::Seconds(4));
  EXPECT_TRUE(agents_[1]->stops.empty());
  Tell(*worlds_[0], SilentAnswer{1, worlds_[1]->id.epoch});
  Advance(absl::Seconds(5));
  EXPECT_EQ(agents_[1]->stops.size(), 1u);
}

}  // namespace
}  // namespace toroid
