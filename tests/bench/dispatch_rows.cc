// dispatch_rows: from a controller that has a step for a pool's ranks to all of them having begun
// it, by the real path (controller, its gRPC service, rank 0, broadcast to ranks under mpirun),
// beside a raw gRPC bidirectional ping-pong of small messages with a third process. The two take
// turns, so that both see the same machine, and the pauses between are random. Times of different
// processes are of one clock, the host's monotonic one.
//
// Then chains of 64 steps that are asked for at once (Pathways, section 4.5): each takes 1 ms to
// prepare, a wait, and 0.1 ms to compute, a spin on rank 0. Prepared while others run they take
// 1 + 64 * 0.1 ms, each at its turn 64 * (1 + 0.1) ms.
//
//   dispatch_rows [RANKS] [STEPS] [CHAINS]
#include <grpcpp/create_channel.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/check.h"
#include "core/version.h"
#include "parallel/mpi_communicator.h"
#include "parallel/program.h"
#include "rpc/controller.h"
#include "rpc/convert.h"
#include "rpc/services.h"
#include "rpc/worker_process.h"
#include "toroid/internal/v1/worker.grpc.pb.h"

extern char** environ;

namespace toroid {
namespace {

namespace wire = internal::v1;

constexpr int kWarmUp = 100, kChain = 64;
constexpr int64_t kPlain = 1, kOfChain = 2;         // steps; told apart by max_tokens
constexpr double kPrepare = 1e-3, kCompute = 1e-4;  // of a step of the chain, seconds
constexpr char kModel[] = "random:tiny-gqa";

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Percentile(std::vector<double> values, double part) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(part * static_cast<double>(values.size() - 1))];
}

// --- a rank: notes when it begins each step, and writes that down at its end
int RunRank(const std::string& file, bool ahead, int argc, char** argv) {
  auto options = ReadLaunchFile(file);
  TOROID_CHECK_MSG(options.ok(), std::string(options.status().message()));
  auto world = NewMpiWorld(&argc, &argv);
  TOROID_CHECK_MSG(world.ok(), std::string(world.status().message()));
  const int rank = (*world)->rank();
  std::unique_ptr<WorkerConnection> connection;
  ProgramChannel channel;
  if (rank == 0) {
    Preparation preparation;
    if (!ahead) preparation.threads = 0;
    preparation.begins = [](const WorldProgram& program) {
      const auto* task = std::get_if<GenerateTask>(&program.task);
      if (task == nullptr || task->request.max_tokens != kOfChain) return;
      prctl(PR_SET_TIMERSLACK, 1);  // a wait of 1 ms, not of 1.06
      std::this_thread::sleep_for(std::chrono::duration<double>(kPrepare));
    };
    auto connected = ConnectWorker(*options, preparation);
    TOROID_CHECK_MSG(connected.ok(), std::string(connected.status().message()));
    connection = *std::move(connected);
    channel = connection->channel();
  }
  std::vector<double> begun;
  ProgramStream programs(**world, channel);
  while (true) {
    const auto program = programs.Next();
    TOROID_CHECK_MSG(program.ok(), std::string(program.status().message()));
    const double now = Now();
    if (program->kind == ProgramKind::kExit) break;
    if (program->kind == ProgramKind::kLoad) {  // nothing is
      LoadedModel model;
      model.context = model.vocab = 100;
      if (rank == 0) channel.on_loaded(program->number, model);
      continue;
    }
    begun.push_back(now);
    if (rank != 0) continue;
    while (program->generate.max_tokens == kOfChain && Now() < now + kCompute) continue;
    channel.on_generated(program->number, GenerateResult());
  }
  std::ofstream out(absl::StrCat(file, ".", rank), std::ios::binary);
  out.write(reinterpret_cast<const char*>(begun.data()), std::streamsize(8 * begun.size()));
  if (connection != nullptr) connection->Finish(absl::OkStatus());
  return 0;
}

// --- the ping-pong's other end
int RunEcho(const std::string& address) {
  const auto stub =
      wire::Workers::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  const auto stream = stub->Attach(&context);
  wire::WorldMessage in;
  wire::WorkerMessage out;
  stream->Write(out);
  while (stream->Read(&in)) {
    out.set_number(in.number());
    stream->Write(out);
  }
  return 0;
}

class PingService final : public wire::Workers::Service {
 public:
  grpc::Status Attach(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<wire::WorldMessage, wire::WorkerMessage>* stream) override {
    std::unique_lock<std::mutex> lock(mutex_);
    stream_ = stream;
    changed_.notify_all();
    changed_.wait(lock, [this] { return ended_; });
    return grpc::Status::OK;
  }
  void AwaitOther() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return stream_ != nullptr; });
    wire::WorkerMessage hello;
    TOROID_CHECK(stream_->Read(&hello));
  }
  double RoundTrip(uint64_t number) {
    wire::WorldMessage ping;
    ping.set_number(number);
    wire::WorkerMessage pong;
    const double begin = Now();
    TOROID_CHECK(stream_->Write(ping) && stream_->Read(&pong));
    const double end = Now();
    TOROID_CHECK_EQ(pong.number(), number);
    return end - begin;
  }
  void End() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  grpc::ServerReaderWriter<wire::WorldMessage, wire::WorkerMessage>* stream_ = nullptr;
  bool ended_ = false;
};

pid_t Start(std::vector<std::string> words) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  TOROID_CHECK_EQ(posix_spawnp(&pid, argv[0], nullptr, nullptr, argv.data(), environ), 0);
  return pid;
}

std::unique_ptr<grpc::Server> Serve(grpc::Service* service, std::string* address) {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(service);
  auto server = builder.BuildAndStart();
  *address = absl::StrCat("127.0.0.1:", port);
  return server;
}

// --- the controller, with a pool on one pod
class Bench {
 public:
  // ahead: whether ranks prepare steps while others run.
  Bench(const std::string& self, int ranks, bool ahead = true)
      : self_(self), ranks_(ranks), ahead_(ahead) {
    dir_ = absl::StrCat(std::filesystem::temp_directory_path().string(), "/dispatch-", getpid());
    std::filesystem::create_directories(dir_);
    auto store = JobStore::Open(dir_ + "/jobs.sqlite");
    TOROID_CHECK(store.ok());
    store_ = *std::move(store);
    logs_ = std::make_unique<LogStore>(dir_);
    controller_ = std::make_unique<Controller>(store_.get(), logs_.get(), ProtoJobCodec(),
                                               ControllerTimes(), [] { return absl::Now(); });
    service_ = NewWorkersService(controller_.get());
    server_ = Serve(service_.get(), &address_);
    StartRanks();
  }

  void Dispatch(int steps) {
    StartEcho();
    std::vector<double> sent, answered, ping;
    std::minstd_rand random(1);
    for (int i = 0; i < kWarmUp + steps; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(500 + random() % 1000));
      const double begin = Now();
      Ask(kPlain);
      Await(1);
      const double end = Now();
      std::this_thread::sleep_for(std::chrono::microseconds(500 + random() % 1000));
      const double round_trip = ping_.RoundTrip(static_cast<uint64_t>(i) + 1);
      if (i < kWarmUp) continue;
      sent.push_back(begin);
      answered.push_back(end - begin);
      ping.push_back(round_trip);
    }
    StopEcho();
    const std::vector<double> begun = Stop();
    std::vector<double> dispatched;
    for (size_t i = 0; i < sent.size(); ++i) dispatched.push_back(begun[kWarmUp + i] - sent[i]);
    Print(dispatched, answered, ping);
  }

  // Seconds of each chain, from the first request to the last answer.
  std::vector<double> Chains(int count) {
    std::vector<double> seconds;
    for (int i = 0; i <= count; ++i) {
      const double begin = Now();
      for (int k = 0; k < kChain; ++k) Ask(kOfChain);
      Await(kChain);
      if (i > 0) seconds.push_back(Now() - begin);  // the first loads
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    Stop();
    return seconds;
  }

 private:
  void StartRanks() {
    LaunchOrder order;
    AgentLink link;
    link.launch = [&order](const LaunchOrder& launch) { order = launch; };
    link.stop = [](const WorldId&, const std::string&) {};
    TOROID_CHECK(controller_->AgentConnected({"a", "here", ranks_, kVersion, 1, {}}, link).ok());
    JobSpec pool;
    pool.task = PoolTask();
    pool.placement.mesh.ring = ranks_;
    const auto job = controller_->SubmitJob(pool, "");
    TOROID_CHECK(job.ok());
    pool_ = job->id;
    controller_->Tick();
    TOROID_CHECK_EQ(order.ranks, ranks_);
    WorkerOptions options;
    options.controller = address_;
    options.job = order.world.job;
    options.epoch = order.world.epoch;
    options.pod = "a";
    options.credential = order.credential;
    options.scratch_dir = dir_;
    file_ = dir_ + "/launch.json";
    TOROID_CHECK(WriteLaunchFile(file_, options).ok());
    std::vector<std::string> words = {"mpirun", "-q", "--oversubscribe", "--bind-to", "none"};
    if (geteuid() == 0) words.push_back("--allow-run-as-root");
    for (const std::string& word : {std::string("-n"), absl::StrCat(ranks_), self_,
                                    std::string(ahead_ ? "--rank-ahead" : "--rank"), file_}) {
      words.push_back(word);
    }
    mpirun_ = Start(words);
    while (controller_->GetJob(pool_)->state != JobState::kRunning) {
      controller_->Tick();
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }

  void StartEcho() {
    std::string address;
    ping_server_ = Serve(&ping_, &address);
    echo_ = Start({self_, "--echo", address});
    ping_.AwaitOther();
  }

  void StopEcho() {
    ping_.End();
    ping_server_->Shutdown(std::chrono::system_clock::now());
    int status = 0;
    TOROID_CHECK_EQ(waitpid(echo_, &status, 0), echo_);
  }

  // Does not wait.
  void Ask(int64_t kind) {
    RequestSpec spec;
    spec.placement.load.model = kModel;
    spec.placement.on_pool = pool_;
    GenerateTask task;
    task.prompt.kind = PromptSpec::Kind::kIds;
    task.prompt.ids = {1};
    task.request.max_tokens = kind;
    spec.task = task;
    RequestSink sink;
    sink.done = [this](const absl::StatusOr<RequestResult>& result) {
      TOROID_CHECK_MSG(result.ok(), std::string(result.status().message()));
      const std::lock_guard<std::mutex> lock(mutex_);
      ++done_;
      changed_.notify_all();
    };
    controller_->StartRequest(spec, sink);
  }
  void Await(int count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return done_ == count; });
    done_ = 0;
  }

  // Ends the ranks; by step, when the last of them began it.
  std::vector<double> Stop() {
    server_->Shutdown(std::chrono::system_clock::now());  // they lose their controller, and end
    int status = 0;
    TOROID_CHECK_EQ(waitpid(mpirun_, &status, 0), mpirun_);
    TOROID_CHECK_EQ(status, 0);
    std::vector<double> last;
    for (int rank = 0; rank < ranks_; ++rank) {
      const std::string path = absl::StrCat(file_, ".", rank);
      std::vector<double> begun(std::filesystem::file_size(path) / 8);
      std::ifstream in(path, std::ios::binary);
      in.read(reinterpret_cast<char*>(begun.data()), std::streamsize(8 * begun.size()));
      TOROID_CHECK(in.good());
      last.resize(begun.size(), 0);
      for (size_t i = 0; i < begun.size(); ++i) last[i] = std::max(last[i], begun[i]);
    }
    std::filesystem::remove_all(dir_);
    return last;
  }

  void Print(const std::vector<double>& dispatched, const std::vector<double>& answered,
             const std::vector<double>& ping) const {
    const auto row = [](const char* name, const std::vector<double>& seconds) {
      std::printf("%-44s p50 %7.1f us  p90 %7.1f us\n", name, 1e6 * Percentile(seconds, 0.5),
                  1e6 * Percentile(seconds, 0.9));
    };
    std::printf("%d ranks, %zu steps, in turns\n", ranks_, dispatched.size());
    row("raw gRPC ping-pong", ping);
    row("a step until the last rank has begun it", dispatched);
    row("a step until its answer is here", answered);
    std::printf("dispatch / ping-pong, p50: %.2f\n",
                Percentile(dispatched, 0.5) / Percentile(ping, 0.5));
  }

  const std::string self_;
  const int ranks_;
  const bool ahead_;
  std::string dir_, address_, pool_, file_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<LogStore> logs_;
  std::unique_ptr<Controller> controller_;
  std::unique_ptr<grpc::Service> service_;
  PingService ping_;
  std::unique_ptr<grpc::Server> server_, ping_server_;
  pid_t mpirun_ = 0, echo_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  int done_ = 0;
};

void PrintChains(const char* name, const std::vector<double>& seconds, double formula) {
  const double best = Percentile(seconds, 0), p50 = Percentile(seconds, 0.5);
  std::printf("%-44s p50 %7.2f ms  best %7.2f ms  formula %6.2f ms, times that: %.2f, best %.2f\n",
              name, 1e3 * p50, 1e3 * best, 1e3 * formula, p50 / formula, best / formula);
}

}  // namespace
}  // namespace toroid

int main(int argc, char** argv) {
  using toroid::Bench;
  const std::string mode = argc > 2 ? argv[1] : "";
  if (mode == "--rank") return toroid::RunRank(argv[2], /*ahead=*/false, argc, argv);
  if (mode == "--rank-ahead") return toroid::RunRank(argv[2], /*ahead=*/true, argc, argv);
  if (mode == "--echo") return toroid::RunEcho(argv[2]);
  const int ranks = argc > 1 ? std::atoi(argv[1]) : 8;
  const int steps = argc > 2 ? std::atoi(argv[2]) : 2000;
  const int chains = argc > 3 ? std::atoi(argv[3]) : 50;
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  if (steps > 0) Bench(self, ranks).Dispatch(steps);
  if (chains == 0) return 0;
  toroid::PrintChains("a chain prepared while it runs", Bench(self, ranks).Chains(chains),
                      toroid::kPrepare + toroid::kChain * toroid::kCompute);
  toroid::PrintChains("a chain prepared step by step", Bench(self, ranks, false).Chains(chains / 5),
                      toroid::kChain * (toroid::kPrepare + toroid::kCompute));
}
