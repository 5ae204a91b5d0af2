// A job that goes on from a checkpoint, and the pod that has it: busy, draining, away, gone.
#include <gmock/gmock.h>

#include "rpc/error_info.h"
#include "tests/rpc/controller_fixture.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const WorldExit kKilled = {137, 9, 0, "host", "rank 0 died"};
const char kWaits[] =
    "the job waits for pod a, which has the checkpoint of step 5 (runs/book/checkpoints/step-5): ";

class WaitingTest : public ControllerTest {
 protected:
  // A job that has trained on a up to step 5, where its world has died; a and b are there.
  void TrainOnA(int64_t max_restarts = 5) {
    a_ = Connect("a");
    JobSpec spec = Training(Job("book"));
    spec.max_restarts = max_restarts;
    id_ = Submit(spec).id;
    const auto world = Attach(*a_);
    Tell(*world, JobCheckpoint{0, 5, "runs/book/checkpoints/step-5", 55});
    b_ = Connect("b");
    EndWorld(*a_, world->id, kKilled);
    EXPECT_EQ(Get(id_).state, JobState::kRestarting);
  }
  // Seconds in which these agents are heard.
  void Pass(int seconds, const std::vector<std::shared_ptr<FakeAgent>>& agents) {
    for (int i = 0; i < seconds; ++i) {
      for (const auto& agent : agents) controller_->AgentHeartbeat(agent->session);
      Advance(absl::Seconds(1));
    }
  }
  absl::Status Lacks() {
    return MakeError(absl::StatusCode::kFailedPrecondition, "checkpoint lost: none of step 5",
                     {kCheckpointLostReason, {}, {}});
  }
  // A launch on this pod answers that it lacks the checkpoint, and has ended.
  void LacksOn(const FakeAgent& agent) {
    const auto world = Attach(agent);
    Tell(*world, Lacks());
    EXPECT_TRUE(world->Runs<ExitTask>());
    EndWorld(agent, world->id);
  }
  // a drains as the job begins again, b is tried and lacks it.
  void LacksOnB() {
    ASSERT_TRUE(controller_->DrainPod("a", true).ok());
    Pass(2, {a_, b_});
    ASSERT_EQ(b_->launches.size(), 1u);
    LacksOn(*b_);
  }

  std::shared_ptr<FakeAgent> a_, b_;
  std::string id_;
};

TEST_F(WaitingTest, ABusyHolderIsWaitedFor) {
  TrainOnA();
  JobSpec other = Job("other");
  other.placement.pod = "a";
  const std::string busy = Submit(other).id;
  ASSERT_EQ(a_->launches.size(), 2u);
  const auto world = AttachAndLoad(*a_);
  Pass(100, {a_, b_});
  EXPECT_TRUE(b_->launches.empty());  // it is free all the time
  EXPECT_EQ(Get(id_).state, JobState::kRestarting);
  EXPECT_EQ(Get(id_).reason, "RankFailed");
  EXPECT_THAT(Get(id_).message, HasSubstr("rank 0 died"));
  EXPECT_THAT(Get(id_).message, HasSubstr(absl::StrCat(kWaits, "a runs job ", busy)));
  Submit(Job("third"));  // nobody keeps b for it
  EXPECT_EQ(b_->launches.size(), 1u);
  Tell(*world, GenerateResult());
  EndWorld(*a_, world->id);
  ASSERT_EQ(a_->launches.size(), 3u);
  const auto again = Attach(*a_);
  ASSERT_TRUE(again->Runs<TrainOrder>());
  EXPECT_EQ(std::get<TrainOrder>(again->programs.back().task).committed_step, 5);
  EXPECT_EQ(Get(id_).restarts, 1);
  EXPECT_EQ(Get(id_).state, JobState::kRunning);
}

// Control: without a checkpoint any pod will do.
TEST_F(WaitingTest, AJobThatHasCommittedNothingGoesElsewhere) {
  a_ = Connect("a");
  id_ = Submit(Training(Job("book"))).id;
  const auto world = Attach(*a_);
  b_ = Connect("b");
  EndWorld(*a_, world->id, kKilled);
  JobSpec other = Job("other");
  other.placement.pod = "a";
  Submit(other);
  Pass(2, {a_, b_});
  EXPECT_EQ(b_->launches.size(), 1u);
}

TEST_F(WaitingTest, AKeptWorldOfTheHolderYields) {
  TrainOnA();
  Ask(Request("m"));  // takes a, the first that is free
  ASSERT_EQ(a_->launches.size(), 2u);
  const auto kept = AttachAndLoad(*a_);
  Tell(*kept, GenerateResult());
  Pass(2, {a_, b_});
  EXPECT_TRUE(kept->Runs<ExitTask>());
  EXPECT_TRUE(b_->launches.empty());
  EndWorld(*a_, kept->id);
  EXPECT_EQ(a_->launches.size(), 3u);
}

TEST_F(WaitingTest, AHolderThatIsAwayForAMomentIsWaitedFor) {
  TrainOnA();
  controller_->AgentGone(a_->session);
  Pass(10, {b_});
  EXPECT_TRUE(b_->launches.empty());
  EXPECT_THAT(Get(id_).message, HasSubstr(absl::StrCat(kWaits, "a's agent is away")));
  a_ = Connect("a");
  ASSERT_EQ(a_->launches.size(), 1u);
  EXPECT_EQ(Get(id_).state, JobState::kStarting);
}

// Its directory may be one that b sees too: then the job goes on there, else it goes back to wait.
TEST_F(WaitingTest, ALaunchThatLacksTheCheckpointSendsTheJobBackToItsHolder) {
  TrainOnA();
  LacksOnB();
  EXPECT_EQ(Get(id_).state, JobState::kRestarting);
  EXPECT_EQ(Get(id_).reason, "CheckpointLost");
  EXPECT_EQ(Get(id_).restarts, 1);  // that launch is none
  EXPECT_EQ(Get(id_).checkpoint->pod, "a");
  Pass(2000, {a_, b_});
  EXPECT_EQ(b_->launches.size(), 1u);
  EXPECT_THAT(Get(id_).message,
              HasSubstr(absl::StrCat(kWaits, "a drains: toroid pod drain a --undo")));
  ASSERT_TRUE(controller_->DrainPod("a", false).ok());
  ASSERT_EQ(a_->launches.size(), 2u);
  const auto world = Attach(*a_);
  Tell(*world, JobCheckpoint{0, 6, "runs/book/checkpoints/step-6", 66});
  EXPECT_EQ(Get(id_).checkpoint->pod, "a");
  EXPECT_EQ(Get(id_).state, JobState::kRunning);
}

TEST_F(WaitingTest, APodThatSeesTheCheckpointTakesThePlaceOfALostHolder) {
  TrainOnA();
  controller_->AgentGone(a_->session);
  Pass(22, {b_});  // the lease, and a while after the controller began
  ASSERT_EQ(b_->launches.size(), 1u);
  const auto world = Attach(*b_);
  Tell(*world, JobCheckpoint{0, 5, "runs/book/checkpoints/step-5", 55});  // where it goes on from
  EXPECT_EQ(Get(id_).checkpoint->pod, "b");
  EndWorld(*b_, world->id, kKilled);
  const auto a = Connect("a");
  Pass(3, {a, b_});
  EXPECT_TRUE(a->launches.empty());
  EXPECT_EQ(b_->launches.size(), 2u);
}

TEST_F(WaitingTest, AHolderThatIsGoneFailsTheJobByNameAfterAWhile) {
  TrainOnA();
  controller_->AgentGone(a_->session);
  Pass(22, {b_});  // the lease, and a while after the controller began
  ASSERT_EQ(b_->launches.size(), 1u);
  LacksOn(*b_);
  Pass(590, {b_});
  EXPECT_EQ(Get(id_).state, JobState::kRestarting);
  EXPECT_THAT(Get(id_).message, HasSubstr(absl::StrCat(kWaits, "a's agent is lost: start it")));
  Pass(15, {b_});
  const JobStatus failed = Get(id_);
  EXPECT_EQ(failed.state, JobState::kFailed);
  EXPECT_EQ(failed.reason, "CheckpointLost");
  EXPECT_THAT(failed.message,
              HasSubstr("pod a alone has the checkpoint of step 5 (runs/book/checkpoints/step-5) "
                        "and did not come back for 10m: start the agent again, or copy"));
}

TEST_F(WaitingTest, AHolderThatLacksWhatItHasToldOfFailsTheJob) {
  TrainOnA();
  Pass(2, {a_, b_});
  ASSERT_EQ(a_->launches.size(), 2u);
  LacksOn(*a_);
  const JobStatus failed = Get(id_);
  EXPECT_EQ(failed.state, JobState::kFailed);
  EXPECT_EQ(failed.reason, "CheckpointLost");
  EXPECT_THAT(failed.message, HasSubstr("pod a has told of the checkpoint of step 5 "
                                        "(runs/book/checkpoints/step-5) and lacks it now: "));
  EXPECT_TRUE(b_->launches.empty());
}

TEST_F(WaitingTest, AControllerThatWasRestartedKnowsTheHolder) {
  TrainOnA();
  LacksOnB();
  ASSERT_EQ(Get(id_).pod, "b");  // the last launch
  ASSERT_TRUE(controller_->DrainPod("a", false).ok());
  Start();
  const auto b = Connect("b");
  Pass(5, {b});
  EXPECT_TRUE(b->launches.empty());
  EXPECT_THAT(Get(id_).message, HasSubstr(absl::StrCat(kWaits, "a's agent is away")));
  EXPECT_EQ(Connect("a")->launches.size(), 1u);
}

// Policy `halt`: all begin with a step that all have, so each where it was.
TEST_F(WaitingTest, PodsOfAJobBeginWhereTheirCheckpointsLie) {
  a_ = Connect("a");
  b_ = Connect("b");
  id_ = Submit(OnTwoPods()).id;
  const auto first = Attach(*a_), second = Attach(*b_);
  Tell(*first, JobCheckpoint{0, 5, "runs/wide/pod-0/checkpoints/step-5", 1});
  Tell(*second, JobCheckpoint{0, 5, "runs/wide/pod-1/checkpoints/step-5", 1});
  EXPECT_EQ(Get(id_).pods[0].checkpoint->pod, "a");
  EndWorld(*b_, second->id, kKilled);
  EndWorld(*a_, first->id, kKilled);
  JobSpec other = Job("other");
  other.placement.pod = "b";
  const std::string busy = Submit(other).id;
  const auto world = AttachAndLoad(*b_);
  const auto c = Connect("c");
  Pass(30, {a_, b_, c});
  EXPECT_EQ(a_->launches.size(), 1u);
  EXPECT_TRUE(c->launches.empty());
  EXPECT_THAT(Get(id_).message,
              HasSubstr("waits for pods a, b, which have the checkpoint of step"));
  EXPECT_THAT(Get(id_).message, HasSubstr(absl::StrCat(": b runs job ", busy)));
  Tell(*world, GenerateResult());
  EndWorld(*b_, world->id);
  EXPECT_EQ(a_->launches.size(), 2u);
  ASSERT_EQ(b_->launches.size(), 3u);
  // b drains: c is tried, and lacks it; both worlds end, and the job waits for b.
  const auto third = Attach(*a_), fourth = Attach(*b_);
  ASSERT_TRUE(controller_->DrainPod("b", true).ok());
  EndWorld(*b_, fourth->id, kKilled);
  EndWorld(*a_, third->id, kKilled);
  Pass(5, {a_, b_, c});
  ASSERT_EQ(a_->launches.size(), 3u);
  ASSERT_EQ(c->launches.size(), 1u);
  const auto fifth = Attach(*a_), sixth = Attach(*c);
  const int64_t restarts = Get(id_).restarts;
  Tell(*fifth, Lacks());
  Tell(*sixth, Lacks());
  EndWorld(*a_, fifth->id);
  EXPECT_EQ(Get(id_).state, JobState::kRunning);  // the other world still ends
  EndWorld(*c, sixth->id);
  EXPECT_EQ(Get(id_).state, JobState::kRestarting);
  EXPECT_EQ(Get(id_).restarts, restarts);
  Pass(30, {a_, b_, c});
  EXPECT_EQ(c->launches.size(), 1u);
  EXPECT_THAT(Get(id_).message, HasSubstr("b drains"));
  ASSERT_TRUE(controller_->DrainPod("b", false).ok());
  EXPECT_EQ(a_->launches.size(), 4u);
  EXPECT_EQ(b_->launches.size(), 4u);
}

// Also of those that had no place in the last launch, over a restart of the controller.
TEST_F(WaitingTest, AControllerThatWasRestartedKnowsWhereThoseWithoutAPlaceWere) {
  JobSpec spec = OnTwoPods();
  std::get<TrainTask>(spec.task).plan.options.pods.policy = PodsOptions::Policy::kContinue;
  a_ = Connect("a");
  b_ = Connect("b");
  id_ = Submit(spec).id;
  const auto first = Attach(*a_), second = Attach(*b_);
  Tell(*first, JobCheckpoint{0, 5, "runs/wide/pod-0/checkpoints/step-5", 1});
  Tell(*second, JobCheckpoint{0, 5, "runs/wide/pod-1/checkpoints/step-5", 1});
  EndWorld(*a_, first->id, kKilled);  // before a step: all start again
  EndWorld(*b_, second->id, kKilled);
  controller_->AgentGone(a_->session);
  Pass(10, {b_});  // b has what is newest, and begins alone
  ASSERT_EQ(b_->launches.size(), 2u);
  EXPECT_EQ(Get(id_).pods[0].state, "WAITING");
  EXPECT_EQ(Get(id_).pods[0].pod, "a");
  EXPECT_EQ(Get(id_).pod, "b");
  Start();
  a_ = Connect("a");
  b_ = Connect("b");  // without its world
  EndWorld(*b_, b_->launches.empty() ? WorldId() : b_->last().world, kKilled);
  controller_->AgentGone(b_->session);
  const auto c = Connect("c");
  Pass(30, {a_, c});
  // Pod 0 of the job, where it was, from its checkpoint; c would have none.
  ASSERT_EQ(a_->launches.size(), 1u);
  const auto world = Attach(*a_);
  ASSERT_TRUE(world->Runs<TrainOrder>());
  EXPECT_EQ(std::get<TrainOrder>(world->programs.back().task).pod, 0);
  EXPECT_EQ(world->programs.back().output_dir, "runs/wide/pod-0");
  EXPECT_TRUE(c->launches.empty());
  EXPECT_EQ(Get(id_).pods[0].checkpoint->step, 5);
}

// Beside one that trains: the agent where it was takes it, though another one comes first.
TEST_F(WaitingTest, APodWithoutAPlaceGoesWhereItWasOverARestartOfTheController) {
  JobSpec spec = OnTwoPods();
  std::get<TrainTask>(spec.task).plan.options.pods.policy = PodsOptions::Policy::kContinue;
  auto x = Connect("x");
  b_ = Connect("b");
  id_ = Submit(spec).id;
  ASSERT_EQ(Get(id_).pod, "b,x");
  const auto first = Attach(*b_), second = Attach(*x);
  EndWorld(*b_, first->id, kKilled);
  EndWorld(*x, second->id, kKilled);
  controller_->AgentGone(x->session);
  Pass(10, {b_});
  ASSERT_EQ(b_->launches.size(), 2u);
  auto alone = Attach(*b_);
  Tell(*alone, ListensAnswer{{"b:1"}});
  const LaunchOrder order = b_->last();
  const uint64_t program = alone->number();
  Start();
  b_ = Connect("b", 2, {{order.world, order.credential}});
  alone = Attach("b", order, program);
  controller_->WorkerAnswered(alone->session, alone->id, {program, ListensAnswer{{"b:1"}}});
  const auto c = Connect("c");
  x = Connect("x");
  EXPECT_TRUE(c->launches.empty() && x->launches.empty());
  controller_->WorkerAnswered(alone->session, alone->id, {program, ProgressAnswer{"train", 5, 7}});
  Pass(1, {b_, c, x});
  EXPECT_TRUE(c->launches.empty());
  EXPECT_EQ(x->launches.size(), 1u);
}

}  // namespace
}  // namespace toroid
