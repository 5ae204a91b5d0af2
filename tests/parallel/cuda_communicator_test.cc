// The communicators of device memory: the conformance suite of threads and MPI on NCCL (a GPU for
// each rank) and on ranks that share one, and the copy engine's link. Ranks are threads.
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "parallel/device.h"
#include "tests/support/communicator_conformance.h"
#include "tests/support/device_memory.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

// Cases that hold verbs back on a stream of the host: they are about the host's queues.
bool OfDevices(const ConformanceCase& c) {
  const std::string name = c.name;
  return name != "BarrierWaitsForTheLast" && name != "OrderHoldsOverStreams" &&
         name != "OverlappingAxes";
}

std::vector<ConformanceCase> DeviceCases() {
  std::vector<ConformanceCase> cases;
  for (const ConformanceCase& c : ConformanceCases()) {
    if (OfDevices(c)) cases.push_back(c);
  }
  return cases;
}

// Runs `body` on each rank with its GPU and world; shared: all on GPU 0's place if there are fewer
// GPUs than ranks.
void OnGpus(int ranks, bool shared,
            const std::function<void(Backend& ops, std::unique_ptr<Communicator> world)>& body) {
  RunOnRanks(ranks, [&](std::unique_ptr<Communicator> world) {
    auto device = NewRankDevice(std::move(world), {Device::kCuda, Compute::kF32, shared}, nullptr);
    ASSERT_TRUE(device.ok()) << device.status();
    body(*device->ops, std::move(device->world));
  });
}

void Conform(int ranks, bool shared, const ConformanceCase& conformance) {
  OnGpus(ranks, shared, [&](Backend& ops, std::unique_ptr<Communicator> world) {
    const Stream s = ops.NewStream(/*communication=*/true);
    DeviceMemoryCommunicator on_device(std::move(world), ops, s);
    conformance.run(on_device);
    EXPECT_TRUE(on_device.Health().ok()) << on_device.Health();
  });
}

class CudaConformanceTest : public ::testing::TestWithParam<ConformanceCase> {};

TEST_P(CudaConformanceTest, HoldsOnNccl) {
  if (CudaDevices() < 2) GTEST_SKIP() << "needs two GPUs, sees " << CudaDevices();
  for (int ranks = 2; ranks <= std::min(CudaDevices(), 2); ++ranks) {
    Conform(ranks, /*shared=*/false, GetParam());
  }
}

TEST_P(CudaConformanceTest, HoldsOnASharedGpu) {
  if (CudaDevices() == 0) GTEST_SKIP() << "no GPU";
  Conform(CudaDevices() + 1, /*shared=*/true, GetParam());
}

// Verbs on streams of the host go to the host communicator.
TEST_P(CudaConformanceTest, HoldsOnTheHost) {
  if (CudaDevices() == 0) GTEST_SKIP() << "no GPU";
  OnGpus(CudaDevices() + 1, /*shared=*/true,
         [&](Backend&, std::unique_ptr<Communicator> world) { GetParam().run(*world); });
}

INSTANTIATE_TEST_SUITE_P(World, CudaConformanceTest, ::testing::ValuesIn(DeviceCases()),
                         [](const auto& info) { return std::string(info.param.name); });

// Memory of one rank's device, in bytes that follow from (rank, salt).
class Buffer {
 public:
  Buffer(Backend& ops, Stream s, int64_t bytes) : ops_(ops), s_(s), bytes_(bytes) {
    const auto data = ops.Allocate(bytes);
    EXPECT_TRUE(data.ok()) << data.status();
    x = Tensor(DType::kU8, {bytes}, *data);
  }
  ~Buffer() { ops_.Free(x.data, bytes_); }
  Buffer(const Buffer&) = delete;

  static std::vector<uint8_t> Pattern(int rank, int salt, int64_t bytes) {
    std::vector<uint8_t> host(static_cast<size_t>(bytes));
    uint64_t z = uint64_t(rank) * 0x9e3779b97f4a7c15u + uint64_t(salt) * 0xd1342543de82ef95u + 1;
    for (uint8_t& byte : host) {
      z ^= z << 13, z ^= z >> 7, z ^= z << 17;
      byte = uint8_t(z);
    }
    return host;
  }
  void Fill(int rank, int salt) { ops_.Upload(s_, Pattern(rank, salt, bytes_).data(), x); }
  bool Holds(int rank, int salt) {
    std::vector<uint8_t> host(static_cast<size_t>(bytes_));
    ops_.Download(s_, x, host.data());
    return host == Pattern(rank, salt, bytes_);
  }

  Tensor x;

 private:
  Backend& ops_;
  const Stream s_;
  const int64_t bytes_;
};

// Long and short messages in turns around the ring, more of them than a link has slots, given at
// once: what arrives is what was sent in that turn.
TEST(CudaLinkTest, MessagesOfAnySizeInOrder) {
  if (CudaDevices() < 2) GTEST_SKIP() << "needs two GPUs, sees " << CudaDevices();
  OnGpus(2, /*shared=*/false, [](Backend& ops, std::unique_ptr<Communicator> world) {
    EXPECT_GT(world->communicator_bytes(), 0);
    const Stream s = ops.NewStream(/*communication=*/true);
    const int me = world->rank(), other = 1 - me;
    const int64_t sizes[] = {1, 64 << 20, 333, (8 << 20) + 1, 8 << 20, (40 << 20) - 7, 4096};
    std::vector<std::unique_ptr<Buffer>> sent, received;
    for (int salt = 0; salt < 7; ++salt) {
      sent.push_back(std::make_unique<Buffer>(ops, s, sizes[salt]));
      received.push_back(std::make_unique<Buffer>(ops, s, sizes[salt]));
      sent.back()->Fill(me, salt);
      received.back()->Fill(me, salt + 100);
    }
    std::unique_ptr<Communicator> ring = world->Split([](int) { return 0; });
    for (int salt = 0; salt < 7; ++salt) {
      Communicator& way = salt % 2 == 0 ? *ring : *world;  // one order over both
      way.SendRecv(s, sent[size_t(salt)]->x, other, received[size_t(salt)]->x, other);
    }
    for (int salt = 0; salt < 7; ++salt) {
      EXPECT_TRUE(received[size_t(salt)]->Holds(other, salt)) << salt;
      EXPECT_TRUE(sent[size_t(salt)]->Holds(me, salt)) << salt;
      EXPECT_FALSE(received[size_t(salt)]->Holds(other, salt + 1)) << "negative control";
    }
    EXPECT_TRUE(world->Health().ok()) << world->Health();
  });
}

// A message is sent when what its stream was given before is done, and overlaps another stream.
TEST(CudaLinkTest, FollowsItsStream) {
  if (CudaDevices() < 2) GTEST_SKIP() << "needs two GPUs, sees " << CudaDevices();
  OnGpus(2, /*shared=*/false, [](Backend& ops, std::unique_ptr<Communicator> world) {
    const Stream s = ops.NewStream(false), comm = ops.NewStream(true);
    const int me = world->rank(), other = 1 - me;
    constexpr int64_t kBytes = 16 << 20;
    Buffer a(ops, s, kBytes), b(ops, s, kBytes);
    for (int round = 0; round < 20; ++round) {
      const double value = round * 10 + me + 1;
      Tensor x(DType::kF32, {kBytes / 4}, a.x.data), y(DType::kF32, {kBytes / 4}, b.x.data);
      ops.Fill(s, x, value);
      ops.Fork(s, comm);
      world->SendRecv(comm, x, other, y, other);
      ops.Join(s, comm);
      ops.Add(s, x, y);  // waits for y, and for x to be sent
      std::vector<float> sum(static_cast<size_t>(kBytes / 4));
      ops.Download(s, x, sum.data());
      for (size_t i : {size_t{0}, sum.size() / 2, sum.size() - 1}) {
        EXPECT_EQ(sum[i], float(2 * round * 10 + 3)) << round;
      }
    }
  });
}

TEST(CudaPlaceTest, SharingAGpuIsRefusedByName) {
  const int ranks = CudaDevices() + 1;
  if (ranks == 1) GTEST_SKIP() << "no GPU";
  RunOnRanks(ranks, [&](std::unique_ptr<Communicator> world) {
    const auto device = NewRankDevice(std::move(world), {Device::kCuda}, nullptr);
    EXPECT_EQ(device.status().code(), absl::StatusCode::kFailedPrecondition);
    const std::string says(device.status().message());
    EXPECT_NE(says.find("ranks 0 and " + std::to_string(ranks - 1)), std::string::npos) << says;
    EXPECT_NE(says.find("--allow-gpu-sharing"), std::string::npos) << says;
  });
  // Left to itself such a world computes on CPUs; the negative control: one rank takes the GPU.
  for (int n : {ranks, 1}) {
    RunOnRanks(n, [&](std::unique_ptr<Communicator> world) {
      const auto device = NewRankDevice(std::move(world), {Device::kAuto}, nullptr);
      ASSERT_TRUE(device.ok()) << device.status();
      EXPECT_EQ(device->ops->NewStream(false).native != nullptr, n == 1);
    });
  }
}

TEST(CudaPlaceTest, WithoutAGpuTheRankIsNamed) {
  if (CudaDevices() > 0) GTEST_SKIP() << "there are GPUs";
  RunOnRanks(2, [](std::unique_ptr<Communicator> world) {
    const auto device = NewRankDevice(std::move(world), {Device::kCuda}, nullptr);
    EXPECT_EQ(device.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(device.status().message().find("rank 0"), absl::string_view::npos);
  });
}

}  // namespace
}  // namespace toroid
