// The controller against a fake clock, fake agents and fake worlds: requests, kept worlds, and
// agents, worlds and controllers that go and come back.
#include <gmock/gmock.h>

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

}  // namespace
}  // namespace toroid
