// What the controller remembers of pods, worlds, requests and jobs. Included by controller*.cc
// only.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "rpc/controller.h"

namespace toroid {

inline constexpr size_t kMaxJobs = 10000;  // that have not ended

// Of a job's pods those that had a place in its last launch: "a,b".
std::string NamesOf(const std::vector<JobPod>& pods);
// "RANK_FAILED" -> "RankFailed".
std::string CamelCase(const std::string& reason);

struct Controller::World {
  enum class State {
    kOrdered,   // the agent has been told; until `deadline`
    kLoading,   // attached; program 1 loads the model
    kIdle,      // kept, since idle_since
    kBusy,      // runs program `program`, of `request` unless that was cancelled
    kExiting,   // told to exit, or its stream broke; until `deadline`
    kStopping,  // the agent has been told to end it; until `deadline`
  };
  WorldId id;
  Placement placement;               // load.mesh is resolved
  std::string job;                   // empty: kept for requests
  int64_t pod = 0;                   // of the job's pods, which one this is
  std::vector<std::string> listens;  // for the job's other pods, by rank; empty: not told yet
  bool stepped = false;              // has done a step of training
  bool joins = false;                // launched while the job's other pods train
  bool adopted = false;              // launched by an earlier controller
  bool left_out = false;             // of what the others are told, while it is being ended
  absl::Time silent = absl::InfiniteFuture();  // since when others wait for it and hear nothing
  double slow_s = 0;                           // > 0: they hear it, and had waited so long
  absl::Duration keep_alive;
  std::string credential;
  State state = State::kOrdered;
  absl::Time deadline = absl::InfiniteFuture();
  absl::Time cancel_deadline = absl::InfiniteFuture();
  absl::Time idle_since = absl::InfiniteFuture();
  uint64_t worker = 0;  // session of rank 0's stream; 0: none
  WorldLink link;
  bool resumes = false;  // kOrdered: rank 0 was there, and is to come back
  std::optional<ModelStatus> model;
  double load_s = 0;  // told with the first result, then 0
  uint64_t last_program = 0, program = 0, request = 0;

  // Of a pool: the programs that it has been sent and has not answered, in their order. The first
  // is `program`, of `request`.
  struct Sent {
    uint64_t number = 0;
    uint64_t request = 0;             // 0: it was cancelled
    std::string job;                  // whose task it is; empty: of a client's request
    uint64_t epoch = 0;               // of that job
    std::optional<CancelHow> told{};  // to end
  };
  bool is_pool = false;
  std::deque<Sent> sent;
  absl::Time turn_began;                                // of the first of them
  absl::Duration mean_turn = absl::InfiniteDuration();  // of the last few programs
  std::deque<std::string> served;  // jobs whose programs it was sent last: it writes of them
  absl::Status failure;            // why it ends, if nobody asked it to

  bool ending() const { return state == State::kExiting || state == State::kStopping; }
  bool joining() const { return joins && !stepped; }
  bool returns() const { return joining() && !ending() && !left_out && request != 0; }
  // Among its job's pods, which wait for it.
  bool takes_part() const { return !ending() && !left_out && !joining() && request != 0; }
};

struct Controller::Pod {
  PodRegistration registration;
  uint64_t session = 0;  // 0: its agent is not connected
  AgentLink link;
  bool draining = false, lost = false;
  absl::Time last_seen;
  std::unique_ptr<World> world;
  std::vector<WorldId> foreign;  // worlds of an earlier controller that are being ended
};

struct Controller::Request {
  uint64_t id = 0;
  RequestSpec spec;
  RequestSink sink;
  std::string output_dir;
  std::string job;   // whose task it is; empty: a client's
  std::string pool;  // the id of the pool job in whose world it runs; empty: in one of its own
  int64_t pod = 0;   // of the job's pods, whose part it is
  absl::Time deadline = absl::InfiniteFuture();
  bool waiting = true;  // has no world yet
};

struct Controller::Job {
  JobSpec spec;
  uint64_t order = 0;
  std::string pool;      // the id of the pool job in whose world it runs; empty: in one of its own
  uint64_t arrival = 0;  // among the requests of its pool
  JobStatus status;
  uint64_t sequence = 0;
  absl::Time not_before = absl::InfinitePast();
  absl::Time told = absl::InfinitePast();  // its progress, to those that watch it
  std::set<std::string> explained;         // why it waits: events say each once, and a few at most
  bool untold = false;  // why it waits is another thing now, and no event says so
  // What the last event said; the message has, behind it, what the job waits for.
  std::string said;
  uint64_t said_by = 0;  // the event
  // Its world may still run on status.pod, whose agent may yet report it; InfinitePast: no such.
  absl::Time awaited = absl::InfinitePast();
  std::string unconfirmed_pod;  // whose last world of this job nobody has seen end
  bool ending = false;          // cancelled, or out of time
  JobState end_state = JobState::kCancelled;
  std::string end_reason, end_message;

  // Of a job on several pods, once a world of it went away: the others are ended, then it goes on.
  struct Failure {
    absl::Status why;
    WorldExit exit;
    absl::Time earliest;
  };
  std::optional<Failure> failed;
  int64_t answered = 0;  // of its pods
  // Policy `continue`: when it begins with fewer pods than it has, some being free since a while.
  absl::Time gathers_until = absl::InfiniteFuture();
  // Policy `continue`: a pod of the job that is lost while the others go on, or that had no place
  // when they began, until a new launch of it has done a step.
  struct Away {
    std::string why;           // a sentence
    std::string pod;           // where its last launch was; empty: there was none
    std::string prefers;       // then: where it was before all began again
    bool unconfirmed = false;  // nobody has seen that end
    bool counts = true;        // its next launch is one of max_restarts (kLaunchesToJoin)
    int64_t launches = 0;      // since it was lost
    absl::Time earliest{};     // of the next launch; InfiniteFuture: the last one still ends
    const std::string& last_pod() const { return pod.empty() ? prefers : pod; }
  };
  std::map<int64_t, Away> away;  // by pod of the job
  // By pod of the job, the agent that was it last: what it has written may lie there.
  std::vector<std::string> holders;
  void Holds(int64_t pod, const std::string& agent);
  bool MayReturn(const Away& lost) const {
    return !lost.counts || status.restarts < spec.max_restarts;
  }
  std::string WhoIsAway() const;  // a sentence
  // A launch has shown that others do not see the newest checkpoint: those that hold it alone will
  // do, but for those that turned out to lack it.
  bool holders_alone = false;
  std::set<std::string> without;
  absl::Time given_up = absl::InfiniteFuture();  // those that hold it being lost
  // The fewest pods that it begins with. Of those that have meshes of their own all, and if there
  // are others one of them: the rest will have the mesh of that.
  int64_t least_pods() const {
    const auto named = static_cast<int64_t>(spec.placement.pod_meshes.size());
    return goes_on() ? std::min(pods(), named + 1) : pods();
  }
  // Of its pod, in whatever launch: other pods count on it.
  MeshWish mesh_of(int64_t pod) const {
    const MeshShape& mesh = status.pods[static_cast<size_t>(pod)].mesh;
    return {mesh.data, mesh.ring, mesh.tensor};
  }
  std::optional<PodTable> table;  // what its pods were told last
  // What each of its pods has told in this launch, the newest.
  struct Told {
    std::map<int64_t, uint64_t> hashes;  // by steps done
    std::set<int64_t> checkpoints;       // steps
  };
  std::vector<Told> told_by_pods;

  bool is_pool() const { return std::holds_alternative<PoolTask>(spec.task); }
  bool trains() const { return std::holds_alternative<TrainTask>(spec.task) && !spec.verify; }
  bool goes_on() const {
    return pods() > 1 && std::get<TrainTask>(spec.task).plan.options.pods.policy ==
                             PodsOptions::Policy::kContinue;
  }
  int64_t pods() const {
    return trains() ? std::get<TrainTask>(spec.task).plan.options.pods.count : 1;
  }
};

struct Controller::Subscription {
  std::string job;
  JobSink sink;
};

}  // namespace toroid
