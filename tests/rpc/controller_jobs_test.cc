// Jobs of one pod, from SubmitJob to their end: states, restarts, checkpoints, lists.
#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "tests/rpc/controller_fixture.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

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
