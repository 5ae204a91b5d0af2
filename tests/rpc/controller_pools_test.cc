// Pools of the controller: programs of several clients in one order, with a fake world.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rpc/error_info.h"
#include "tests/rpc/controller_fixture.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PoolsTest : public ControllerTest {
 protected:
  JobStatus SubmitPool(const std::string& name, int64_t max_restarts = 0) {
    JobSpec spec;
    spec.name = name;
    spec.task = PoolTask();
    spec.max_restarts = max_restarts;
    return Submit(spec);
  }
  // A pool's world that has attached.
  std::shared_ptr<FakeWorld> Begin(const std::string& name, const FakeAgent& agent,
                                   int64_t max_restarts = 0) {
    pool_ = SubmitPool(name, max_restarts).id;
    return Attach(agent);
  }
  JobSpec On(const std::string& pool, JobSpec spec) {
    spec.placement.on_pool = pool;
    return spec;
  }
  RequestSpec On(const std::string& pool, RequestSpec spec) {
    spec.placement.on_pool = pool;
    return spec;
  }
  template <typename Body>
  void Tell(const FakeWorld& world, uint64_t number, Body body) {
    controller_->WorkerAnswered(world.session, world.id, {number, std::move(body)});
  }
  static std::vector<uint64_t> Numbers(const FakeWorld& world) {
    std::vector<uint64_t> numbers;
    for (const WorldProgram& program : world.programs) numbers.push_back(program.number);
    return numbers;
  }
  void Beat(const FakeAgent& agent, int seconds) {
    for (int second = 0; second < seconds; ++second) {
      controller_->AgentHeartbeat(agent.session);
      Advance(absl::Seconds(1));
    }
  }
  JobState State(const std::string& id) { return Get(id).state; }

  std::string pool_;  // the id of the last
};

TEST_F(PoolsTest, ProgramsOfSeveralClientsAreSentAheadInOneOrder) {
  auto agent = Connect("a");
  auto world = Begin("crew", *agent);
  EXPECT_EQ(State(pool_), JobState::kRunning);
  EXPECT_TRUE(world->programs.empty());  // it has no model

  const std::string train = Submit(On("crew", Training(Job("book")))).id;
  auto client = Ask(On(pool_, Request("n")));  // by its id too
  const std::string job = Submit(On("crew", Job("talk"))).id;
  ASSERT_THAT(Numbers(*world), ElementsAre(1, 2, 3));  // while the first has not been answered
  EXPECT_TRUE(std::holds_alternative<TrainOrder>(world->programs[0].task));
  EXPECT_EQ(world->programs[0].pool->job, train);
  EXPECT_EQ(world->programs[0].pool->epoch, 1u);
  EXPECT_EQ(world->programs[0].output_dir, "runs/book");
  EXPECT_EQ(world->programs[1].pool->job, "");
  EXPECT_EQ(world->programs[1].pool->load.model, "n");
  EXPECT_EQ(world->programs[1].pool->load.mesh.ring, 2);  // the pool's, since nothing was said
  EXPECT_EQ(State(train), JobState::kRunning);
  EXPECT_EQ(State(job), JobState::kStarting);
  ASSERT_EQ(client->accepted.size(), 1u);
  EXPECT_EQ(client->accepted[0].pod, "a");

  Tell(*world, 2, GenerateResult());  // the control: not at its turn
  EXPECT_TRUE(client->done.empty());
  Tell(*world, 1, ProgressAnswer{"train", 3, 7});
  EXPECT_EQ(Get(train).progress->done, 3);
  EXPECT_FALSE(Get(pool_).progress.has_value());
  Tell(*world, 1, JobCheckpoint{9, 4, "p", 5});
  EXPECT_EQ(Get(train).checkpoint->step, 4);
  EXPECT_EQ(Get(train).checkpoint->epoch, 1u);  // of the job, not of the world
  Tell(*world, 1, TrainResult());
  EXPECT_EQ(State(train), JobState::kSucceeded);
  Tell(*world, 2, std::vector<TokenEvent>{{7, "x", 0}});
  GenerateResult result;
  result.report.timing.load_s = 0.5;  // the world's own word counts
  Tell(*world, 2, result);
  ASSERT_EQ(client->done.size(), 1u);
  EXPECT_EQ(std::get<GenerateResult>(*client->done[0]).report.timing.load_s, 0.5);
  EXPECT_THAT(client->tokens, ElementsAre(7));
  EXPECT_EQ(State(job), JobState::kRunning);
  Tell(*world, 3, absl::InvalidArgumentError("too long"));
  EXPECT_EQ(State(job), JobState::kFailed);
  EXPECT_EQ(State(pool_), JobState::kRunning);
  EXPECT_EQ(agent->launches.size(), 1u);
}

TEST_F(PoolsTest, WhatWaitsForAPoolGoesByPriorityOnceTheWorldIsThere) {
  auto agent = Connect("a");
  SubmitPool("crew");
  JobSpec spec = On("crew", Job("low"));
  const std::string low = Submit(spec).id;
  spec.priority = 2;
  const std::string high = Submit(spec).id;
  auto client = Ask(On("crew", Request("m")));
  EXPECT_EQ(State(low), JobState::kQueued);
  auto world = Attach(*agent);
  ASSERT_THAT(Numbers(*world), ElementsAre(1, 2, 3));
  EXPECT_EQ(world->programs[0].pool->job, high);
  EXPECT_EQ(world->programs[1].pool->job, low);
  EXPECT_EQ(world->programs[2].pool->job, "");
}

// As many as the world needs to have at hand: of programs that take 0.1 s a few, of those
// that take no time more.
TEST_F(PoolsTest, AFewProgramsAreSentAheadAndNoMore) {
  for (const bool long_ones : {true, false}) {
    SCOPED_TRACE(long_ones);
    const std::string name = long_ones ? "crew" : "sprinters", pod = long_ones ? "a" : "b";
    auto agent = Connect(pod);
    auto world = Begin(name, *agent);
    const auto most = [long_ones](uint64_t answered) {
      return answered == 0 || long_ones ? size_t{8} : size_t{64};
    };
    std::vector<std::shared_ptr<FakeClient>> clients;
    for (int i = 0; i < 100; ++i) clients.push_back(Ask(On(name, Request("m"))));
    EXPECT_EQ(world->programs.size(), most(0));
    for (uint64_t number = 1; number <= 100; ++number) {
      if (long_ones) Advance(absl::Milliseconds(100));
      Tell(*world, number, GenerateResult());
      EXPECT_EQ(clients[number - 1]->done.size(), 1u) << number;
      EXPECT_EQ(world->programs.size(), std::min<size_t>(100, most(number) + number));
    }
  }
}

TEST_F(PoolsTest, ACancelTakesOneProgramAwayAndLeavesTheOthers) {
  auto agent = Connect("a");
  auto world = Begin("crew", *agent);
  auto first = Ask(On("crew", Request("m")));
  auto second = Ask(On("crew", Request("m")));
  const std::string job = Submit(On("crew", Job("talk"))).id;
  const std::string last = Submit(On("crew", Job("last"))).id;

  controller_->CancelRequest(second->id);
  EXPECT_EQ(GetErrorInfo(second->done.at(0).status()).reason, "");
  EXPECT_EQ(second->done.at(0).status().code(), absl::StatusCode::kCancelled);
  ASSERT_TRUE(controller_->CancelJob(job).ok());
  EXPECT_EQ(State(job), JobState::kCancelled);  // it had not begun
  EXPECT_THAT(world->cancels, ElementsAre(2, 3));
  Beat(*agent, 100);  // waiting for their turn they hold nobody up
  EXPECT_TRUE(agent->stops.empty());

  Tell(*world, 1, GenerateResult());
  EXPECT_TRUE(first->done.at(0).ok());
  Tell(*world, 2, absl::Status(absl::CancelledError("cancelled")));
  Tell(*world, 3, absl::Status(absl::CancelledError("cancelled")));
  EXPECT_EQ(second->done.size(), 1u);
  EXPECT_EQ(State(last), JobState::kRunning);

  ASSERT_TRUE(controller_->CancelJob(last).ok());  // the one that runs answers first
  EXPECT_EQ(State(last), JobState::kRunning);
  EXPECT_THAT(world->cancels, ElementsAre(2, 3, 4));
  Tell(*world, 4, absl::Status(absl::CancelledError("cancelled")));
  EXPECT_EQ(State(last), JobState::kCancelled);
  EXPECT_EQ(State(pool_), JobState::kRunning);
}

TEST_F(PoolsTest, ACancelledProgramThatDoesNotStopCostsThePoolAWorld) {
  auto agent = Connect("a");
  auto world = Begin("crew", *agent, /*max_restarts=*/1);
  const std::string stuck = Submit(On("crew", Job("stuck"))).id;
  const std::string next = Submit(On("crew", Job("next"))).id;
  ASSERT_TRUE(controller_->CancelJob(stuck).ok());
  Beat(*agent, 59);  // longer than a world of its own would have
  EXPECT_TRUE(agent->stops.empty());
  Beat(*agent, 2);
  EXPECT_THAT(agent->stops, ElementsAre(world->id));
  EndWorld(*agent, world->id);
  EXPECT_EQ(State(stuck), JobState::kCancelled);
  EXPECT_EQ(State(next), JobState::kRestarting);
  EXPECT_EQ(State(pool_), JobState::kRestarting);
}

TEST_F(PoolsTest, ALostWorldIsReplacedAndKeepsWhatWaited) {
  auto agent = Connect("a");
  auto world = Begin("crew", *agent, /*max_restarts=*/1);
  const std::string train = Submit(On("crew", Training(Job("book")))).id;
  const std::string job = Submit(On("crew", Job("talk"))).id;
  auto client = Ask(On("crew", Request("m")));
  Tell(*world, 1, JobCheckpoint{1, 4, "p", 5});
  EndWorld(*agent, world->id, {137, 9, 1, "host-a", "rank 1 was killed"});
  EXPECT_EQ(State(pool_), JobState::kRestarting);
  EXPECT_EQ(State(train), JobState::kRestarting);
  EXPECT_EQ(Get(train).restarts, 1);
  EXPECT_EQ(Get(train).reason, "RankFailed");
  EXPECT_EQ(State(job), JobState::kRestarting);
  EXPECT_EQ(Get(job).restarts, 0);  // it had not begun
  EXPECT_TRUE(client->done.empty());

  controller_->AgentHeartbeat(agent->session);
  Advance(absl::Seconds(2));
  ASSERT_EQ(agent->launches.size(), 2u);
  auto again = Attach(*agent);
  ASSERT_THAT(Numbers(*again), ElementsAre(1, 2, 3));  // numbers of this world
  EXPECT_EQ(again->programs[0].pool->job, train);      // the oldest first, as before
  EXPECT_EQ(again->programs[0].pool->epoch, 2u);
  EXPECT_EQ(Get(train).checkpoint->step, 4);
  EXPECT_EQ(again->programs[1].pool->job, job);
  Tell(*world, 1, TrainResult());  // of the lost one: stale
  EXPECT_EQ(State(train), JobState::kRunning);
  Tell(*again, 1, TrainResult());
  Tell(*again, 2, GenerateResult());
  Tell(*again, 3, GenerateResult());
  EXPECT_EQ(State(train), JobState::kSucceeded);
  EXPECT_EQ(State(job), JobState::kSucceeded);
  EXPECT_TRUE(client->done.at(0).ok());
}

TEST_F(PoolsTest, TheOneThatRanFailsIfItMayNotRestart) {
  auto agent = Connect("a");
  auto world = Begin("crew", *agent, /*max_restarts=*/1);
  auto client = Ask(On("crew", Request("m")));
  const std::string job = Submit(On("crew", Job("talk"))).id;
  EndWorld(*agent, world->id, {137, 9, 1, "host-a", "rank 1 was killed"});
  EXPECT_EQ(GetErrorInfo(client->done.at(0).status()).reason, "RANK_FAILED");
  controller_->AgentHeartbeat(agent->session);
  Advance(absl::Seconds(2));
  world = Attach(*agent);
  ASSERT_THAT(Numbers(*world), ElementsAre(1));  // max_restarts 0, but it had not begun
  EndWorld(*agent, world->id, {137, 9, 1, "host-a", "rank 1 was killed"});
  EXPECT_EQ(State(job), JobState::kFailed);
  EXPECT_EQ(Get(job).reason, "RankFailed");
  EXPECT_EQ(State(pool_), JobState::kFailed);  // it had one restart
}

TEST_F(PoolsTest, APoolThatEndsFailsItsProgramsByName) {
  auto agent = Connect("a");
  auto world = Begin("crew", *agent);
  const std::string train = Submit(On("crew", Training(Job("book")))).id;
  const std::string job = Submit(On("crew", Job("talk"))).id;
  auto client = Ask(On("crew", Request("m")));
  ASSERT_TRUE(controller_->CancelJob(pool_).ok());
  EXPECT_THAT(agent->stops, ElementsAre(world->id));
  EXPECT_EQ(controller_->SubmitJob(On("crew", Job("late")), "").status().code(),
            absl::StatusCode::kNotFound);
  EndWorld(*agent, world->id);
  EXPECT_EQ(State(pool_), JobState::kCancelled);
  for (const std::string& id : {train, job}) {
    EXPECT_EQ(State(id), JobState::kFailed);
    EXPECT_EQ(Get(id).reason, "PoolEnded");
    EXPECT_THAT(Get(id).message, HasSubstr(pool_ + " has ended (CANCELLED"));
  }
  ASSERT_EQ(client->done.size(), 1u);
  EXPECT_EQ(GetErrorInfo(client->done[0].status()).metadata["pool"], pool_);
}

// A job that was sent ahead has all of its time left when its turn comes, and one that is cancelled
// before is not begun in order to be saved.
TEST_F(PoolsTest, AJobBeginsAtItsTurn) {
  auto agent = Connect("a");
  auto world = Begin("crew", *agent);
  const std::string first = Submit(On("crew", Job("talk"))).id;
  JobSpec spec = On("crew", Training(Job("book")));
  spec.active_deadline = absl::Seconds(5);
  const std::string train = Submit(spec).id;
  const std::string never = Submit(On("crew", Training(Job("never")))).id;
  ASSERT_THAT(Numbers(*world), ElementsAre(1, 2, 3));
  Beat(*agent, 9);
  EXPECT_EQ(State(train), JobState::kStarting);
  EXPECT_TRUE(world->saves.empty());
  ASSERT_TRUE(controller_->CancelJob(never).ok());
  EXPECT_EQ(State(never), JobState::kCancelled);
  EXPECT_THAT(world->cancels, ElementsAre(3));
  EXPECT_TRUE(world->saves.empty());
  Tell(*world, 1, GenerateResult());
  EXPECT_EQ(State(train), JobState::kRunning);
  Beat(*agent, 4);
  EXPECT_TRUE(world->saves.empty());
  Beat(*agent, 2);  // the control: now its time is up
  EXPECT_THAT(world->saves, ElementsAre(2));
  Tell(*world, 9, TrainResult());  // nobody asked
  EXPECT_EQ(State(train), JobState::kRunning);
}

TEST_F(PoolsTest, AnAnswerThatNobodyAskedForIsDropped) {
  auto agent = Connect("a");
  auto world = Begin("crew", *agent);
  Tell(*world, 0, GenerateResult());
  EXPECT_EQ(State(pool_), JobState::kRunning);
}

TEST_F(PoolsTest, RefusalsNamePoolAndMesh) {
  auto client = Ask(On("crew", Request("m")));
  EXPECT_EQ(client->done.at(0).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(client->done[0].status().message()), HasSubstr("crew"));
  const std::string plain = Submit(Job("plain")).id;  // no pool
  EXPECT_FALSE(controller_->SubmitJob(On(plain, Job("x")), "").ok());
  ASSERT_TRUE(controller_->CancelJob(plain).ok());

  SubmitPool("crew");
  JobSpec early = On("crew", Job("early"));  // the pool's mesh is not known yet
  early.placement.mesh.tensor = 2;
  const std::string early_id = Submit(early).id;
  auto agent = Connect("a");
  auto world = Attach(*agent);
  EXPECT_TRUE(world->programs.empty());
  EXPECT_EQ(State(early_id), JobState::kFailed);
  EXPECT_THAT(Get(early_id).message, HasSubstr("data=1,ring=2,tensor=1"));
  JobSpec spec = On("crew", Job("x"));
  spec.placement.mesh.ring = MeshWish::kRest;
  EXPECT_TRUE(controller_->SubmitJob(spec, "").ok());
  spec.placement.mesh = {0, 0, 2};
  const absl::Status mesh = controller_->SubmitJob(spec, "").status();
  EXPECT_EQ(mesh.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(mesh.message()), HasSubstr("data=1,ring=1,tensor=2"));
  spec.placement.mesh = {0, 3, 0};
  EXPECT_THAT(std::string(controller_->SubmitJob(spec, "").status().message()), HasSubstr("3"));
  spec.placement.mesh = {};
  spec.placement.pod = "a";
  EXPECT_THAT(std::string(controller_->SubmitJob(spec, "").status().message()), HasSubstr("pod"));
  JobSpec wide = On("crew", OnTwoPods());
  EXPECT_THAT(std::string(controller_->SubmitJob(wide, "").status().message()),
              HasSubstr("mesh.pods: 2"));
}

TEST_F(PoolsTest, AControllerThatWasRestartedStartsPoolsAgain) {
  std::string train;
  {
    auto agent = Connect("a");
    auto world = Begin("crew", *agent);
    train = Submit(On("crew", Training(Job("book")))).id;
    EXPECT_EQ(State(train), JobState::kRunning);
  }
  Start();
  EXPECT_EQ(State(pool_), JobState::kRestarting);
  EXPECT_EQ(State(train), JobState::kRestarting);
  auto agent = Connect("a");
  ASSERT_TRUE(agent->launches.empty());
  Advance(absl::Seconds(1));  // the agent has come back without the world
  controller_->AgentHeartbeat(agent->session);
  ASSERT_EQ(agent->launches.size(), 1u);
  auto world = Attach(*agent);
  ASSERT_THAT(Numbers(*world), ElementsAre(1));
  EXPECT_EQ(world->programs[0].pool->job, train);
  EXPECT_EQ(world->programs[0].pool->epoch, 2u);
  EXPECT_EQ(Get(train).restarts, 0);
}

TEST_F(PoolsTest, LinesOfAProgramAreInItsJobsLogToo) {
  auto agent = Connect("a");
  auto world = Begin("crew", *agent);
  const std::string train = Submit(On("crew", Training(Job("book")))).id;
  controller_->LogLines(agent->session, world->id,
                        {{0, 0, false, "hello"},
                         {0, 0, false, train + ": step 1/7"},
                         {0, 0, false, "stranger: step 1/7"}});
  const auto all = logs_->Read(pool_, 0, 1 << 20), own = logs_->Read(train, 0, 1 << 20);
  ASSERT_TRUE(all.ok() && own.ok());
  EXPECT_EQ(all->size(), 3u);
  ASSERT_EQ(own->size(), 1u);
  EXPECT_EQ(own->at(0).text, "step 1/7");
}

}  // namespace
}  // namespace toroid
