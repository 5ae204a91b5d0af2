// bench collectives: each verb over the world at three sizes. bench ring: the
// step of ring attention, its message alone, its attention alone, and both at
// once.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/bench.h"

namespace toroid {
namespace {

absl::Status NeedRanks(const Communicator& world) {
  if (world.size() > 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "nothing to send: a world of 1 rank: use toroid launch -n 2 bench ...");
}

// Seconds of one call. Ranks call it equally often: a fixed number of times
// between barriers.
double CollectiveSeconds(Backend& backend, Communicator& world, Stream s,
                         const std::function<void()>& call) {
  constexpr int kTimes = 15;
  std::vector<double> times;
  for (int i = 0; i < kTimes + 1; ++i) {
    world.Barrier(s);
    backend.Synchronize(s);
    const double once = [&] {
      const auto begin = std::chrono::steady_clock::now();
      call();
      backend.Synchronize(s);
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }();
    if (i > 0) times.push_back(once);  // the first warms up
  }
  std::nth_element(times.begin(), times.begin() + kTimes / 2, times.end());
  return times[kTimes / 2];
}

}  // namespace

absl::StatusOr<std::vector<BenchRow>> BenchCollectives(Backend& backend, Communicator& world,
                                                       const BenchPeaks& peaks) {
  TOROID_RETURN_IF_ERROR(NeedRanks(world));
  const Stream s = backend.NewStream(true);
  const int64_t n = world.size(), me = world.rank();
  std::vector<BenchRow> rows;
  for (const int64_t count : {int64_t{1} << 10, int64_t{1} << 16, int64_t{1} << 20}) {
    BenchMemory memory(backend);
    const Tensor each = memory.Floats({count}, static_cast<uint32_t>(me + 1));
    const Tensor whole = memory.Empty(DType::kF32, {n * count});
    const Tensor sum = memory.Empty(DType::kF32, {count});
    std::vector<float> got;
    const auto first = [&](const Tensor& tensor, int64_t at) {
      got.resize(static_cast<size_t>(tensor.size()));
      backend.Download(s, tensor, got.data());
      return got[static_cast<size_t>(at)];
    };
    const auto add = [&](const char* name, const std::function<void()>& call) {
      const int64_t before = world.counters().bytes_sent;
      call();
      backend.Synchronize(s);
      const double sent = double(world.counters().bytes_sent - before);
      BenchRow row{name,
                   absl::StrCat(count * 4, " B a rank"),
                   CollectiveSeconds(backend, world, s, call),
                   0,
                   "GB/s",
                   peaks.copy * 1e-9,
                   "copy"};
      row.rate = sent / row.seconds * 1e-9;
      rows.push_back(std::move(row));
    };
    const int to = static_cast<int>((me + 1) % n), from = static_cast<int>((me + n - 1) % n);
    add("send_recv", [&] { world.SendRecv(s, each, to, sum, from); });
    TOROID_RETURN_IF_ERROR(
        BenchCheck("send_recv", first(sum, 3), BenchValue(uint32_t(from + 1), 3), 0));
    add("all_gather", [&] { world.AllGather(s, each, whole); });
    TOROID_RETURN_IF_ERROR(
        BenchCheck("all_gather", first(whole, (n - 1) * count + 3), BenchValue(uint32_t(n), 3), 0));
    backend.Fill(s, sum, 1);
    world.AllReduce(s, Partial(sum));
    TOROID_RETURN_IF_ERROR(BenchCheck("all_reduce", first(sum, 3), double(n), 0));
    backend.Fill(s, sum, 0);
    add("all_reduce", [&] { world.AllReduce(s, Partial(sum)); });
    backend.Fill(s, whole, 1);
    add("reduce_scatter", [&] { world.ReduceScatter(s, Partial(whole), sum); });
    TOROID_RETURN_IF_ERROR(BenchCheck("reduce_scatter", first(sum, 3), double(n), 0));
    add("broadcast", [&] { world.Broadcast(s, each, 0); });
    TOROID_RETURN_IF_ERROR(BenchCheck("broadcast", first(each, 3), BenchValue(1, 3), 0));
  }
  TOROID_RETURN_IF_ERROR(world.Health());
  return rows;
}

absl::StatusOr<std::vector<BenchRow>> BenchRing(Backend& backend, Communicator& world,
                                                const BenchPeaks& peaks) {
  TOROID_RETURN_IF_ERROR(NeedRanks(world));
  constexpr int64_t kHeads = 9, kKvHeads = 3, kHeadDim = 64;
  const Stream s = backend.NewStream(false), comm_s = backend.NewStream(true);
  const int n = world.size(), me = world.rank();
  std::vector<BenchRow> rows;
  for (const int64_t tokens : {512, 1024}) {
    BenchMemory memory(backend);
    const Tensor q = memory.Floats({tokens, kHeads, kHeadDim}, 1);
    const Tensor kv = memory.Floats({2 * tokens, kKvHeads, kHeadDim}, uint32_t(me + 2));
    const Tensor kv_in = memory.Empty(DType::kF32, {2 * tokens, kKvHeads, kHeadDim});
    const Tensor o = memory.Empty(DType::kF32, {tokens, kHeads, kHeadDim});
    const Tensor lse = memory.Empty(DType::kF32, {tokens, kHeads});
    std::vector<int32_t> positions(static_cast<size_t>(tokens));
    std::iota(positions.begin(), positions.end(), 0);
    KvView view;
    view.k = kv.Rows(0, tokens), view.v = kv.Rows(tokens, tokens);
    view.positions = memory.Ints(positions);
    for (int32_t& position : positions) position += int32_t(tokens);  // all keys are before
    const Tensor q_positions = memory.Ints(positions);
    const Tensor kv_index = memory.Ints({0, 0, 0, 1, 1, 1, 2, 2, 2});
    AttentionSpec spec;
    spec.scale = 0.125;
    const Tile tile{0, tokens, 0, tokens};
    const auto attend = [&] {
      backend.Fill(s, o, 0);
      backend.Fill(s, lse, -std::numeric_limits<double>::infinity());
      backend.AttendTile(s, q, q_positions, view, kv_index, spec, tile, o, lse);
    };
    const auto send = [&] {
      backend.Fork(s, comm_s);
      world.SendRecv(comm_s, kv, (me + 1) % n, kv_in, (me + n - 1) % n);
    };
    const auto join = [&] { backend.Join(s, comm_s); };
    const double alone_s = CollectiveSeconds(backend, world, s, attend);
    const double send_s = CollectiveSeconds(backend, world, s, [&] { send(), join(); });
    std::vector<float> got(static_cast<size_t>(kv_in.size()));
    backend.Download(s, kv_in, got.data());
    TOROID_RETURN_IF_ERROR(
        BenchCheck("ring", got[3], BenchValue(uint32_t((me + n - 1) % n + 2), 3), 0));
    const double both_s = CollectiveSeconds(backend, world, s, [&] { send(), attend(), join(); });
    const std::string size = absl::StrCat(tokens, " tokens a rank, ", kv.bytes(), " B");
    const double flops = 4.0 * kHeadDim * kHeads * double(tokens) * double(tokens);
    const auto arithmetic = [&](const char* name, double seconds) {
      rows.push_back(
          {name, size, seconds, flops / seconds * 1e-9, "GF/s", peaks.flops * 1e-9, "arithmetic"});
    };
    arithmetic("attention alone", alone_s);
    rows.push_back({"message alone", size, send_s, double(kv.bytes()) / send_s * 1e-9, "GB/s",
                    peaks.copy * 1e-9, "copy"});
    arithmetic("both at once", both_s);
  }
  TOROID_RETURN_IF_ERROR(world.Health());
  return rows;
}

}  // namespace toroid
