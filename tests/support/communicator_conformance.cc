#include "tests/support/communicator_conformance.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "parallel/counting_communicator.h"

namespace toroid {
namespace {

// A well-mixed number of (rank, index, salt): no two places look alike.
uint64_t Mixed(int64_t rank, int64_t index, int64_t salt) {
  uint64_t z = uint64_t(index) * 0x9e3779b97f4a7c15u + uint64_t(rank) * 0xd1342543de82ef95u +
               uint64_t(salt) * 0x2545f4914f6cdd1du + 1;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

using Bytes = std::vector<uint8_t>;

Bytes Pattern(int rank, int64_t bytes, int64_t salt) {
  Bytes x(bytes);
  for (int64_t i = 0; i < bytes; ++i) x[i] = uint8_t(Mixed(rank, i, salt));
  return x;
}

Tensor AsTensor(Bytes& x) { return Tensor(DType::kU8, {int64_t(x.size())}, x.data()); }

// Element i of rank's input, as a number: floats of many magnitudes, so that the order of a sum
// shows in its bits.
double Value(int rank, int64_t i, DType type) {
  const uint64_t z = Mixed(rank, i, int64_t(type));
  if (type == DType::kI32 || type == DType::kI64) return double(int64_t(z % 2000003) - 1000001);
  return std::ldexp(double(int64_t(z >> 40)) - double(1 << 23), int(z % 24) - 30);
}

template <typename T>
std::vector<T> Input(int rank, int64_t count, DType type) {
  std::vector<T> x(count);
  for (int64_t i = 0; i < count; ++i) x[i] = T(Value(rank, i, type));
  return x;
}
template <>
std::vector<uint16_t> Input<uint16_t>(int rank, int64_t count, DType type) {
  std::vector<uint16_t> x(count);
  for (int64_t i = 0; i < count; ++i) x[i] = ToBf16(float(Value(rank, i, type)));
  return x;
}

// The contract: rank 0 + rank 1 + .., in the element's own type (bf16 in f32, rounded once).
template <typename T>
std::vector<T> RankOrderSum(int ranks, int64_t count, DType type, bool reversed = false) {
  std::vector<T> sum = Input<T>(reversed ? ranks - 1 : 0, count, type);
  for (int r = 1; r < ranks; ++r) {
    const std::vector<T> x = Input<T>(reversed ? ranks - 1 - r : r, count, type);
    for (int64_t i = 0; i < count; ++i) sum[i] = T(sum[i] + x[i]);
  }
  return sum;
}
template <>
std::vector<uint16_t> RankOrderSum<uint16_t>(int ranks, int64_t count, DType type, bool) {
  std::vector<uint16_t> out(count);
  for (int64_t i = 0; i < count; ++i) {
    float sum = FromBf16(ToBf16(float(Value(0, i, type))));
    for (int r = 1; r < ranks; ++r) sum += FromBf16(ToBf16(float(Value(r, i, type))));
    out[i] = ToBf16(sum);
  }
  return out;
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(T)));
}

class InlineStream {
 public:
  Stream stream() { return {&queue_}; }

 private:
  CpuStream queue_{/*inline_work=*/true};
};

const int64_t kCounts[] = {0, 1, 7, 64, 257, 5000, 70001};

template <typename T>
void AllReduceOf(Communicator& world, DType type) {
  InlineStream s;
  for (int64_t count : kCounts) {
    std::vector<T> x = Input<T>(world.rank(), count, type);
    const Tensor sum = world.AllReduce(s.stream(), Partial(Tensor(type, {count}, x.data())));
    EXPECT_EQ(sum.data, x.data());
    EXPECT_TRUE(SameBits(x, RankOrderSum<T>(world.size(), count, type)))
        << Info(type).name << " " << count;
    // The other order of summation gives other bits: the comparison above can fail.
    if (type == DType::kF32 && world.size() > 2 && count >= 257) {
      EXPECT_FALSE(SameBits(x, RankOrderSum<T>(world.size(), count, type, /*reversed=*/true)));
    }
  }
}

void AllReduceSumsInRankOrder(Communicator& world) {
  AllReduceOf<float>(world, DType::kF32);
  AllReduceOf<double>(world, DType::kF64);
  AllReduceOf<int32_t>(world, DType::kI32);
  AllReduceOf<int64_t>(world, DType::kI64);
  AllReduceOf<uint16_t>(world, DType::kBF16);
}

void AllReduceMaximum(Communicator& world) {
  InlineStream s;
  for (int64_t count : {int64_t{1}, int64_t{300}, int64_t{9000}}) {
    std::vector<float> x = Input<float>(world.rank(), count, DType::kF32);
    std::vector<int64_t> y = Input<int64_t>(world.rank(), count, DType::kI64);
    if (world.rank() == world.size() - 1) x[count / 2] = std::nanf("");
    world.AllReduce(s.stream(), Partial(Tensor(DType::kF32, {count}, x.data())), ReduceOp::kMax);
    world.AllReduce(s.stream(), Partial(Tensor(DType::kI64, {count}, y.data())), ReduceOp::kMax);
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; ++i) {
      float largest_x = -INFINITY;
      int64_t largest_y = std::numeric_limits<int64_t>::min();
      for (int r = 0; r < world.size(); ++r) {
        largest_x = std::max(largest_x, float(Value(r, i, DType::kF32)));
        largest_y = std::max(largest_y, int64_t(Value(r, i, DType::kI64)));
      }
      wrong += i == count / 2 ? !std::isnan(x[i]) : x[i] != largest_x;
      wrong += y[i] != largest_y;
    }
    EXPECT_EQ(wrong, 0) << count;
  }
}

template <typename T>
void ReduceScatterOf(Communicator& world, DType type) {
  InlineStream s;
  for (int64_t each : kCounts) {
    const int64_t count = each * world.size();
    const std::vector<T> x = Input<T>(world.rank(), count, type);
    const std::vector<T> whole = RankOrderSum<T>(world.size(), count, type);
    const std::vector<T> expected(whole.begin() + world.rank() * each,
                                  whole.begin() + (world.rank() + 1) * each);
    std::vector<T> source = x, out(each);
    world.ReduceScatter(s.stream(), Partial(Tensor(type, {count}, source.data())),
                        Tensor(type, {each}, out.data()));
    EXPECT_TRUE(SameBits(out, expected)) << Info(type).name << " " << each;
    EXPECT_TRUE(SameBits(source, x)) << "the input was changed";
    T* mine = source.data() + world.rank() * each;  // in place
    world.ReduceScatter(s.stream(), Partial(Tensor(type, {count}, source.data())),
                        Tensor(type, {each}, mine));
    EXPECT_TRUE(SameBits(std::vector<T>(mine, mine + each), expected)) << each;
  }
}

void ReduceScatterSumsInRankOrder(Communicator& world) {
  ReduceScatterOf<float>(world, DType::kF32);
  ReduceScatterOf<double>(world, DType::kF64);
  ReduceScatterOf<int64_t>(world, DType::kI64);
  ReduceScatterOf<uint16_t>(world, DType::kBF16);
}

void AllGatherInRankOrder(Communicator& world) {
  InlineStream s;
  for (int64_t each : kCounts) {
    Bytes expected;
    for (int r = 0; r < world.size(); ++r) {
      const Bytes x = Pattern(r, each, 3);
      expected.insert(expected.end(), x.begin(), x.end());
    }
    Bytes x = Pattern(world.rank(), each, 3), out(each * world.size());
    world.AllGather(s.stream(), AsTensor(x), AsTensor(out));
    EXPECT_TRUE(out == expected) << each;
    Bytes place(each * world.size());
    const Tensor whole = AsTensor(place);
    std::copy(x.begin(), x.end(), place.begin() + world.rank() * each);
    world.AllGather(s.stream(), whole.Rows(world.rank() * each, each), whole);
    EXPECT_TRUE(place == expected) << "in place, " << each;
  }
}

void BroadcastFromEveryRoot(Communicator& world) {
  InlineStream s;
  for (int root = 0; root < world.size(); ++root) {
    for (int64_t bytes : kCounts) {
      Bytes x = Pattern(world.rank(), bytes, root);
      world.Broadcast(s.stream(), AsTensor(x), root);
      EXPECT_TRUE(x == Pattern(root, bytes, root)) << root << " " << bytes;
    }
  }
}

void SendRecvAroundTheRing(Communicator& world) {
  InlineStream s;
  const int n = world.size(), me = world.rank();
  for (int shift = 0; shift < n; ++shift) {
    for (int64_t bytes : kCounts) {
      const int to = (me + shift) % n, from = (me - shift + n) % n;
      Bytes send = Pattern(me, bytes, shift), recv(bytes);
      world.SendRecv(s.stream(), AsTensor(send), to, AsTensor(recv), from);
      EXPECT_TRUE(recv == Pattern(from, bytes, shift)) << shift << " " << bytes;
    }
  }
}

// Rank r sends 100 r bytes: rank 0 sends nothing and its neighbour receives nothing.
void SendRecvOfUnequalSides(Communicator& world) {
  InlineStream s;
  const int n = world.size(), me = world.rank();
  if (n == 1) return;
  const int to = (me + 1) % n, from = (me + n - 1) % n;
  Bytes send = Pattern(me, 100 * me, 5), recv(100 * from);
  world.SendRecv(s.stream(), AsTensor(send), to, AsTensor(recv), from);
  EXPECT_TRUE(recv == Pattern(from, 100 * from, 5));
  // One way only: 0 to 1; the empty sides name nobody.
  Bytes x = Pattern(0, 333, 6), y(333);
  if (me == 0) world.SendRecv(s.stream(), AsTensor(x), 1, Tensor(), -1);
  if (me == 1) world.SendRecv(s.stream(), Tensor(), -1, AsTensor(y), 0);
  EXPECT_TRUE(me != 1 || y == x);
}

void AllToAllTransposes(Communicator& world) {
  InlineStream s;
  const int n = world.size();
  for (int64_t each : kCounts) {
    Bytes x, expected, out(each * n);
    for (int r = 0; r < n; ++r) {
      const Bytes to = Pattern(world.rank(), each, r), from = Pattern(r, each, world.rank());
      x.insert(x.end(), to.begin(), to.end());
      expected.insert(expected.end(), from.begin(), from.end());
    }
    world.AllToAll(s.stream(), Tensor(DType::kU8, {n, each}, x.data()),
                   Tensor(DType::kU8, {n, each}, out.data()));
    EXPECT_TRUE(out == expected) << each;
  }
}

void BarrierWaitsForTheLast(Communicator& world) {
  if (world.size() == 1) return;
  std::unique_ptr<Communicator> side = world.Split([](int) { return 0; });
  InlineStream s;
  CpuStream queue(/*inline_work=*/false);
  const bool last = world.rank() == 0;
  if (!last) world.Barrier(Stream{&queue});
  for (int i = 0; i < 100 && !last; ++i) EXPECT_FALSE(queue.Drive());
  // Only now does rank 0 learn that all others are in and waiting, and comes.
  char in = 1;
  std::vector<char> all(world.size());
  side->AllGather(s.stream(), Tensor(DType::kU8, {1}, &in),
                  Tensor(DType::kU8, {world.size()}, all.data()));
  if (last) world.Barrier(Stream{&queue});
  queue.Wait();
  EXPECT_TRUE(world.Health().ok()) << world.Health();
}

// Verbs of one communicator keep the order of their calls, even from several streams.
void OrderHoldsOverStreams(Communicator& world) {
  const int n = world.size(), to = (world.rank() + 1) % n, from = (world.rank() + n - 1) % n;
  CpuStream first(/*inline_work=*/false), second(/*inline_work=*/false);
  Bytes a = Pattern(world.rank(), 1000, 1), b = Pattern(world.rank(), 1000, 2);
  Bytes from_a(1000), from_b(1000);
  world.SendRecv(Stream{&first}, AsTensor(a), to, AsTensor(from_a), from);
  world.SendRecv(Stream{&second}, AsTensor(b), to, AsTensor(from_b), from);
  if (n > 1) {
    for (int i = 0; i < 100; ++i) EXPECT_FALSE(second.Drive());  // its turn has not come
  }
  first.Wait();
  second.Wait();
  EXPECT_TRUE(from_a == Pattern(from, 1000, 1));
  EXPECT_TRUE(from_b == Pattern(from, 1000, 2));
}

// Ring and tensor axes of a mesh used in turns, the ring's messages in flight meanwhile.
void OverlappingAxes(Communicator& world) {
  const int n = world.size(), tensor_size = n % 2 == 0 ? 2 : 1, me = world.rank();
  std::unique_ptr<Communicator> tensor = world.Split([=](int r) { return r / tensor_size; });
  std::unique_ptr<Communicator> ring = world.Split([=](int r) { return r % tensor_size; });
  const int to = (ring->rank() + 1) % ring->size();
  const int from = (ring->rank() + ring->size() - 1) % ring->size();
  InlineStream compute;
  CpuStream communication(/*inline_work=*/false);
  const int64_t count = 20000;
  std::vector<float> travelling = Input<float>(me, count, DType::kF32), incoming(count);
  int holder = me;  // whose input travels
  for (int round = 0; round < 2 * ring->size(); ++round) {
    ring->SendRecv(Stream{&communication}, Tensor(DType::kF32, {count}, travelling.data()), to,
                   Tensor(DType::kF32, {count}, incoming.data()), from);
    std::vector<float> x = Input<float>(tensor->rank(), count, DType::kF32);
    tensor->AllReduce(compute.stream(), Partial(Tensor(DType::kF32, {count}, x.data())));
    EXPECT_TRUE(SameBits(x, RankOrderSum<float>(tensor_size, count, DType::kF32))) << round;
    communication.Wait();
    holder = (holder - tensor_size + n) % n;
    EXPECT_TRUE(SameBits(incoming, Input<float>(holder, count, DType::kF32))) << round;
    std::swap(travelling, incoming);
  }
}

void SplitByColorAndKey(Communicator& world) {
  InlineStream s;
  const int n = world.size();
  // Every third rank together, in reversed order.
  std::unique_ptr<Communicator> part =
      world.Split([](int r) { return r % 3; }, [](int r) { return -r; });
  std::vector<int> members;
  for (int r = n - 1; r >= 0; --r) {
    if (r % 3 == world.rank() % 3) members.push_back(r);
  }
  EXPECT_EQ(part->size(), int(members.size()));
  EXPECT_EQ(members[part->rank()], world.rank());
  std::vector<int> all(part->size());
  int me = world.rank();
  part->AllGather(s.stream(), Tensor(DType::kI32, {1}, &me),
                  Tensor(DType::kI32, {part->size()}, all.data()));
  EXPECT_EQ(all, members);
  EXPECT_TRUE(part->Health().ok() && world.Health().ok());
}

// A mix of verbs of known sizes; on the counting communicator the memory is not touched.
void UseEveryVerb(Communicator& ranks, Stream s, std::vector<double>& memory) {
  const int64_t n = ranks.size();
  const auto f64 = [&](int64_t count) { return Tensor(DType::kF64, {count}, memory.data()); };
  const auto place = [&](int64_t count) {
    return Tensor(DType::kF64, {count}, memory.data() + n * 5000);
  };
  const int to = int((ranks.rank() + 1) % n), from = int((ranks.rank() + n - 1) % n);
  ranks.AllReduce(s, Partial(f64(3)));
  ranks.AllReduce(s, Partial(f64(5000)));
  ranks.ReduceScatter(s, Partial(f64(5000 * n)), place(5000));
  ranks.AllGather(s, place(70), f64(70 * n));
  ranks.Broadcast(s, f64(11), int(n - 1));
  ranks.SendRecv(s, f64(13), to, place(13), from);
  ranks.AllToAll(s, Tensor(DType::kF64, {n, 17}, memory.data()),
                 Tensor(DType::kF64, {n, 17}, memory.data() + n * 5000));
  ranks.Barrier(s);
  ranks.AllReduce(s, Partial(f64(0)));  // no call
}

void CountersFollowTheFormulas(Communicator& world) {
  InlineStream s;
  std::unique_ptr<Communicator> fresh = world.Split([](int) { return 0; });
  const int64_t n = fresh->size();
  std::vector<double> memory(n * 5000 + 5000 + n * 17);
  UseEveryVerb(*fresh, s.stream(), memory);
  const int64_t moved = n == 1 ? 0
                               : 2 * (n - 1) * 24 / n + 2 * (n - 1) * 40000 / n + (n - 1) * 40000 +
                                     (n - 1) * 560 + (fresh->rank() == n - 1 ? 88 : 0) + 104 +
                                     (n - 1) * 136;
  EXPECT_EQ(fresh->counters().bytes_sent, moved);
  EXPECT_EQ(fresh->counters().calls, n == 1 ? 0 : 8);

  std::unique_ptr<Communicator> counted =
      NewCountingWorld(world.rank(), world.size())->Split([](int) { return 0; });
  UseEveryVerb(*counted, Stream{}, memory);
  EXPECT_EQ(counted->counters().bytes_sent, moved);
  EXPECT_EQ(counted->counters().calls, fresh->counters().calls);
}

void AllRanksHoldTheSameBits(Communicator& world) {
  InlineStream s;
  const int64_t count = 30011;
  std::vector<float> x = Input<float>(world.rank(), count, DType::kF32);
  const std::vector<float> again = x;
  world.AllReduce(s.stream(), Partial(Tensor(DType::kF32, {count}, x.data())));
  std::vector<float> all(count * world.size()), second = again;
  world.AllGather(s.stream(), Tensor(DType::kF32, {count}, x.data()),
                  Tensor(DType::kF32, {count * world.size()}, all.data()));
  for (int r = 0; r < world.size(); ++r) {
    EXPECT_EQ(std::memcmp(all.data() + r * count, x.data(), count * sizeof(float)), 0) << r;
  }
  world.AllReduce(s.stream(), Partial(Tensor(DType::kF32, {count}, second.data())));
  EXPECT_TRUE(SameBits(x, second)) << "run to run";
}

}  // namespace

const std::vector<ConformanceCase>& ConformanceCases() {
  static const auto* cases = new std::vector<ConformanceCase>{
      {"AllReduceSumsInRankOrder", AllReduceSumsInRankOrder},
      {"AllReduceMaximum", AllReduceMaximum},
      {"ReduceScatterSumsInRankOrder", ReduceScatterSumsInRankOrder},
      {"AllGatherInRankOrder", AllGatherInRankOrder},
      {"BroadcastFromEveryRoot", BroadcastFromEveryRoot},
      {"SendRecvAroundTheRing", SendRecvAroundTheRing},
      {"SendRecvOfUnequalSides", SendRecvOfUnequalSides},
      {"AllToAllTransposes", AllToAllTransposes},
      {"BarrierWaitsForTheLast", BarrierWaitsForTheLast},
      {"OrderHoldsOverStreams", OrderHoldsOverStreams},
      {"OverlappingAxes", OverlappingAxes},
      {"SplitByColorAndKey", SplitByColorAndKey},
      {"CountersFollowTheFormulas", CountersFollowTheFormulas},
      {"AllRanksHoldTheSameBits", AllRanksHoldTheSameBits},
  };
  return *cases;
}

void ExpectHealthIsSticky(Communicator& world) {
  InlineStream s;
  EXPECT_TRUE(world.Health().ok()) << world.Health();
  // Rank 0 sends 8 bytes where rank 1 expects 4; the others do nothing.
  Bytes x(8);
  if (world.rank() == 0) world.SendRecv(s.stream(), AsTensor(x), 1, Tensor(), -1);
  if (world.rank() == 1) {
    world.SendRecv(s.stream(), Tensor(), -1, AsTensor(x).Rows(0, 4), 0);
    const absl::Status first = world.Health();
    EXPECT_FALSE(first.ok());
    EXPECT_NE(first.message().find("rank 0"), absl::string_view::npos) << first;
    // Later verbs return without doing anything and do not replace the error.
    Bytes y = Pattern(1, 100, 1);
    world.AllReduce(s.stream(), Partial(Tensor(DType::kI32, {25}, y.data())));
    EXPECT_TRUE(y == Pattern(1, 100, 1));
    EXPECT_EQ(world.Health(), first);
  }
}

}  // namespace toroid
