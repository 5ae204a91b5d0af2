// The attention of one block, written once for vectors of L lanes.
//
// Everything is kept transposed. A strip is kWidth = 3 L (or, for decode, L) rows of the block side
// by side in vector lanes: queries as q[d][row], scores as s[key][row], outputs as o[d][row]. Then
//   s[key][row] = sum_d k[key][d] q[d][row]       broadcasts k as it lies, reads q in lanes
//   o[d][row]  += sum_key v[key][d] p[key][row]   broadcasts v as it lies, reads p in lanes
// so K and V need no transposition, and maximum, sum and exponential of the softmax run along the
// lanes with no horizontal step. Both products hold 4 x 3 (8 x 1) accumulators in registers.
//
// A block of 64 keys is copied (widened, gathered from pages) into scratch once and used by all
// strips, that is by all query heads of its KV head.
#pragma once

#include "kernels/attention_narrow.h"
#include "kernels/attention_score.h"
#include "kernels/attention_visible.h"
#include "kernels/vector.h"

namespace toroid {
namespace {

template <typename T, int L, int C, int B>
class AttentionStrips {
 public:
  static constexpr int64_t kWidth = L * C;
  using N = Lanes<T, L>;
  using V = typename N::V;
  using I = typename N::I;
  using Int = typename N::Int;

  // Strips of a block at most; as many as fit the scratch.
  static int64_t MaxStrips(int64_t head_dim) {
    const int64_t dims = Padded(head_dim);
    const int64_t left = ThreadPool::kScratchBytes - Bytes(head_dim, 0);
    const int64_t fit = left / ((2 * dims * kWidth + 2 * kWidth) * int64_t{sizeof(T)} +
                                2 * kWidth * int64_t{sizeof(Int)});
    return fit < 4 ? fit : 4;
  }

  AttentionStrips(const AttentionArgs<T>& args, const AttentionBlock<T>& block, void* scratch)
      : a_(args), b_(block), dim_(args.head_dim), dims_(Padded(args.head_dim)) {
    rows_ = block.token_count * block.head_count;
    strips_ = (rows_ + kWidth - 1) / kWidth;
    T* next = static_cast<T*>(scratch);
    k_ = Take(next, kKeyBlock * dims_);
    v_ = Take(next, kKeyBlock * dims_);
    s_ = Take(next, kKeyBlock * kWidth);
    q_ = Take(next, strips_ * dims_ * kWidth);
    o_ = Take(next, strips_ * dims_ * kWidth);
    max_ = Take(next, strips_ * kWidth);
    sum_ = Take(next, strips_ * kWidth);
    low_ = reinterpret_cast<Int*>(next);
    high_ = low_ + strips_ * kWidth;
  }

  void Run() {
    int64_t low = b_.key_end, high = b_.key_begin;  // keys that any row sees
    FindRanges(&low, &high);
    if (low >= high) {
      if (b_.fresh) Store();
      return;
    }
    low = b_.key_begin + (low - b_.key_begin) / kKeyBlock * kKeyBlock;
    LoadQueries();
    for (int64_t begin = low; begin < high; begin += kKeyBlock) {
      const int64_t count = high - begin < kKeyBlock ? high - begin : kKeyBlock;
      CopyKeys(begin, count);
      for (int64_t strip = 0; strip < strips_; ++strip) AttendStrip(strip, begin, count);
    }
    Store();
  }

 private:
  static int64_t Padded(int64_t dim) { return (dim + B - 1) / B * B; }
  static int64_t Bytes(int64_t head_dim, int64_t) {
    return (2 * kKeyBlock * Padded(head_dim) + kKeyBlock * kWidth) * int64_t{sizeof(T)};
  }
  static T* Take(T*& next, int64_t count) {
    T* taken = next;
    next += count;
    return taken;
  }

  // The visible keys [low_, high_) of each row; of a padding row none.
  void FindRanges(int64_t* low, int64_t* high) {
    for (int64_t row = 0; row < strips_ * kWidth; ++row) {
      if (row >= rows_) {
        low_[row] = high_[row] = Int(b_.key_begin);
        continue;
      }
      if (row % b_.head_count != 0) {
        low_[row] = low_[row - 1], high_[row] = high_[row - 1];
        continue;
      }
      const KeyRange seen = VisibleKeys(a_, b_, row / b_.head_count);
      low_[row] = Int(seen.begin), high_[row] = Int(seen.end);
      if (seen.begin < seen.end) {
        if (seen.begin < *low) *low = seen.begin;
        if (seen.end > *high) *high = seen.end;
      }
    }
  }

  void LoadQueries() {
    const T scale = T(a_.scale);
    for (int64_t row = 0; row < strips_ * kWidth; ++row) {
      const int64_t strip = row / kWidth, lane = row % kWidth;
      T* q = q_ + strip * dims_ * kWidth + lane;
      T* o = o_ + strip * dims_ * kWidth + lane;
      T lse = -__builtin_inf();
      const T* from = nullptr;
      const T* carry = nullptr;
      if (row < rows_) {
        const int64_t token = row / b_.head_count, head = row % b_.head_count;
        from = a_.q + (b_.token_begin + token) * a_.q_stride + (b_.head_begin + head) * dim_;
        if (!b_.fresh) lse = b_.lse[token * b_.lse_stride + head];
        if (lse != T(-__builtin_inf())) carry = b_.o + token * b_.o_stride + head * dim_;
      }
      for (int64_t d = 0; d < dim_; ++d) q[d * kWidth] = from ? from[d] * scale : T(0);
      for (int64_t d = 0; d < dims_; ++d) o[d * kWidth] = carry && d < dim_ ? carry[d] : T(0);
      max_[row] = lse;
      sum_[row] = carry ? T(1) : T(0);
    }
  }

  // Keys [begin, +count) of this block's KV head, widened, rows padded to dims_; the key rows up to
  // a multiple of B are zeroed: their scores are computed and thrown away.
  void CopyKeys(int64_t begin, int64_t count) {
    const int64_t head = int64_t{a_.kv_index[b_.head_begin]} * dim_;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t row = PhysicalRow(a_, begin + j);
      WidenRow(a_.k, a_.kv_type, row * a_.k_stride + head, dim_, dims_, k_ + j * dims_);
      WidenRow(a_.v, a_.kv_type, row * a_.v_stride + head, dim_, dims_, v_ + j * dims_);
    }
    for (int64_t j = count; j % B != 0; ++j) {
      for (int64_t d = 0; d < dims_; ++d) k_[j * dims_ + d] = 0;
    }
  }

  void AttendStrip(int64_t strip, int64_t begin, int64_t count) {
    const Int* low = low_ + strip * kWidth;
    const Int* high = high_ + strip * kWidth;
    // Rows are in order of position, so the first and the last rows bound what the strip sees.
    const int64_t last = (strip + 1) * kWidth < rows_ ? kWidth - 1 : rows_ - 1 - strip * kWidth;
    if (low[0] >= begin + count || high[last] <= begin) return;
    if (high[last] < begin + count) count = high[last] - begin;
    const bool whole = low[last] <= begin && high[0] >= begin + count;
    const T* q = q_ + strip * dims_ * kWidth;
    for (int64_t j = 0; j < count; j += B) {
      ScoreKeys<T, L, C, B>(k_ + j * dims_, dims_, dim_, q, s_ + j * kWidth);
    }
    V rescale[C];
    if (whole) {
      Softmax<false>(strip, begin, count, rescale);
    } else {
      Softmax<true>(strip, begin, count, rescale);
    }
    T* o = o_ + strip * dims_ * kWidth;
    for (int64_t d = 0; d < dims_; d += B) Accumulate(v_ + d, count, rescale, o + d * kWidth);
  }

  // o[d][row] = o[d][row] rescale[row] + sum_j v[j][d] p[j][row] for B dims.
  void Accumulate(const T* v, int64_t count, const V* rescale, T* o) const {
    V sum[B][C];
    for (int b = 0; b < B; ++b) {
      for (int c = 0; c < C; ++c) sum[b][c] = N::Load(o + b * kWidth + c * L) * rescale[c];
    }
    const int64_t stride = dims_;
    const T* p = s_;
    for (int64_t j = 0; j < count; ++j) {
      V x[C];
      for (int c = 0; c < C; ++c) x[c] = N::LoadOnce(p + j * kWidth + c * L);
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) {
        const V y = N::Set(v[j * stride + b]);
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) sum[b][c] += y * x[c];
      }
    }
    for (int b = 0; b < B; ++b) {
      for (int c = 0; c < C; ++c) N::Store(o + b * kWidth + c * L, sum[b][c]);
    }
  }

  // s becomes p = e^(s - max) with the maximum so far; rescale = e^(old max - new max) is what the
  // sums so far are worth. A row that has seen no key has max = -inf: then 0 stands for it, so that
  // -inf - -inf is never formed.
  template <bool kMasked>
  void Softmax(int64_t strip, int64_t begin, int64_t count, V* rescale) {
    for (int c = 0; c < C; ++c) {
      T* s = s_ + c * L;
      const int64_t lane = strip * kWidth + c * L;
      const I low = *reinterpret_cast<const I*>(low_ + lane);
      const I high = *reinterpret_cast<const I*>(high_ + lane);
      const V minus_inf = N::Set(-__builtin_inf());
      const V old_max = N::Load(max_ + lane);
      V max = old_max;
      for (int64_t j = 0; j < count; ++j) {
        V x = N::Load(s + j * kWidth);
        if (kMasked) {
          const I key = N::SetInt(Int(begin + j));
          x = ((key >= low) & (key < high)) ? x : minus_inf;
          N::Store(s + j * kWidth, x);
        }
        max = N::Max(x, max);
      }
      const V safe = max == minus_inf ? N::Set(0) : max;
      rescale[c] = Exp<L>(old_max - safe, T(0));
      V sum = N::Load(sum_ + lane) * rescale[c];
      for (int64_t j = 0; j < count; ++j) {
        const V p = Exp<L>(N::Load(s + j * kWidth) - safe, T(0));
        N::Store(s + j * kWidth, p);
        sum += p;
      }
      N::Store(max_ + lane, max);
      N::Store(sum_ + lane, sum);
    }
  }

  // o / sum and lse = max + ln sum, for rows that saw a key here.
  void Store() const {
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t strip = row / kWidth, lane = row % kWidth;
      const int64_t token = row / b_.head_count, head = row % b_.head_count;
      T* o = b_.o + token * b_.o_stride + head * dim_;
      T* lse = b_.lse + token * b_.lse_stride + head;
      if (low_[row] >= high_[row]) {
        if (!b_.fresh) continue;
        for (int64_t d = 0; d < dim_; ++d) o[d] = 0;
        *lse = -__builtin_inf();
        continue;
      }
      const T* from = o_ + strip * dims_ * kWidth + lane;
      const T inverse = T(1) / sum_[row];
      for (int64_t d = 0; d < dim_; ++d) o[d] = from[d * kWidth] * inverse;
      *lse = max_[row] + T(__builtin_log(double(sum_[row])));
    }
  }

  const AttentionArgs<T>& a_;
  const AttentionBlock<T>& b_;
  const int64_t dim_, dims_;
  int64_t rows_, strips_;
  T *k_, *v_, *s_, *q_, *o_, *max_, *sum_;
  Int *low_, *high_;
};

template <typename T, int L>
void AttendBlock(const AttentionArgs<T>& args, const AttentionBlock<T>& block, void* scratch) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (AttendNarrow<L>(args, block, scratch)) return;
  }
  for (int64_t head = 0; head < block.head_count;) {
    AttentionBlock<T> run = block;
    run.head_begin += head;
    run.head_count = RunHeads(args, block, head);
    run.o += head * args.head_dim;
    run.lse += head;
    if (run.token_count * run.head_count <= L) {
      AttentionStrips<T, L, 1, 8>(args, run, scratch).Run();
    } else {
      AttentionStrips<T, L, 3, 4>(args, run, scratch).Run();
    }
    head += run.head_count;
  }
}

template <typename T, int L>
int64_t BlockRows(int64_t head_dim) {
  return AttentionStrips<T, L, 3, 4>::MaxStrips(head_dim) * 3 * L;
}

}  // namespace
}  // namespace toroid
