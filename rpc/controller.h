// Controller: who runs what, where, and what became of it. Plain logic with an injected clock.
//
// It holds pods (one agent each), jobs (durable in the JobStore, whose states it alone changes),
// requests (of Inference; soft) and worlds (one launch on one pod, for one job or kept for requests
// of one placement). Inputs are the public calls below and Tick; outputs are the links and sinks.
//
// A pod runs one world at a time. A world: ordered -> (agent starts mpirun) -> attached (rank 0's
// stream) -> loaded -> programs, one at a time -> told to exit -> ended (the agent has reaped it).
// A job may train on several pods, each with a world of its own: they start together, are told
// where all of them listen (a view) once all do, and if one goes away the others are ended and all
// start again, from the newest checkpoint that they have in common. With policy `continue` the
// others are told a view without it and train on, while it is launched again and joins them; and
// such a job begins with the pods that are free, a short while after the first: the others join.
// Whatever takes too long is ended through the agent; what an agent cannot confirm is relaunched
// only once its lease and five more seconds have passed. A job that goes on from a checkpoint
// begins where that lies, waits for that pod while it is busy or away for a moment, and tries
// others only if it drains or is lost: what such a launch misses sends the job back to wait. A
// world whose job trains outlives its stream, and the controller: rank 0 attaches again and the
// program goes on. A controller that was started anew waits for the agents of such jobs to report
// their worlds, a lease and five seconds at most.
//
// A pool is a job whose world runs the programs of other jobs and of requests, in one order: each
// is stamped with its place in it, and some are sent ahead, to be prepared beside those that run.
//
// Invariants: an epoch is durable before its launch is ordered; an acknowledged job is durable; a
// job's terminal state never changes; every request's sink gets `done` exactly once.
// Thread-safe: one lock. Links and sinks are called under it.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "rpc/control.h"
#include "rpc/failure_detector.h"
#include "rpc/job_store.h"
#include "rpc/log_store.h"
#include "rpc/scheduler.h"

namespace toroid {

struct ControllerTimes {
  absl::Duration lease = absl::Seconds(15);
  absl::Duration lease_margin = absl::Seconds(5);  // before an unconfirmed world is replaced
  absl::Duration start = absl::Seconds(60);        // from the launch to the attached stream
  absl::Duration cancel = absl::Seconds(2);        // for a cancelled program to answer
  absl::Duration save = absl::Seconds(60);         // for one that is to save first
  absl::Duration exit = absl::Seconds(3);          // from kExit or a lost stream to the end
  absl::Duration stop = absl::Seconds(10);         // from an agent's order to its confirmation
  absl::Duration backoff = absl::Seconds(1);       // before the first restart; doubles, up to 60
  absl::Duration progress = absl::Seconds(1);      // between what watchers hear of a job's progress
  absl::Duration gather = absl::Seconds(5);        // for a job's other pods, if fewer will do
  absl::Duration holder = absl::Minutes(10);  // for a lost agent that alone has a job's checkpoint
};

class Controller {
 public:
  // `store` and `logs` outlive it. Jobs that the store holds unfinished go on: of those that had
  // worlds one that trains keeps them, if their agents still hold them; the others are restarted,
  // without counting as a restart unless a pod of several is lost.
  Controller(JobStore* store, LogStore* logs, JobCodec codec, ControllerTimes times,
             std::function<absl::Time()> now);
  ~Controller();

  // Ends what is overdue and starts what can start. Call it every 100 ms or so.
  void Tick();

  // --- agents -----------------------------------------------------------------------------------
  // A session; it gets no launch before the next Tick. AlreadyExists: a live agent has the name;
  // FailedPrecondition: another version.
  absl::StatusOr<uint64_t> AgentConnected(const PodRegistration& pod, AgentLink link);
  void AgentHeartbeat(uint64_t session);
  void AgentGone(uint64_t session);
  void LaunchRefused(uint64_t session, const WorldId& world, const absl::Status& why);
  void WorldEnded(uint64_t session, const WorldId& world, const WorldExit& exit);
  // A rank's process is no more while its world still is: mpirun takes its time to end.
  void RankEnded(uint64_t session, const WorldId& world, int rank, const std::string& host);
  void LogLines(uint64_t session, const WorldId& world, const std::vector<LogLine>& lines);
  uint64_t view() const;

  // --- worlds -----------------------------------------------------------------------------------
  // A session. PermissionDenied: not the present launch's epoch or credential; Unavailable: too
  // early, its agent has not come back yet.
  absl::StatusOr<uint64_t> WorkerAttached(const WorkerAttachment& attachment, WorldLink link);
  void WorkerAnswered(uint64_t session, const WorldId& world, const WorldAnswer& answer);
  void WorkerGone(uint64_t session);

  // --- requests ---------------------------------------------------------------------------------
  // Never blocks; an error comes through sink.done too. Returns the request's id.
  uint64_t StartRequest(const RequestSpec& spec, RequestSink sink);
  // The client has gone, or wants no more: the program is cancelled, the sink gets Cancelled.
  void CancelRequest(uint64_t request);
  std::vector<ModelStatus> ListModels() const;

  // --- jobs -------------------------------------------------------------------------------------
  absl::StatusOr<JobStatus> SubmitJob(const JobSpec& spec, const std::string& request_id);
  absl::StatusOr<JobStatus> GetJob(const std::string& id) const;
  absl::StatusOr<JobPage> ListJobs(const std::vector<JobState>& states, int page_size,
                                   const std::string& page_token) const;
  absl::StatusOr<JobStatus> CancelJob(const std::string& id);
  absl::Status DeleteJob(const std::string& id);
  // from_sequence 0: the present state, then changes. A subscription, to be ended with Unwatch
  // unless `end` came.
  absl::StatusOr<uint64_t> WatchJob(const std::string& id, uint64_t from_sequence, JobSink sink);
  void Unwatch(uint64_t subscription);

  // --- pods -------------------------------------------------------------------------------------
  std::vector<PodStatus> ListPods() const;
  absl::StatusOr<PodStatus> DrainPod(const std::string& name, bool drain);

  // Messages dropped because their epoch was below the present one.
  uint64_t stale_dropped() const;

 private:
  struct Pod;
  struct World;
  struct Request;
  struct Job;
  struct Subscription;

  // controller.cc
  absl::Time Now() const { return now_(); }
  void CheckDeadlines();
  void CancelRun(uint64_t request);
  struct Wanted;
  std::vector<PodView> ViewPods() const;
  std::vector<Wanted> WhatWaits(std::vector<Waiting>* waiting);
  void ScheduleWork();
  bool GiveToKeptWorld(Request& request);
  absl::Status CannotServe(const Placement& placement, int64_t pods = 1) const;
  PodStatus Describe(const Pod& pod) const;
  World* WorldOf(uint64_t agent_session, const WorldId& id);
  std::string NameOf(const World& world) const;
  void StopAgain(Pod& pod);

  // controller_worlds.cc
  absl::StatusOr<std::unique_ptr<World>> NewWorld(const Pod& pod, const Placement& placement,
                                                  const std::string& job,
                                                  absl::Duration keep_alive);
  void Launch(Pod& pod, std::unique_ptr<World> world);
  absl::Status StartWorld(Pod& pod, const Placement& placement, absl::Duration keep_alive);
  void Assign(World& world, Request& request);
  void SendTask(World& world);
  WorldProgram ProgramOf(const World& world, const Request& request, uint64_t number) const;
  bool Trains(const World& world) const;
  void Answer(World& world, const WorldAnswer& answer);
  void Loaded(World& world, const LoadAnswer& answer);
  void Finished(World& world, const absl::StatusOr<RequestResult>& result);
  void CancelProgram(World& world, CancelHow how = CancelHow::kNow);
  void SendExit(World& world, const std::string& why);
  void StopWorld(World& world, const std::string& why);
  void EndWorld(Pod& pod, const absl::Status& failure, const WorldExit& exit, bool confirmed);
  void FinishRequest(Request& request, const absl::StatusOr<RequestResult>& result);
  void CheckWorld(Pod& pod);

  // controller_pools.cc
  absl::StatusOr<std::string> PoolFor(const Placement& placement, int64_t pods) const;
  World* WorldOfPool(const std::string& pool, std::string* pod) const;
  void FeedPools();
  void EndOrphans();
  bool SendNext(const std::string& pool, World& world, const std::string& pod);
  absl::Status SendJob(Job& job, World& world, const std::string& pod);
  void Send(Request& request, World& world, const std::string& pod, uint64_t epoch);
  void BeginFirst(World& world);
  void PoolAnswered(World& world, const absl::StatusOr<RequestResult>& result);
  void CancelSent(World& world, uint64_t request, CancelHow how, bool awaited);
  void EndOnPool(Job& job, CancelHow how);
  void PoolWorldEnded(World& world, const absl::Status& why, const WorldExit& exit);
  void LogOfPool(const World& world, const std::vector<LogLine>& lines);

  // controller_recovery.cc
  void LoadJobs();
  void AwaitPods(Job& job);
  void StopAwaiting(Job& job, absl::string_view why, absl::Time earliest);
  bool Adopt(Pod& pod, const HeldWorld& held);

  // controller_jobs.cc
  absl::Status SetState(Job& job, JobState state, const std::string& reason,
                        const std::string& message);
  void Publish(const Job& job, const JobEvent& event);

  // controller_job_runs.cc
  absl::Status StartJob(Job& job, const std::vector<Pod*>& pods);
  bool BeginsWith(Job& job, size_t pods);
  Request& NewRequest(const Job& job, int64_t pod = 0);
  void EndJob(Job& job);
  void JobProgressed(Job& job, const World& world, const TaskProgress& progress);
  void JobCommits(const World& world, const std::string& job, uint64_t epoch,
                  JobCheckpoint checkpoint);
  void JobFinished(Job& job, int64_t pod, const absl::StatusOr<RequestResult>& result);
  bool EndOthers(Job& job, const absl::Status& failure, const WorldExit& exit, absl::Time earliest);
  void JobWorldEnded(Job& job, const absl::Status& failure, const WorldExit& exit,
                     absl::Time earliest);
  void CheckJob(Job& job);

  // controller_waiting.cc
  enum class Holding;
  Holding HoldingOf(const std::string& agent) const;
  std::vector<std::string> HoldersOf(const Job& job) const;
  std::vector<std::string> HoldersToAwait(const Job& job) const;
  void AskWhereItLies(const Job& job, Waiting& waiting) const;
  std::string WhatAgentDoes(const Job& job, const std::string& agent) const;
  std::string WhatHoldersDo(const Job& job) const;
  std::string WhatOthersDo(const Job& job) const;
  void ExplainWaiting(Job& job);
  void GoToHolders(Job& job, const std::string& why, absl::Time earliest);
  bool HoldersAreGone(Job& job);

  // controller_members.cc
  void TellPods(Job& job);
  bool SpeaksForJob(const World& world) const;
  bool OthersGoOn(const Job& job, const World& without) const;
  void GoOnWithout(Job& job, World& world, const std::string& pod, const absl::Status& why);
  bool LeaveOut(World& world, const absl::Status& why);
  void CheckPodOfJob(Pod& pod);
  void PodSilent(const World& teller, const SilentAnswer& silent);
  bool LosesPod(World& world, const absl::Status& answer);
  bool PodOfJobEnded(Job& job, World& world, const std::string& pod, const absl::Status& why,
                     bool confirmed, absl::Time earliest);
  std::vector<int64_t> Returning(const Job& job) const;
  absl::Status StartReturn(Job& job, int64_t number, Pod& pod);
  void Stepped(World& world);
  void PodDone(Job& job, int64_t pod);
  void Succeed(Job& job, const std::string& reason, const std::string& message);

  // controller_job_pods.cc
  void PodProgressed(Job& job, const World& world, const TaskProgress& progress);
  void PodCommits(Job& job, const World& world, const JobCheckpoint& checkpoint);
  void Agree(Job& job);

  JobStore* const store_;
  LogStore* const logs_;
  const JobCodec codec_;
  const ControllerTimes times_;
  const std::function<absl::Time()> now_;
  const absl::Time started_;

  mutable std::mutex mutex_;
  FailureDetector leases_;
  uint64_t view_ = 0;
  uint64_t last_id_ = 0;  // of sessions, requests, subscriptions
  uint64_t stale_dropped_ = 0;
  std::map<std::string, std::unique_ptr<Pod>> pods_;
  std::map<uint64_t, std::unique_ptr<Request>> requests_;
  std::map<std::string, std::unique_ptr<Job>> jobs_;  // those that have not ended
  std::map<uint64_t, std::unique_ptr<Subscription>> subscriptions_;
};

}  // namespace toroid
