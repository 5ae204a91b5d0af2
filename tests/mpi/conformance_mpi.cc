// The conformance suite over MPI: every rank runs the same cases side by side.
//   mpirun -n 4 parallel_mpi_test [--message-bytes=1000] [--slot-bytes=4096] [--fail] [--gpu]
// Small limits cut short messages as 1 GiB would cut long ones. --fail runs the failure alone: it
// leaves MPI broken. --gpu: in memory of GPUs, by NCCL or, where ranks share one, by the host's.
// Rank 0 prints; a rank with a failed case prints it and ends all.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "parallel/broadcast_channel.h"
#include "parallel/counting_communicator.h"
#include "parallel/device.h"
#include "parallel/launcher_environment.h"
#include "parallel/mpi_communicator.h"
#include "tests/support/communicator_conformance.h"
#include "tests/support/device_memory.h"

namespace toroid {
namespace {

std::unique_ptr<Communicator>* world;
MpiLimits limits;

class MpiConformanceTest : public ::testing::TestWithParam<ConformanceCase> {};

TEST_P(MpiConformanceTest, Holds) {
  GetParam().run(**world);
  EXPECT_TRUE((*world)->Health().ok()) << (*world)->Health();
}

INSTANTIATE_TEST_SUITE_P(World, MpiConformanceTest, ::testing::ValuesIn(ConformanceCases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(MpiWorldTest, KnowsItsHosts) {
  const WorldHosts hosts = HostsOf(**world);
  EXPECT_EQ(hosts.local_size, (*world)->size());  // mpirun of one machine
  EXPECT_EQ(hosts.local_rank, (*world)->rank());
  const LauncherEnvironment environment = ThisLauncherEnvironment();
  EXPECT_EQ(environment.promised_size, (*world)->size());
  EXPECT_EQ(environment.rank_hint, (*world)->rank());
}

// The scratch that `plan` foresees is the scratch that is there, after every call.
TEST(MpiWorldTest, HoldsTheScratchThatCountingForesees) {
  const auto everyone = [](int) { return 0; };
  std::unique_ptr<Communicator> real = (*world)->Split(everyone);
  std::unique_ptr<Communicator> counted =
      NewCountingWorld(real->rank(), real->size(), limits.slot_bytes)->Split(everyone);
  CpuStream queue(/*inline_work=*/true);
  std::vector<double> memory(200000 * real->size());
  for (int64_t count : {1, 3000, 200, 190000}) {
    for (bool scatter : {false, true}) {
      for (Communicator* ranks : {real.get(), counted.get()}) {
        const Stream s{ranks == real.get() ? &queue : nullptr};
        const int64_t all = scatter ? count * real->size() : count;
        const Partial x(Tensor(DType::kF64, {all}, memory.data()));
        double* mine = memory.data() + real->rank() * count;
        if (scatter) ranks->ReduceScatter(s, x, Tensor(DType::kF64, {count}, mine));
        if (!scatter) ranks->AllReduce(s, x);
      }
      EXPECT_EQ(real->communicator_bytes(), counted->communicator_bytes()) << count;
      EXPECT_EQ(real->counters().bytes_sent, counted->counters().bytes_sent) << count;
    }
  }
  EXPECT_EQ(real->communicator_bytes() > 0, real->size() > 1);
  EXPECT_LE(real->communicator_bytes(), 2 * (real->size() - 1) * limits.slot_bytes);
}

// Processes of one host share memory: they sleep until rank 0 has something for them.
TEST(MpiWorldTest, ProgramsComeToSleepersThroughMemory) {
  for (const bool shared : {true, false}) {
    SCOPED_TRACE(shared);
    const auto channel =
        BroadcastChannel::Create(**world, shared ? BroadcastChannel::Sharing::kProcesses
                                                 : BroadcastChannel::Sharing::kNever);
    EXPECT_EQ(channel->shares(), shared && (*world)->size() > 1);
    for (const size_t bytes : {0, 1, 4000, 4001, 1 << 20}) {
      const std::string want(bytes, char('a' + bytes % 26));
      const auto got = channel->Broadcast((*world)->rank() == 0 ? want : "");
      ASSERT_TRUE(got.ok()) << got.status();
      EXPECT_TRUE(*got == want) << bytes;
    }
  }
}

TEST(MpiFailureTest, HealthIsSticky) { ExpectHealthIsSticky(**world); }

// A rank that failed will miss the next verbs: say so and end, so that nobody waits for it.
class EndOnFailure : public ::testing::EmptyTestEventListener {
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s:%d: FAILED: %s\n", (*world)->rank(),
                 result.file_name() == nullptr ? "?" : result.file_name(), result.line_number(),
                 result.message());
    std::fflush(stderr);
    _exit(1);
  }
};

// The world of the ranks' GPUs in the place of *world: its verbs of host memory run there.
absl::Status MoveToGpus(std::unique_ptr<Backend>& ops) {
  auto device = NewRankDevice(std::move(*world), {Device::kCuda, Compute::kF32, true}, nullptr);
  if (!device.ok()) return device.status();
  ops = std::move(device->ops);
  const int64_t linked = device->world->communicator_bytes();
  if (device->world->rank() == 0) std::printf("communicators hold %lld bytes\n", (long long)linked);
  *world = std::make_unique<DeviceMemoryCommunicator>(std::move(device->world), *ops,
                                                      ops->NewStream(/*communication=*/true));
  return absl::OkStatus();
}

// A megabyte sent around the ring many times over, slots of a link included.
TEST(GpuMpiTest, LongMessagesAroundTheRing) {
  const int n = (*world)->size(), me = (*world)->rank();
  CpuStream queue(/*inline_work=*/true);
  for (int64_t bytes : {int64_t{1} << 20, int64_t{40} << 20, (int64_t{8} << 20) + 1}) {
    std::vector<uint8_t> send(size_t(bytes), uint8_t(me + 1)), recv(size_t(bytes), 0);
    for (size_t i = 0; i < send.size(); i += 4099) send[i] = uint8_t(i / 4099 + size_t(me));
    (*world)->SendRecv({&queue, nullptr}, Tensor(DType::kU8, {bytes}, send.data()), (me + 1) % n,
                       Tensor(DType::kU8, {bytes}, recv.data()), (me + n - 1) % n);
    const int from = (me + n - 1) % n;
    int64_t wrong = 0;
    for (size_t i = 0; i < recv.size(); ++i) {
      wrong += recv[i] != (i % 4099 == 0 ? uint8_t(i / 4099 + size_t(from)) : uint8_t(from + 1));
    }
    EXPECT_EQ(wrong, 0) << bytes;
  }
}

int Main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  bool fail = false, gpu = false;
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    if (absl::ConsumePrefix(&argument, "--message-bytes=")) {
      if (!absl::SimpleAtoi(argument, &limits.message_bytes)) return 2;
    } else if (absl::ConsumePrefix(&argument, "--slot-bytes=")) {
      if (!absl::SimpleAtoi(argument, &limits.slot_bytes)) return 2;
    } else if (argument == "--fail") {
      fail = true;
    } else if (argument == "--gpu") {
      gpu = true;
    }
  }
  // The last three hold verbs back on queues of the host.
  ::testing::GTEST_FLAG(filter) =
      fail  ? "MpiFailureTest.*"
      : gpu ? "GpuMpiTest.*:World/*-*BarrierWaits*:*OrderHolds*:*OverlappingAxes*"
            : "-MpiFailureTest.*:GpuMpiTest.*";
  absl::StatusOr<std::unique_ptr<Communicator>> started = NewMpiWorld(&argc, &argv, limits);
  if (!started.ok()) {
    std::fprintf(stderr, "%s\n", started.status().ToString().c_str());
    return 1;
  }
  world = &*started;
  std::unique_ptr<Backend> ops;  // outlives the world
  if (gpu && CudaDevices() == 0) {
    if ((*world)->rank() == 0) std::printf("SKIPPED: no GPU\n");
    started->reset();
    return 77;
  }
  const absl::Status moved = gpu ? MoveToGpus(ops) : absl::OkStatus();
  if (!moved.ok()) {
    std::fprintf(stderr, "%s\n", moved.ToString().c_str());
    _exit(1);
  }
  ::testing::TestEventListeners& listeners = ::testing::UnitTest::GetInstance()->listeners();
  if ((*world)->rank() != 0) delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new EndOnFailure);
  const int result = RUN_ALL_TESTS();
  started->reset();  // ends MPI
  return result;
}

}  // namespace
}  // namespace toroid

int main(int argc, char** argv) { return toroid::Main(argc, argv); }
