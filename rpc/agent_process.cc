#include "rpc/agent_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/status_macros.h"
#include "core/version.h"
#include "rpc/agent.h"
#include "rpc/agent_client.h"
#include "rpc/mpirun_line.h"
#include "rpc/rank_watch.h"
#include "rpc/roots.h"
#include "rpc/worker_process.h"
#include "rpc/world_exit.h"
#include "rpc/world_process.h"

namespace toroid {
namespace {

constexpr absl::Duration kHeartbeat = absl::Seconds(1);
constexpr absl::Duration kStep = absl::Milliseconds(100);  // how late a timer may be
constexpr absl::Duration kShutdownLimit = absl::Seconds(5);
constexpr size_t kTailLines = 200;

uint64_t RandomNumber() {
  uint64_t number = 0;
  (void)getrandom(&number, sizeof(number), 0);
  return number;
}

absl::StatusOr<int> CountSlots(const AgentOptions& options, const LaunchPlace& place) {
  if (options.slots > 0) return options.slots;
  if (options.slots < 0) return absl::InvalidArgumentError("slots: below 0");
  std::vector<HostSlots> hosts;
  if (!options.hosts.empty()) {
    TOROID_ASSIGN_OR_RETURN(hosts, ParseHosts(options.hosts));
  } else if (!options.hostfile.empty()) {
    std::ifstream file(options.hostfile);
    if (!file) return absl::NotFoundError("hostfile not readable: " + options.hostfile);
    std::stringstream text;
    text << file.rdbuf();
    TOROID_ASSIGN_OR_RETURN(hosts, ParseHostfile(text.str()));
  }
  int sum = 0;
  for (const HostSlots& host : hosts) {
    if (host.slots == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("hostfile does not say slots of ", host.host, ": add slots=4 or --slots"));
    }
    sum += host.slots;
  }
  return sum > 0 ? sum : place.cores;
}

class AgentLoop {
 public:
  AgentLoop(const AgentOptions& options, const LaunchPlace& place, int slots,
            const std::function<void()>& registered,
            const std::function<void(const absl::Status&)>& lost)
      : options_(options),
        place_(place),
        slots_(slots),
        registered_(registered),
        lost_(lost),
        incarnation_(RandomNumber()),
        wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        agent_({[this](const LaunchOrder& order) -> absl::StatusOr<int> {
                  const absl::StatusOr<int> pid = Start(order);
                  if (pid.ok()) return pid;
                  return ForClient(pid.status(), options_.roots,
                                   [this](const std::string& kept) { LogHere(kept); });
                },
                [](int pid, int signal) { (void)kill(-pid, signal); },
                [this](const AgentReport& report) {
                  if (client_ != nullptr) client_->Report(report);
                }},
               [] { return absl::Now(); }) {}
  ~AgentLoop() {
    client_.reset();
    close(wake_fd_);
  }

  absl::Status Run(const std::atomic<bool>& stop) {
    absl::Time shutdown_end = absl::InfiniteFuture();
    while (true) {
      if (stop.load() && shutdown_end == absl::InfiniteFuture()) {
        agent_.Shutdown();
        shutdown_end = absl::Now() + kShutdownLimit;
      }
      if (stop.load() && (process_ == std::nullopt || shutdown_end <= absl::Now())) break;
      if (client_ == nullptr && absl::Now() >= next_dial_) TOROID_RETURN_IF_ERROR(Dial());
      if (client_ != nullptr && absl::Now() >= next_heartbeat_) {
        client_->Heartbeat();
        next_heartbeat_ = absl::Now() + kHeartbeat;
      }
      agent_.Tick();
      Poll();
      Supervise();
      TOROID_RETURN_IF_ERROR(TakeOrders());
    }
    process_.reset();
    return absl::OkStatus();
  }

 private:
  // Certificates are read each time: a new one is taken up without a restart.
  absl::Status Dial() {
    absl::StatusOr<Tls> tls = ReadTls(options_.tls_dir);
    if (tls.ok()) {
      tls_ = *std::move(tls);
    } else if (!accepted_) {
      return tls.status();
    }
    PodRegistration registration{options_.pod, place_.host,  slots_,
                                 kVersion,     incarnation_, agent_.running()};
    client_ = DialController(options_.controller, tls_, registration, [fd = wake_fd_] {
      const uint64_t one = 1;
      (void)!write(fd, &one, sizeof(one));
    });
    next_heartbeat_ = absl::Now() + kHeartbeat;
    return absl::OkStatus();
  }

  void Poll() {
    pollfd fds[4] = {{wake_fd_, POLLIN, 0}, {-1, POLLIN, 0}, {-1, POLLIN, 0}, {-1, POLLIN, 0}};
    if (process_.has_value()) {
      fds[1].fd = process_->exit_fd();
      fds[2].fd = process_->output_fd();
      fds[3].fd = process_->error_fd();
    }
    (void)poll(fds, 4, static_cast<int>(absl::ToInt64Milliseconds(kStep)));
    uint64_t count = 0;
    (void)!read(wake_fd_, &count, sizeof(count));
  }

  // For the operator: clients do not hear it.
  void LogHere(absl::string_view text) const {
    const std::string line =
        absl::StrCat("toroid: pod ", options_.pod, ", not told to the client: ", text, "\n");
    std::fputs(line.c_str(), stderr);
  }

  // Passes on what the world wrote, and its end.
  void Supervise() {
    if (!process_.has_value()) return;
    int wait_status = 0;
    const int ranks = agent_.ranks();
    const bool ended = process_->Reap(&wait_status);
    std::vector<LogLine> lines;
    for (LogLine& line : process_->ReadLines(/*at_end=*/ended)) {
      absl::string_view kept = line.text;
      if (absl::ConsumePrefix(&kept, kForAgent)) {
        LogHere(kept);
        continue;
      }
      line.text = NameRoots(line.text, options_.roots);
      tail_.push_back(line);
      if (tail_.size() > kTailLines) tail_.pop_front();
      lines.push_back(std::move(line));
    }
    if (!lines.empty()) agent_.Log(std::move(lines));
    if (!ended) {
      const std::optional<RankRecord> gone = ranks_.Ended(absl::Now());
      if (gone.has_value()) agent_.RankEnded({gone->rank, gone->host});
      return;
    }
    ranks_.End();
    process_.reset();
    agent_.ChildEnded(DescribeExit(wait_status, tail_, ReadRankRecords(world_dir_, ranks)));
    std::error_code ignored;
    std::filesystem::remove_all(world_dir_, ignored);
  }

  absl::Status TakeOrders() {
    if (client_ == nullptr) return absl::OkStatus();
    for (AgentOrder& order : client_->Take()) {
      if (const auto* lease = std::get_if<LeaseOrder>(&order)) {
        if (lease->lease > absl::ZeroDuration()) lease_ = lease->lease;
        agent_.RenewLease(lease_);
        if (lease->registered) {
          failures_ = 0;
          accepted_ = true;
          registered_();
        }
      } else if (const auto* launch = std::get_if<LaunchOrder>(&order)) {
        agent_.Launch(*launch);
      } else if (const auto* stop = std::get_if<StopOrder>(&order)) {
        agent_.Stop(stop->world);
      } else {
        const absl::Status why = std::get<StreamClosed>(order).why;
        client_.reset();
        if (why.code() == absl::StatusCode::kAlreadyExists ||
            why.code() == absl::StatusCode::kInvalidArgument ||
            why.code() == absl::StatusCode::kFailedPrecondition) {
          return why;
        }
        if (failures_ == 0) {
          const absl::Status kept_apart = WhyNoConnection(options_.controller, tls_);
          if (!kept_apart.ok() && !accepted_) return kept_apart;
          lost_(kept_apart.ok() ? why : kept_apart);
        }
        // 0.1 s, doubling up to 2 s, with jitter so that agents do not come all at once.
        const double base = std::min(2.0, 0.1 * (1 << std::min(failures_++, 5)));
        next_dial_ =
            absl::Now() + absl::Seconds(base * (0.5 + 0.5 * (RandomNumber() % 1000) / 1000));
        return absl::OkStatus();
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int> Start(const LaunchOrder& order) {
    if (!order.model.empty()) {  // a pool's programs bring theirs
      TOROID_RETURN_IF_ERROR(ResolvePath(order.model, options_.roots).status());
    }
    std::error_code error;
    world_dir_ = absl::StrCat(options_.scratch_dir, "/", order.world.job, "-", order.world.epoch);
    std::filesystem::remove_all(world_dir_, error);
    std::filesystem::create_directories(world_dir_, error);
    if (error || chmod(world_dir_.c_str(), 0700) != 0) {
      return absl::UnavailableError(absl::StrCat("cannot make ", world_dir_, ": check the disk"));
    }
    const std::string file = world_dir_ + "/launch.json";
    TOROID_RETURN_IF_ERROR(WriteLaunchFile(
        file,
        {options_.controller, order.world.job, order.world.epoch, order.world.view, options_.pod,
         order.credential, world_dir_, options_.roots, options_.tls_dir, options_.throttle}));
    MpirunRequest request;
    request.ranks = order.ranks;
    request.hosts = options_.hosts;
    request.hostfile = options_.hostfile;
    request.quiet = false;
    request.tag_output = true;
    request.extra = options_.mpirun_extra;
    request.command = {options_.toroid,       "worker", "--launch", file, "--stall-timeout",
                       options_.stall_timeout};
    TOROID_ASSIGN_OR_RETURN(const std::vector<std::string> line, MpirunLine(request, place_));
    TOROID_ASSIGN_OR_RETURN(WorldProcess process, WorldProcess::Start(line, AllowedEnvironment()));
    process_.emplace(std::move(process));
    tail_.clear();
    ranks_.Begin(world_dir_, order.ranks, place_.host);
    return process_->pid();
  }

  const AgentOptions& options_;
  const LaunchPlace place_;
  const int slots_;
  const std::function<void()> registered_;
  const std::function<void(const absl::Status&)> lost_;
  const uint64_t incarnation_;
  const int wake_fd_;
  Agent agent_;
  std::optional<WorldProcess> process_;
  std::string world_dir_;
  RankWatch ranks_;
  std::deque<LogLine> tail_;
  std::unique_ptr<AgentClient> client_;
  Tls tls_;
  bool accepted_ = false;  // by a controller, ever
  absl::Duration lease_ = absl::Seconds(15);
  absl::Time next_dial_ = absl::InfinitePast(), next_heartbeat_ = absl::InfiniteFuture();
  int failures_ = 0;
};

}  // namespace

absl::Status RunAgent(const AgentOptions& options, const std::atomic<bool>& stop,
                      const std::function<void()>& registered,
                      const std::function<void(const absl::Status&)>& lost) {
  if (options.pod.empty()) return absl::InvalidArgumentError("pod: missing: give --pod a name");
  if (options.toroid.empty() || options.toroid[0] != '/') {
    return absl::InvalidArgumentError("toroid: the binary's path must be absolute");
  }
  LaunchPlace place = ThisPlace();
  if (!options.mpirun.empty()) place.mpirun = options.mpirun;
  if (place.mpirun.empty() && !(place.slurm && !place.srun.empty())) {
    return absl::FailedPreconditionError(
        "mpirun not found: it is not in PATH: install Open MPI (Debian: openmpi-bin)");
  }
  TOROID_ASSIGN_OR_RETURN(const int slots, CountSlots(options, place));
  std::error_code error;
  std::filesystem::create_directories(options.scratch_dir, error);
  if (error || chmod(options.scratch_dir.c_str(), 0700) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("scratch directory cannot be made: ", options.scratch_dir));
  }
  AgentLoop loop(options, place, slots, registered, lost);
  return loop.Run(stop);
}

}  // namespace toroid
