// A row is cut into kParts parts of consecutive ids. Launches, each of which knows what the ones
// before it found:
//   statistics   largest, second, where; sum e^(l - largest of the part)          all rows
//   histogram    w and ids, counted in bins of z                                  rows that cut
//   gather       the ids of the bin in which top_k ends; then of that of top_p    rows that cut
//   masses       the exact end of what is left; w of each part                    rows that draw
//   finish       the part, then the id whose interval holds u                     all rows
// Both cutoffs leave a prefix of the ids in (falling z, ascending id), so the last id that stays
// (Cut) tells of every id whether it stays.
#include "kernels/device.cuh"
#include "kernels/philox.h"
#include "kernels/sample.h"

namespace toroid {

namespace {

constexpr int kParts = 64, kThreads = 256, kWarps = kThreads / kWarp;
// Of z, 32 to a unit; ids in the last weigh less than any w can, and there nothing needs cutting.
constexpr int kBins = 1024;
constexpr int kNoId = 0x7fffffff;
using Mass = unsigned long long;  // a sum of w

struct PartStatistics {
  float largest, second;
  int32_t at, broken;  // kNoId: none
  double sum;
};
// Ids stay down to (z, id).
struct Cut {
  double z = -INFINITY;
  int32_t id = kNoId;
  __device__ bool Keeps(double other, int64_t i) const {
    return other > z || (other == z && i <= id);
  }
};
// What a row works in; its lists of ids lie behind those of all rows.
struct RowWork {
  PartStatistics statistics[kParts];
  Mass masses[kParts];  // w of what is left of each part
  Mass bin_mass[kBins];
  unsigned bin_count[kBins];
  unsigned listed[2];  // ids of the bin in which top_k ends, in which top_p ends
  Cut top_k;           // what it left
  Mass mass;           // the sum of that
  Cut cut;             // what top_p left of it
};

struct Args {
  const float* logits;
  int64_t stride, vocab, part;  // part: ids of one
  int shift;                    // w are multiples of 2^-shift
  const SampleRow* params;
  SampledRow* out;
  RowWork* work;
  int32_t* lists;  // [rows, 2, vocab]
};

struct Row {
  const float* logits;
  SampleRow params;
  RowWork& work;
  int32_t* lists;
  double largest;
  __device__ double Z(int64_t id) const {
    return (double(logits[id]) - largest) / params.temperature;
  }
};

__device__ inline int BinOf(double z) { return z > -32 ? int(z * -32) : kBins - 1; }
__device__ inline Mass MassOf(double weight, int shift) {
  return Mass(__double2ull_rn(ldexp(weight, shift)));
}

__device__ inline int32_t WarpMin(int32_t x) { return __reduce_min_sync(kAllLanes, x); }
struct Lower {
  __device__ int32_t operator()(int32_t a, int32_t b) const { return min(a, b); }
};

// The block's row, with the largest of its logits. False: nothing is to be drawn.
__device__ inline bool Begins(const Args& a, int64_t row) {
  if (a.params[row].temperature == 0) return false;
  const RowWork& work = a.work[row];
  bool broken = false;
  if (threadIdx.x < kParts) broken = work.statistics[threadIdx.x].broken != kNoId;
  return !__syncthreads_or(broken);
}
__device__ inline Row RowOf(const Args& a, int64_t row) {
  __shared__ float shared[kWarps];
  RowWork& work = a.work[row];
  const float own = threadIdx.x < kParts ? work.statistics[threadIdx.x].largest : -INFINITY;
  return {a.logits + row * a.stride, a.params[row], work, a.lists + row * 2 * a.vocab,
          double(BlockMax<kThreads>(own, shared))};
}
__device__ inline bool Cuts(const SampleRow& params, int64_t vocab) {
  return WorkOf(params, vocab) == SampleWork::kCut;
}
__device__ inline bool CutsByCount(const SampleRow& params, int64_t vocab) {
  return params.top_k > 0 && params.top_k < vocab;
}

// The ids of this block's part.
struct Span {
  int64_t begin, end;
};
__device__ inline Span PartOf(const Args& a, int64_t part) {
  return {min(part * a.part, a.vocab), min((part + 1) * a.part, a.vocab)};
}

// --- statistics ----------------------------------------------------------------------------------

// The two largest, and the lowest id of the largest.
struct Best {
  float largest, second;
  int32_t at;
  __device__ void Take(const Best& other) {
    const bool theirs = other.largest > largest || (other.largest == largest && other.at < at);
    second = theirs ? fmaxf(largest, other.second) : fmaxf(second, other.largest);
    if (theirs) largest = other.largest, at = other.at;
  }
};

__device__ inline Best FromLane(const Best& best, int lane) {
  return {__shfl_xor_sync(kAllLanes, best.largest, lane),
          __shfl_xor_sync(kAllLanes, best.second, lane), __shfl_xor_sync(kAllLanes, best.at, lane)};
}

__global__ void __launch_bounds__(kThreads) StatisticsKernel(Args a) {
  __shared__ Best shared[kWarps];
  __shared__ int32_t shared_ids[kWarps];
  __shared__ double shared_sums[kWarps];
  const int64_t row = blockIdx.y;
  RowWork& work = a.work[row];
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < kBins; i += kParts * kThreads) {
    work.bin_mass[i] = 0, work.bin_count[i] = 0;
  }
  if (blockIdx.x == 0 && threadIdx.x < 2) work.listed[threadIdx.x] = 0;
  const float* logits = a.logits + row * a.stride;
  const Span ids = PartOf(a, blockIdx.x);
  Best best{-INFINITY, -INFINITY, kNoId};
  int32_t broken = kNoId;
  for (int64_t i = ids.begin + threadIdx.x; i < ids.end; i += kThreads) {
    const float l = logits[i];
    if (!isfinite(l)) {
      broken = min(broken, int32_t(i));
    } else {
      best.Take({l, -INFINITY, int32_t(i)});
    }
  }
  for (int lane = kWarp / 2; lane > 0; lane /= 2) {
    best.Take(FromLane(best, lane));
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = best;
  __syncthreads();  // waits for every warp's best
  for (int i = 0; i < kWarps; ++i) {
    if (i != int(threadIdx.x) / kWarp) best.Take(shared[i]);
  }
  broken = BlockCombine<kThreads>(WarpMin(broken), shared_ids, Lower());
  double sum = 0;
  for (int64_t i = ids.begin + threadIdx.x; i < ids.end; i += kThreads) {
    sum += exp(double(logits[i]) - double(best.largest));
  }
  sum = BlockSum<kThreads>(sum, shared_sums);
  if (threadIdx.x == 0) {
    work.statistics[blockIdx.x] = {best.largest, best.second, best.at, broken, sum};
  }
}

// --- cutting -------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads) HistogramKernel(Args a) {
  const int64_t number = blockIdx.y;
  if (!Cuts(a.params[number], a.vocab) || !Begins(a, number)) return;
  const Row row = RowOf(a, number);
  const Span ids = PartOf(a, blockIdx.x);
  for (int64_t i = ids.begin + threadIdx.x; i < ids.end; i += kThreads) {
    const double z = row.Z(i);
    const int bin = BinOf(z);
    if (bin == kBins - 1) continue;
    atomicAdd(&row.work.bin_count[bin], 1u);
    atomicAdd(&row.work.bin_mass[bin], MassOf(exp(z), a.shift));
  }
}

// What a cutoff leaves: ids while those before them are fewer than `count`, or weigh less than
// `mass`.
struct Limit {
  bool by_count;
  double most;
  __device__ bool Reached(unsigned count, Mass mass) const {
    return by_count ? double(count) >= most : double(mass) >= most;
  }
};

// Of some boxes of ids, one after the other, each with a count and a mass: the first behind which
// the limit is reached, or `size` - 1, and what lies before it. All threads call, and hold the same
// answer.
struct Found {
  int box;
  unsigned count;
  Mass mass;
};
template <int kBoxes>
__device__ Found FindBox(const unsigned* counts, const Mass* masses, Found before,
                         const Limit& limit) {
  constexpr int kEach = kBoxes / kThreads;
  static_assert(kBoxes % kThreads == 0);
  __shared__ unsigned warp_counts[kWarps];
  __shared__ Mass warp_masses[kWarps];
  __shared__ Found found;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  unsigned own_count = 0;
  Mass own_mass = 0;
  for (int i = 0; i < kEach; ++i) {
    own_count += counts[threadIdx.x * kEach + i], own_mass += masses[threadIdx.x * kEach + i];
  }
  unsigned count = own_count;  // up to and with this thread's boxes, of the warp
  Mass mass = own_mass;
  for (int step = 1; step < kWarp; step *= 2) {
    const unsigned c = __shfl_up_sync(kAllLanes, count, step);
    const Mass m = __shfl_up_sync(kAllLanes, mass, step);
    if (lane >= step) count += c, mass += m;
  }
  if (lane == kWarp - 1) warp_counts[warp] = count, warp_masses[warp] = mass;
  if (threadIdx.x == 0) found.box = -1;
  __syncthreads();  // waits for every warp's sums
  count += before.count - own_count, mass += before.mass - own_mass;
  for (int i = 0; i < warp; ++i) count += warp_counts[i], mass += warp_masses[i];
  // Here both are what lies before this thread's boxes; one thread sees the limit reached.
  const bool starts = !limit.Reached(count, mass) || threadIdx.x == 0;
  for (int i = 0; i < kEach && starts; ++i) {
    const int box = threadIdx.x * kEach + i;
    const unsigned next_count = count + counts[box];
    const Mass next_mass = mass + masses[box];
    if (limit.Reached(next_count, next_mass)) {
      found = {box, count, mass};
      break;
    }
    if (box == kBoxes - 1) found = {box, count, mass};
    count = next_count, mass = next_mass;
  }
  __syncthreads();  // waits for what was found
  const Found answer = found;
  __syncthreads();  // waits for every reader
  return answer;
}

// The last of `size` listed ids that the limit leaves, and the sum of all up to it, by radix
// selection: digits of eight bits of -z, whose bits as a number ascend as it does, then of the id.
__device__ inline uint64_t Key(const Row& row, int32_t id, bool by_id) {
  return by_id ? uint64_t(uint32_t(id)) : uint64_t(__double_as_longlong(fabs(row.Z(id))));
}
__device__ Cut LastOf(const Row& row, const int32_t* list, unsigned size, const Limit& limit,
                      Found before, int shift_of_mass, Mass* mass_left) {
  __shared__ unsigned counts[kThreads];
  __shared__ Mass masses[kThreads];
  __shared__ int32_t last;
  uint64_t chosen_z = 0, prefix = 0;
  for (int digit = 0; digit < 12; ++digit) {
    const bool by_id = digit >= 8;
    const int shift = by_id ? 8 * (11 - digit) : 8 * (7 - digit);
    if (digit == 8) chosen_z = prefix, prefix = 0;
    // Calls body(id) for the listed ids that have the digits chosen so far.
    const auto for_left = [&](auto body) {
      for (unsigned i = threadIdx.x; i < size; i += kThreads) {
        const int32_t id = list[i];
        if (by_id && Key(row, id, false) != chosen_z) continue;
        const uint64_t key = Key(row, id, by_id);
        if (digit % 8 != 0 && key >> (shift + 8) != prefix) continue;
        body(id, int(key >> shift) & 255);
      }
    };
    counts[threadIdx.x] = 0, masses[threadIdx.x] = 0;
    __syncthreads();  // waits for the empty boxes
    for_left([&](int32_t id, int box) {
      atomicAdd(&counts[box], 1u);
      atomicAdd(&masses[box], MassOf(exp(row.Z(id)), shift_of_mass));
    });
    __syncthreads();  // waits for all that was counted
    before = FindBox<kThreads>(counts, masses, before, limit);
    if (counts[before.box] == 1) {
      for_left([&](int32_t id, int box) {
        if (box == before.box) last = id;
      });
      *mass_left = before.mass + masses[before.box];
      __syncthreads();  // waits for the id
      break;
    }
    prefix = prefix << 8 | unsigned(before.box);
    __syncthreads();  // waits for every reader of the boxes
  }
  const Cut cut{row.Z(last), last};
  __syncthreads();  // waits for every reader of the id
  return cut;
}

__device__ inline Mass TotalMass(const RowWork& work) {
  __shared__ Mass shared[kWarps];
  Mass own = 0;
  for (int i = threadIdx.x; i < kBins; i += kThreads) own += work.bin_mass[i];
  return BlockSum<kThreads>(own, shared);
}

// What top_k leaves, and the sum of it.
__device__ Cut CutByCount(const Args& a, const Row& row, Mass* mass) {
  *mass = TotalMass(row.work);
  if (!CutsByCount(row.params, a.vocab)) return {};
  const Limit limit{true, double(row.params.top_k)};
  const Found bin = FindBox<kBins>(row.work.bin_count, row.work.bin_mass, {}, limit);
  if (bin.box == kBins - 1) return {};
  return LastOf(row, row.lists, row.work.listed[0], limit, bin, a.shift, mass);
}

// Appends the part's ids of one bin to a list, in any order.
__device__ void List(const Args& a, const Row& row, int bin, int list) {
  if (bin == kBins - 1) return;
  const Span ids = PartOf(a, blockIdx.x);
  for (int64_t i = ids.begin + threadIdx.x; i < ids.end; i += kThreads) {
    if (BinOf(row.Z(i)) != bin) continue;
    row.lists[list * a.vocab + atomicAdd(&row.work.listed[list], 1u)] = int32_t(i);
  }
}

__global__ void __launch_bounds__(kThreads) GatherCountKernel(Args a) {
  const int64_t number = blockIdx.y;
  if (!CutsByCount(a.params[number], a.vocab) || !Begins(a, number)) return;
  const Row row = RowOf(a, number);
  const Limit limit{true, double(row.params.top_k)};
  List(a, row, FindBox<kBins>(row.work.bin_count, row.work.bin_mass, {}, limit).box, 0);
}

__global__ void __launch_bounds__(kThreads) GatherMassKernel(Args a) {
  const int64_t number = blockIdx.y;
  if (!Cuts(a.params[number], a.vocab) || !Begins(a, number)) return;
  const Row row = RowOf(a, number);
  Mass mass = 0;
  const Cut top_k = CutByCount(a, row, &mass);
  if (blockIdx.x == 0 && threadIdx.x == 0) row.work.top_k = top_k, row.work.mass = mass;
  if (row.params.top_p >= 1) return;
  const Limit limit{false, row.params.top_p * double(mass)};
  List(a, row, FindBox<kBins>(row.work.bin_count, row.work.bin_mass, {}, limit).box, 1);
}

// What top_k and top_p leave.
__device__ Cut CutOf(const Args& a, const Row& row) {
  if (!Cuts(row.params, a.vocab)) return {};
  const Cut top_k = row.work.top_k;
  if (row.params.top_p >= 1) return top_k;
  const Limit limit{false, row.params.top_p * double(row.work.mass)};
  const Found bin = FindBox<kBins>(row.work.bin_count, row.work.bin_mass, {}, limit);
  if (bin.box == kBins - 1) return top_k;
  Mass ignored;
  const Cut top_p =
      LastOf(row, row.lists + a.vocab, row.work.listed[1], limit, bin, a.shift, &ignored);
  // Rounding may lead past what top_k left.
  return top_k.Keeps(top_p.z, top_p.id) ? top_p : top_k;
}

// --- drawing -------------------------------------------------------------------------------------

// The w of an id, 0 where it does not stay.
__device__ inline Mass MassOfId(const Row& row, const Cut& cut, int64_t id, int shift) {
  const double z = row.Z(id), weight = exp(z);
  return cut.Keeps(z, id) && weight >= row.params.min_p ? MassOf(weight, shift) : 0;
}

__global__ void __launch_bounds__(kThreads) MassesKernel(Args a) {
  __shared__ Mass shared[kWarps];
  const int64_t number = blockIdx.y;
  if (!Begins(a, number)) return;
  const Row row = RowOf(a, number);
  const Cut cut = CutOf(a, row);
  const Span ids = PartOf(a, blockIdx.x);
  Mass mass = 0;
  for (int64_t i = ids.begin + threadIdx.x; i < ids.end; i += kThreads) {
    mass += MassOfId(row, cut, i, a.shift);
  }
  mass = BlockSum<kThreads>(mass, shared);
  if (threadIdx.x == 0) row.work.masses[blockIdx.x] = mass;
  if (blockIdx.x == 0 && threadIdx.x == 0) row.work.cut = cut;
}

// The id whose interval holds u: the first up to and with which the masses are > u total.
__device__ void Draw(const Args& a, const Row& row, double log_z, SampledRow* out) {
  __shared__ Mass parts[kParts];
  __shared__ Mass warp_masses[kWarps];
  if (threadIdx.x < kParts) parts[threadIdx.x] = row.work.masses[threadIdx.x];
  __syncthreads();  // waits for all parts
  Mass total = 0;
  for (int i = 0; i < kParts; ++i) total += parts[i];
  const SampleRow& params = row.params;
  const double u = UniformDouble(Philox(params.seed, uint64_t(params.position), params.sequence));
  const Mass target = min(Mass(u * double(total)), total - 1);
  int part = 0;
  Mass before = 0;  // of the ids before this part; below, before this thread's
  while (before + parts[part] <= target) before += parts[part++];

  const Span all = PartOf(a, part);
  const int64_t each = CeilDiv(all.end - all.begin, kThreads);
  const Span ids{min(all.begin + threadIdx.x * each, all.end),
                 min(all.begin + (threadIdx.x + 1) * each, all.end)};
  const Cut cut = row.work.cut;
  Mass own = 0;
  for (int64_t i = ids.begin; i < ids.end; ++i) own += MassOfId(row, cut, i, a.shift);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Mass sum = own;  // of the warp up to and with this thread
  for (int step = 1; step < kWarp; step *= 2) {
    const Mass other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == kWarp - 1) warp_masses[warp] = sum;
  __syncthreads();  // waits for every warp's sum
  before += sum - own;
  for (int i = 0; i < warp; ++i) before += warp_masses[i];
  if (before > target || before + own <= target) return;  // another thread's
  int64_t id = ids.begin;
  Mass mass = MassOfId(row, cut, id, a.shift);
  for (; before + mass <= target; mass = MassOfId(row, cut, id, a.shift)) before += mass, ++id;
  const double below = before > 0 ? u - double(before) / double(total) : INFINITY;
  const double above = before + mass < total ? double(before + mass) / double(total) - u : INFINITY;
  *out = {id, double(row.logits[id]) - log_z, fmin(below, above)};
}

__global__ void __launch_bounds__(kThreads) FinishKernel(Args a) {
  __shared__ Best shared_best;
  __shared__ double shared_log_z;
  __shared__ int32_t shared_broken;
  const int64_t number = blockIdx.x;
  const RowWork& work = a.work[number];
  if (threadIdx.x < kWarp) {
    static_assert(kParts == 2 * kWarp);
    const PartStatistics one = work.statistics[threadIdx.x];
    const PartStatistics two = work.statistics[threadIdx.x + kWarp];
    Best best{one.largest, one.second, one.at};
    best.Take({two.largest, two.second, two.at});
    for (int lane = kWarp / 2; lane > 0; lane /= 2) best.Take(FromLane(best, lane));
    const auto weighed = [&](const PartStatistics& part) {
      return part.sum * exp(double(part.largest) - double(best.largest));
    };
    const double sum = WarpSum(weighed(one) + weighed(two));
    const int32_t broken = WarpMin(min(one.broken, two.broken));
    if (threadIdx.x == 0) {
      shared_best = best, shared_log_z = double(best.largest) + log(sum), shared_broken = broken;
    }
  }
  __syncthreads();  // waits for what the warp found
  const float* logits = a.logits + number * a.stride;
  SampledRow* out = a.out + number;
  const Best best = shared_best;
  if (shared_broken != kNoId) {
    if (threadIdx.x == 0) *out = {-1 - int64_t{shared_broken}, double(logits[shared_broken]), 0};
  } else if (a.params[number].temperature == 0) {
    if (threadIdx.x == 0) {
      *out = {best.at, double(best.largest) - shared_log_z,
              double(best.largest) - double(best.second)};
    }
  } else {
    Draw(a, RowOf(a, number), shared_log_z, out);
  }
}

int64_t BytesOfRow(int64_t vocab) { return int64_t{sizeof(RowWork)} + 8 * CeilDiv(vocab, 8) * 8; }

}  // namespace

int64_t SampleWorkspaceBytes(int64_t vocab) { return BytesOfRow(vocab); }

void Sample(CudaStream s, const float* logits, int64_t stride, int64_t rows, int64_t vocab,
            SampleWork most, const SampleRow* params, SampledRow* out, void* workspace,
            int64_t workspace_bytes) {
  int log_vocab = 0;
  while (int64_t{1} << log_vocab < vocab) ++log_vocab;
  Args a{};
  a.stride = stride, a.vocab = vocab, a.part = CeilDiv(vocab, kParts), a.shift = 62 - log_vocab;
  a.work = static_cast<RowWork*>(workspace);
  const int64_t at_once = workspace_bytes / BytesOfRow(vocab);
  for (int64_t row = 0; row < rows; row += at_once) {
    const int64_t count = rows - row < at_once ? rows - row : at_once;
    a.logits = logits + row * stride, a.params = params + row, a.out = out + row;
    a.lists = reinterpret_cast<int32_t*>(a.work + count);
    const dim3 grid(kParts, unsigned(count));
    StatisticsKernel<<<grid, kThreads, 0, s>>>(a);
    if (most == SampleWork::kCut) {
      HistogramKernel<<<grid, kThreads, 0, s>>>(a);
      GatherCountKernel<<<grid, kThreads, 0, s>>>(a);
      GatherMassKernel<<<grid, kThreads, 0, s>>>(a);
    }
    if (most != SampleWork::kGreedy) MassesKernel<<<grid, kThreads, 0, s>>>(a);
    FinishKernel<<<unsigned(count), kThreads, 0, s>>>(a);
  }
}

}  // namespace toroid
