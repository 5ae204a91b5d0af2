// Rows of GPUs, measured by the code that computes there; ranks are threads, each with a GPU.
//
//   gpu_rows [link] [ring] [model] [train] [shape=NAME[:TYPE]] [tokens=N,N] [samples=N]
//                                                                          all without a word
//
//   link    two GPUs: messages between neighbours by the copy engine and by NCCL, collectives
//   ring    two GPUs: causal attention of the ring, forward and with its backward, at T tokens a
//           GPU, beside one GPU with equal work (sqrt(2) T tokens); "still": the ring's schedule
//           without its messages, so that the difference is the exposed exchange
//   model   one GPU: prefill of so many tokens (512, 8192, 32768) and decode behind them, of random
//           weights of a shape (llama-1.2b), in the type that its name may say (q8_0, q4_1)
//   train   one GPU and, where there are two, data=2, ring=2 and tensor=2: steps of that shape
//
// One JSON object a line. Each case is warmed up; times are medians, of the slowest rank. FLOPs of
// attention count the visible half: 4 H K per pair, 2.5 times that for the backward.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <set>
#include <sstream>
#include <string>
#include <thread>

#include "core/arena.h"
#include "core/train/flops.h"
#include "parallel/device.h"
#include "parallel/nccl_communicator.h"
#include "parallel/ring_attention.h"
#include "parallel/trainer.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/mixed_batch.h"
#include "tests/support/passing_communicator.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

constexpr auto kDeadline = std::chrono::minutes(9);

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The host's answer that takes longest, on all ranks.
double Slowest(Communicator& world, double value) {
  CpuStream queue(/*inline_work=*/true);
  world.AllReduce({&queue, nullptr}, Partial(Tensor(DType::kF64, {1}, &value)), ReduceOp::kMax);
  return value;
}

void Meet(Communicator& world) {
  CpuStream queue(/*inline_work=*/true);
  world.Barrier({&queue, nullptr});
}

// Seconds of one call of `work`, which enqueues: medians of `samples` of `calls` calls each.
double Time(Communicator& world, Backend& ops, Stream s, int samples, int calls,
            const std::function<void()>& work) {
  work();
  ops.Synchronize(s);
  std::vector<double> times;
  for (int i = 0; i < samples; ++i) {
    Meet(world);
    const double begin = Seconds();
    for (int c = 0; c < calls; ++c) work();
    ops.Synchronize(s);
    times.push_back(Slowest(world, (Seconds() - begin) / calls));
  }
  return Median(times);
}

void OnGpus(int ranks, const std::function<void(Backend&, std::unique_ptr<Communicator>)>& body) {
  RunOnRanks(
      ranks,
      [&](std::unique_ptr<Communicator> world) {
        auto device = NewRankDevice(std::move(world), {Device::kCuda, Compute::kBF16}, nullptr);
        ASSERT_TRUE(device.ok()) << device.status();
        body(*device->ops, std::move(device->world));
      },
      kDeadline);
}

// --- link ----------------------------------------------------------------------------------------

void Link() {
  RunOnRanks(
      2,
      [](std::unique_ptr<Communicator> host) {
        const int me = host->rank(), other = 1 - me;
        const auto everyone = [](int) { return 0; };
        std::unique_ptr<Communicator> meet = host->Split(everyone);
        std::unique_ptr<Communicator> id = host->Split(everyone);
        auto device = NewRankDevice(std::move(host), {Device::kCuda}, nullptr);
        ASSERT_TRUE(device.ok()) << device.status();
        auto nccl = NewNcclCommunicator(*id, me);
        ASSERT_TRUE(nccl.ok()) << nccl.status();
        Backend& ops = *device->ops;
        const Stream s = ops.NewStream(/*communication=*/true);
        constexpr int64_t kMost = int64_t{256} << 20;
        const Tensor x(DType::kF32, {kMost / 4}, *ops.Allocate(kMost));
        const Tensor y(DType::kF32, {kMost / 4}, *ops.Allocate(kMost));
        ops.Fill(s, x, 1.25), ops.Fill(s, y, 0.5);
        for (const int64_t bytes : {int64_t{64} << 10, int64_t{1} << 20, int64_t{4} << 20,
                                    int64_t{16} << 20, int64_t{64} << 20, int64_t{256} << 20}) {
          const Tensor a = x.Rows(0, bytes / 4), b = y.Rows(0, bytes / 4);
          const auto row = [&](const char* name, double bus_bytes,
                               const std::function<void()>& verb) {
            const double seconds = Time(*meet, ops, s, 7, bytes < (4 << 20) ? 50 : 10, verb);
            if (me == 0) {
              std::printf("{\"row\":\"%s\",\"mib\":%g,\"us\":%.1f,\"gb_s\":%.1f}\n", name,
                          double(bytes) / (1 << 20), seconds * 1e6, bus_bytes / seconds * 1e-9);
              std::fflush(stdout);
            }
          };
          row("send_recv link", double(bytes),
              [&] { device->world->SendRecv(s, a, other, b, other); });
          row("send_recv nccl", double(bytes), [&] { (*nccl)->SendRecv(s, a, other, b, other); });
          row("all_reduce nccl", double(bytes), [&] { (*nccl)->AllReduce(s, Partial(b)); });
          row("all_gather nccl", double(bytes) / 2,
              [&] { (*nccl)->AllGather(s, b.Rows(me * bytes / 8, bytes / 8), b); });
          row("reduce_scatter nccl", double(bytes) / 2,
              [&] { (*nccl)->ReduceScatter(s, Partial(b), a.Rows(0, bytes / 8)); });
        }
        ops.Free(x.data, kMost), ops.Free(y.data, kMost);
      },
      kDeadline);
}

// --- ring ----------------------------------------------------------------------------------------

constexpr int64_t kHeads = 32, kKvHeads = 8, kHeadDim = 128;

// Verbs of the ring's messages do nothing; their results are not used.
class Still final : public PassingCommunicator {
 public:
  explicit Still(std::unique_ptr<Communicator> inner) : PassingCommunicator(std::move(inner)) {}
  std::unique_ptr<Communicator> Split(const RankFunction& color, const RankFunction& key) override {
    return std::make_unique<Still>(inner().Split(color, key));
  }

 protected:
  void DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                  int64_t recv_bytes, int from) override {
    if (s.native != nullptr) return;
    PassingCommunicator::DoSendRecv(s, send, send_bytes, to, recv, recv_bytes, from);
  }
};

struct RingTimes {
  double forward = 0, both = 0;
};

RingTimes RingOf(Backend& ops, Mesh& mesh, int64_t tokens, int calls) {
  const TokenLayout layout({LayoutRule::Kind::kZigzag, 1}, {tokens}, 1, mesh.shape().ring);
  const Stream s = ops.NewStream(false), comm = ops.NewStream(true);
  Arena scratch(ops, "bench");
  const int64_t t = layout.count(0, mesh.ring_rank()), most = layout.max_count(0);
  const int64_t q_bytes = most * kHeads * kHeadDim * 4,
                kv_bytes = 2 * most * kKvHeads * kHeadDim * 4;
  EXPECT_TRUE(scratch.Reserve(5 * q_bytes + 8 * kv_bytes + (64 << 20)).ok());
  const auto random = [&](DType type, std::initializer_list<int64_t> shape, uint64_t seed) {
    const Tensor x = scratch.New("x", type, shape), f32 = type == DType::kF32 ? x : Tensor();
    std::vector<float> host(static_cast<size_t>(x.size()));
    uint64_t z = seed * 0x9e3779b97f4a7c15u + 1;
    for (float& value : host) {
      z ^= z << 13, z ^= z >> 7, z ^= z << 17;
      value = float(int64_t(z >> 40)) / float(1 << 23) - 1;
    }
    if (type == DType::kF32) {
      ops.Upload(s, host.data(), f32);
    } else {
      Arena::Mark mark(scratch);
      const Tensor wide = scratch.New("wide", DType::kF32, shape);
      ops.Upload(s, host.data(), wide);
      ops.Copy(s, wide, x);
      ops.Synchronize(s);
    }
    return x;
  };
  const Tensor q = random(DType::kF32, {t, kHeads, kHeadDim}, 1);
  const Tensor d_o = random(DType::kF32, {t, kHeads, kHeadDim}, 2);
  const Tensor kept = random(DType::kBF16, {2 * t, kKvHeads, kHeadDim}, 3);
  const Tensor room = scratch.New("kv", DType::kBF16, {2 * most, kKvHeads, kHeadDim});
  const Tensor kv(DType::kBF16, {2 * t, kKvHeads, kHeadDim}, room.data);
  const Tensor o = scratch.New("o", DType::kF32, {t, kHeads, kHeadDim});
  const Tensor lse = scratch.New("lse", DType::kF32, {t, kHeads});
  const Tensor dq = scratch.New("dq", DType::kF32, {t, kHeads, kHeadDim});
  const Tensor dkv_room = scratch.New("dkv", DType::kF32, {2 * most, kKvHeads, kHeadDim});
  const Tensor dkv(DType::kF32, {2 * t, kKvHeads, kHeadDim}, dkv_room.data);
  const std::vector<int32_t> positions = layout.Positions(0, mesh.ring_rank());
  const Tensor positions_t = scratch.New("positions", DType::kI32, {t});
  ops.Upload(s, positions.data(), positions_t);
  std::vector<int32_t> index;
  for (int64_t h = 0; h < kHeads; ++h) index.push_back(int32_t(h * kKvHeads / kHeads));
  const Tensor kv_index = scratch.New("index", DType::kI32, {kHeads});
  ops.Upload(s, index.data(), kv_index);
  AttentionSpec spec;
  spec.scale = 1 / std::sqrt(double(kHeadDim));
  {  // what never arrives without messages: random too, since zeros are multiplied faster
    Arena::Mark mark(scratch);
    for (int i = 0; i < 6; ++i) random(DType::kBF16, {2 * most, kKvHeads, kHeadDim}, uint64_t(i));
  }
  RingAttention ring(ops, s, comm, scratch, mesh, layout, [](int64_t, int64_t, int64_t) {});
  const auto forward = [&] {
    ops.Copy(s, kept, kv);
    ops.Fill(s, lse, -INFINITY);  // o is not read then
    ring.Attend(0, spec, q, positions_t, kv, kv_index, o, lse);
  };
  const auto backward = [&] {
    ops.Copy(s, kept, kv);
    ops.Fill(s, dq, 0), ops.Fill(s, dkv, 0);
    ring.Backward(0, spec, q, positions_t, kv, kv_index, o, lse, d_o, dq, dkv);
  };
  RingTimes times;
  times.forward = Time(mesh.world(), ops, s, 7, calls, forward);
  times.both = Time(mesh.world(), ops, s, 5, calls, [&] { forward(), backward(); });
  return times;
}

double AttentionFlops(double tokens) { return 4 * tokens * tokens / 2 * kHeads * kHeadDim; }

void Ring() {
  for (const int64_t each : {4096, 8192, 16384, 32768}) {
    const int64_t alone = (int64_t(double(each) * std::sqrt(2.0)) + 64) / 128 * 128;
    const int calls = int(std::max<int64_t>(2, 65536 / each));
    RingTimes one, moving, still;
    OnGpus(1, [&](Backend& ops, std::unique_ptr<Communicator> world) {
      Mesh mesh(std::move(world), {1, 1, 1});
      one = RingOf(ops, mesh, alone, calls);
    });
    for (const bool moves : {true, false}) {
      OnGpus(2, [&](Backend& ops, std::unique_ptr<Communicator> world) {
        const bool first = world->rank() == 0;
        if (!moves) world = std::make_unique<Still>(std::move(world));
        Mesh mesh(std::move(world), {1, 2, 1});
        const RingTimes times = RingOf(ops, mesh, 2 * each, calls);
        if (first) (moves ? moving : still) = times;
      });
    }
    const double alone_rate = AttentionFlops(double(alone)) / one.forward * 1e-12;
    const double rate = AttentionFlops(2.0 * double(each)) / 2 / moving.forward * 1e-12;
    const double still_rate = AttentionFlops(2.0 * double(each)) / 2 / still.forward * 1e-12;
    const double alone_both = 3.5 * AttentionFlops(double(alone)) / one.both * 1e-12;
    const double both = 3.5 * AttentionFlops(2.0 * double(each)) / 2 / moving.both * 1e-12;
    const double still_both = 3.5 * AttentionFlops(2.0 * double(each)) / 2 / still.both * 1e-12;
    std::printf(
        "{\"row\":\"ring=2 h32:8 hd128 zigzag\",\"tokens_per_gpu\":%lld,"
        "\"forward_tflops_per_gpu\":%.0f,\"still\":%.0f,\"one_gpu\":%.0f,\"ratio\":%.3f,"
        "\"forward_backward_tflops_per_gpu\":%.0f,\"still_fb\":%.0f,\"one_gpu_fb\":%.0f,"
        "\"ratio_fb\":%.3f,\"forward_us\":%.0f,\"exposed_us\":%.0f}\n",
        (long long)each, rate, still_rate, alone_rate, rate / alone_rate, both, still_both,
        alone_both, both / alone_both, moving.forward * 1e6,
        (moving.forward - still.forward) * 1e6);
    std::fflush(stdout);
  }
}

// --- model and train -----------------------------------------------------------------------------

std::string model_name = "random:llama-1.2b";
std::vector<int64_t> model_tokens = {512, 8192, 32768};
int model_samples = 3;

void Model() {
  const int64_t longest = *std::max_element(model_tokens.begin(), model_tokens.end());
  const EngineCase c{.model = model_name,
                     .compute = Compute::kBF16,
                     .context = longest + 128,
                     .threads = int(std::max(1u, std::thread::hardware_concurrency())),
                     .device = Device::kCuda};
  OnEngines(
      c,
      [](Engine& engine) {
        for (const int64_t tokens : model_tokens) {
          GenerateRequest request;
          request.prompt_ids = MixedIds(tokens, engine.config().vocab);
          request.max_tokens = 65;
          request.ignore_eos = true;
          std::vector<double> prefill, decode;
          int64_t kv = 0;
          for (int i = 0; i <= model_samples; ++i) {
            const auto result = engine.Generate(request, {});
            ASSERT_TRUE(result.ok()) << result.status();
            if (i == 0) continue;
            prefill.push_back(result->report.timing.prefill_s);
            decode.push_back(result->report.timing.decode_s / 64);
            kv = result->report.memory.kv[0];
          }
          // Of a table of words that is not the head's too only a row is read.
          const ModelConfig& config = engine.config();
          const Tensor table = engine.model().ends().embedding_vD;
          const double weights =
              double(engine.model().weight_bytes() - (config.tied_embeddings ? 0 : table.bytes()));
          const TrainingFlops flops =
              FlopsOf(engine.config(), engine.config().layers, Remat::kNone, {{tokens}});
          std::printf(
              "{\"row\":\"%s bf16\",\"tokens\":%lld,\"prefill_s\":%.4f,"
              "\"prefill_tokens_s\":%.0f,\"prefill_tflops\":%.0f,\"decode_tokens_s\":%.1f,"
              "\"weights_gb\":%.3f,\"decode_gb_s\":%.0f,\"load_s\":%.1f}\n",
              model_name.c_str(), (long long)tokens, Median(prefill),
              double(tokens) / Median(prefill), flops.model / 3 / Median(prefill) * 1e-12,
              1 / Median(decode), weights * 1e-9, (weights + double(kv)) / Median(decode) * 1e-9,
              engine.load_seconds());
          std::fflush(stdout);
        }
      },
      kDeadline);
}

void TrainOn(MeshShape shape, int64_t tokens, Remat remat) {
  TrainOptions options;
  options.mesh = shape;
  options.device = Device::kCuda;
  options.compute = Compute::kBF16;
  options.remat = remat;
  options.token_block = 8192;
  options.optimizer.rate.peak = 1e-4;
  const int64_t packs = shape.data;
  const std::vector<std::vector<int64_t>> documents(size_t(packs), {tokens});
  RunOnRanks(
      int(shape.size()),
      [&](std::unique_ptr<Communicator> world) {
        const int rank = world->rank();
        auto trainer = Trainer::Create(std::move(world), TestSource(model_name), options, nullptr);
        ASSERT_TRUE(trainer.ok()) << trainer.status();
        const TrainBatch batch = MixedBatch(documents, (*trainer)->config().vocab);
        std::vector<double> times;
        for (int64_t step = 0; step < 6; ++step) {
          const double begin = Seconds();
          const auto result = (*trainer)->Step(step, batch);
          ASSERT_TRUE(result.ok()) << result.status();
          (*trainer)->backend().Synchronize((*trainer)->stream());
          if (step > 1) times.push_back(Seconds() - begin);
        }
        const TrainingFlops flops =
            FlopsOf((*trainer)->config(), (*trainer)->layers(), remat, batch.documents);
        if (rank != 0) return;
        const double gpus = double(shape.size());
        std::printf(
            "{\"row\":\"train %s bf16 %s\",\"tokens\":%lld,\"remat\":%d,\"step_s\":%.4f,"
            "\"tokens_s_per_gpu\":%.0f,\"model_tflops_per_gpu\":%.0f,\"peak_gib\":%.1f}\n",
            model_name.c_str(), ToString(shape).c_str(), (long long)(packs * tokens), int(remat),
            Median(times), double(packs * tokens) / Median(times) / gpus,
            flops.model / Median(times) / gpus * 1e-12,
            double((*trainer)->peak_bytes()) / (1 << 30));
        std::fflush(stdout);
      },
      kDeadline);
}

void Train() {
  TrainOn({1, 1, 1}, 8192, Remat::kNone);
  TrainOn({1, 1, 1}, 8192, Remat::kAttentionOutput);
  if (CudaDevices() < 2) return;
  TrainOn({2, 1, 1}, 8192, Remat::kNone);
  TrainOn({1, 2, 1}, 16384, Remat::kNone);
  TrainOn({1, 1, 2}, 8192, Remat::kNone);
}

int Main(int argc, char** argv) {
  std::set<std::string> words;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.starts_with("shape=")) {
      model_name = "random:" + word.substr(6);
    } else if (word.starts_with("samples=")) {
      model_samples = std::stoi(word.substr(8));
    } else if (word.starts_with("tokens=")) {
      model_tokens.clear();
      std::istringstream list(word.substr(7));
      for (std::string tokens; std::getline(list, tokens, ',');) {
        model_tokens.push_back(std::stoll(tokens));
      }
    } else {
      words.insert(word);
    }
  }
  const auto wants = [&](const char* name) { return words.empty() || words.contains(name); };
  const int devices = CudaDevices();
  if (devices == 0) {
    std::fprintf(stderr, "gpu_rows: no GPU\n");
    return 1;
  }
  if (wants("link") && devices > 1) Link();
  if (wants("ring") && devices > 1) Ring();
  if (wants("model")) Model();
  if (wants("train")) Train();
  return ::testing::UnitTest::GetInstance()->Failed() ? 1 : 0;
}

}  // namespace
}  // namespace toroid

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  return toroid::Main(argc, argv);
}
