// The backward of one block of attention, written once for vectors of L lanes.
//
// As in the forward a strip is kWidth = 3 L (token, head) rows side by side in vector lanes, and a
// block of keys is copied into scratch once for all strips. With q and do transposed ([d][row]) and
// k and v as they lie, three of the five products run along the lanes of rows:
//   s[key][row]   = sum_d k[key][d] q[d][row]         q holds the scale
//   dp[key][row]  = sum_d v[key][d] do[d][row]
//   dq[d][row]   += sum_key k[key][d] ds[key][row]
// and so do p = e^(s - lse) and ds = p (dp - delta) between them. The other two sum over rows, so
// their lanes run along d, and q and do are kept as they lie too ([row][d]):
//   dv[key][d] = sum_row p[key][row] do[row][d]
//   dk[key][d] = sum_row ds[key][row] q[row][d]
#pragma once

#include "kernels/attention_backward_block.h"
#include "kernels/attention_score.h"
#include "kernels/attention_visible.h"
#include "kernels/vector.h"

namespace toroid {
namespace {

template <typename T, int L>
class AttentionBackwardStrips {
 public:
  static constexpr int C = 3, B = 4;
  static constexpr int64_t kWidth = L * C, kMaxStrips = 4;
  using N = Lanes<T, L>;
  using V = typename N::V;
  using I = typename N::I;
  using Int = typename N::Int;

  AttentionBackwardStrips(const AttentionBackwardArgs<T>& args, const AttentionBackwardBlock& block,
                          void* scratch)
      : a_(args.forward), g_(args), b_(block), dim_(a_.head_dim), dims_(Padded(a_.head_dim)) {
    keys_ = kKeyBlock;
    while (Bytes(1) > ThreadPool::kScratchBytes) keys_ /= 2;
    max_strips_ = kMaxStrips;  // as many as a second-level cache may hold beside the keys
    while (max_strips_ > 1 && Bytes(max_strips_) > ThreadPool::kScratchBytes * 5 / 16) {
      --max_strips_;
    }
    T* next = static_cast<T*>(scratch);
    const int64_t keyed = keys_ * dims_, rows = max_strips_ * kWidth;
    k_ = Take(next, keyed), v_ = Take(next, keyed);
    dk_ = Take(next, keyed), dv_ = Take(next, keyed);
    q_ = Take(next, rows * dims_), do_ = Take(next, rows * dims_);
    q_lanes_ = Take(next, rows * dims_), do_lanes_ = Take(next, rows * dims_);
    dq_lanes_ = Take(next, rows * dims_);
    p_ = Take(next, rows * keys_), ds_ = Take(next, rows * keys_);
    lse_ = Take(next, rows), delta_ = Take(next, rows);
    low_ = reinterpret_cast<Int*>(next);
    high_ = low_ + rows;
  }

  // Runs of heads that read this KV head, cut so that a token's rows fit the strips.
  void Run() {
    const int64_t rows = max_strips_ * kWidth;
    for (int64_t head = 0; head < a_.heads;) {
      int64_t end = head + 1;
      const bool ours = a_.kv_index[head] == b_.kv_head;
      while (ours && end < a_.heads && end - head < rows && a_.kv_index[end] == b_.kv_head) ++end;
      if (ours) RunHeads(head, end - head, rows / (end - head));
      head = end;
    }
  }

 private:
  static int64_t Padded(int64_t dim) {
    constexpr int64_t kMultiple = L > B ? L : B;
    return (dim + kMultiple - 1) / kMultiple * kMultiple;
  }
  int64_t Bytes(int64_t strips) const {
    const int64_t row = 5 * dims_ + 2 * keys_ + 2;
    return (4 * keys_ * dims_ + strips * kWidth * row) * int64_t{sizeof(T)} +
           strips * kWidth * 2 * int64_t{sizeof(Int)};
  }
  static T* Take(T*& next, int64_t count) {
    T* taken = next;
    next += count;
    return taken;
  }

  void RunHeads(int64_t head, int64_t head_count, int64_t tokens) {
    head_ = head, head_count_ = head_count;
    const int64_t end = b_.token_begin + b_.token_count;
    for (int64_t token = b_.token_begin; token < end; token += tokens) {
      token_ = token;
      rows_ = (end - token < tokens ? end - token : tokens) * head_count;
      strips_ = (rows_ + kWidth - 1) / kWidth;
      RunRows();
    }
  }

  void RunRows() {
    int64_t low = b_.key_end, high = b_.key_begin;  // keys that any row sees
    FindRanges(&low, &high);
    if (low >= high) return;
    LoadRows();
    low = b_.key_begin + (low - b_.key_begin) / keys_ * keys_;
    for (int64_t begin = low; begin < high; begin += keys_) {
      const int64_t count = high - begin < keys_ ? high - begin : keys_;
      CopyKeys(begin, count);
      int64_t first = strips_, last = 0;  // strips that see some of these keys
      for (int64_t strip = 0; strip < strips_; ++strip) {
        seen_[strip] = ScoreStrip(strip, begin, count);
        if (seen_[strip] == 0) continue;
        if (strip < first) first = strip;
        last = strip + 1;
      }
      OverRows(p_, do_, first, last, count, dv_);  // o_i = sum_j p_ij v_j
      OverRows(ds_, q_, first, last, count, dk_);  // s_ij = scale q_i . k_j
      AddKeys(begin, count);
    }
    AddQueries();
  }

  // The visible keys [low_, high_) of each row; of a padding row none.
  void FindRanges(int64_t* low, int64_t* high) {
    AttentionBlock<T> block = {};
    block.token_begin = token_, block.key_begin = b_.key_begin, block.key_end = b_.key_end;
    for (int64_t row = 0; row < strips_ * kWidth; ++row) {
      if (row >= rows_) {
        low_[row] = high_[row] = Int(b_.key_begin);
        continue;
      }
      if (row % head_count_ != 0) {
        low_[row] = low_[row - 1], high_[row] = high_[row - 1];
        continue;
      }
      const KeyRange seen = VisibleKeys(a_, block, row / head_count_);
      low_[row] = Int(seen.begin), high_[row] = Int(seen.end);
      if (seen.begin < seen.end) {
        if (seen.begin < *low) *low = seen.begin;
        if (seen.end > *high) *high = seen.end;
      }
    }
  }

  // A padding row, and a row that saw no key anywhere, has lse = inf: its p is e^-inf = 0.
  void LoadRows() {
    const T scale = T(a_.scale);
    for (int64_t row = 0; row < strips_ * kWidth; ++row) {
      const int64_t lane = row / kWidth * dims_ * kWidth + row % kWidth;
      T *q = q_ + row * dims_, *d_o = do_ + row * dims_;
      T *q_lane = q_lanes_ + lane, *do_lane = do_lanes_ + lane, *dq_lane = dq_lanes_ + lane;
      lse_[row] = __builtin_inf(), delta_[row] = 0;
      int64_t d = 0;
      if (row < rows_) {
        const int64_t token = token_ + row / head_count_, head = head_ + row % head_count_;
        const T lse = a_.lse[token * a_.lse_stride + head];
        if (lse != T(-__builtin_inf())) {
          lse_[row] = lse;
          delta_[row] = g_.delta[token * g_.delta_stride + head];
        }
        const T* q_from = a_.q + token * a_.q_stride + head * dim_;
        const T* do_from = g_.d_o + token * g_.do_stride + head * dim_;
        for (; d < dim_; ++d) q[d] = q_from[d] * scale, d_o[d] = do_from[d];
      }
      for (; d < dims_; ++d) q[d] = d_o[d] = 0;
      for (d = 0; d < dims_; ++d) {
        q_lane[d * kWidth] = q[d], do_lane[d * kWidth] = d_o[d], dq_lane[d * kWidth] = 0;
      }
    }
  }

  // Keys [begin, +count) of this KV head, widened, rows padded to dims_; the rows up to a multiple
  // of B are zeroed.
  void CopyKeys(int64_t begin, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      const int64_t head = b_.kv_head * dim_;
      WidenRow(a_.k, a_.kv_type, (begin + j) * a_.k_stride + head, dim_, dims_, k_ + j * dims_);
      WidenRow(a_.v, a_.kv_type, (begin + j) * a_.v_stride + head, dim_, dims_, v_ + j * dims_);
    }
    for (int64_t j = count; j % B != 0; ++j) {
      for (int64_t d = 0; d < dims_; ++d) k_[j * dims_ + d] = v_[j * dims_ + d] = 0;
    }
  }

  // p and ds of one strip and what they add to dq. Returns up to which key of the block the strip
  // sees; p and ds hold zeros from there to the next multiple of B.
  int64_t ScoreStrip(int64_t strip, int64_t begin, int64_t count) {
    const Int* low = low_ + strip * kWidth;
    const Int* high = high_ + strip * kWidth;
    // Rows are in order of position, so the first and the last rows bound what the strip sees.
    const int64_t last = (strip + 1) * kWidth < rows_ ? kWidth - 1 : rows_ - 1 - strip * kWidth;
    if (low[0] >= begin + count || high[last] <= begin) return 0;
    if (high[last] < begin + count) count = high[last] - begin;
    const bool whole = low[last] <= begin && high[0] >= begin + count;
    T *p = p_ + strip * keys_ * kWidth, *ds = ds_ + strip * keys_ * kWidth;
    const int64_t lanes = strip * dims_ * kWidth;
    for (int64_t j = 0; j < count; j += B) {
      ScoreKeys<T, L, C, B>(k_ + j * dims_, dims_, dim_, q_lanes_ + lanes, p + j * kWidth);
      ScoreKeys<T, L, C, B>(v_ + j * dims_, dims_, dim_, do_lanes_ + lanes, ds + j * kWidth);
    }
    if (whole) {
      Softmax<false>(strip, begin, count, p, ds);
    } else {
      Softmax<true>(strip, begin, count, p, ds);
    }
    for (int64_t j = count; j % B != 0; ++j) {
      for (int64_t row = 0; row < kWidth; ++row) p[j * kWidth + row] = ds[j * kWidth + row] = 0;
    }
    T* dq = dq_lanes_ + lanes;
    for (int64_t d = 0; d < dims_; d += B) OverKeys(k_ + d, ds, count, dq + d * kWidth);
    return count;
  }

  // p holds s and ds holds dp; they become e^(s - lse), zero where masked, and p (dp - delta).
  template <bool kMasked>
  void Softmax(int64_t strip, int64_t begin, int64_t count, T* p, T* ds) const {
    for (int c = 0; c < C; ++c) {
      const int64_t lane = strip * kWidth + c * L;
      const I low = *reinterpret_cast<const I*>(low_ + lane);
      const I high = *reinterpret_cast<const I*>(high_ + lane);
      const V lse = N::Load(lse_ + lane), delta = N::Load(delta_ + lane);
      for (int64_t j = 0; j < count; ++j) {
        const int64_t at = j * kWidth + c * L;
        V weight = Exp<L>(N::Load(p + at) - lse, T(0));
        if (kMasked) {
          const I key = N::SetInt(Int(begin + j));
          weight = ((key >= low) & (key < high)) ? weight : N::Set(0);
        }
        N::Store(p + at, weight);
        N::Store(ds + at, weight * (N::Load(ds + at) - delta));
      }
    }
  }

  // dq[d][row] += sum_key k[key][d] ds[key][row] for B dims.
  void OverKeys(const T* k, const T* ds, int64_t count, T* dq) const {
    V sum[B][C];
    for (int b = 0; b < B; ++b) {
      for (int c = 0; c < C; ++c) sum[b][c] = N::Load(dq + b * kWidth + c * L);
    }
    const int64_t stride = dims_;
    for (int64_t j = 0; j < count; ++j) {
      V x[C];
      for (int c = 0; c < C; ++c) x[c] = N::LoadOnce(ds + j * kWidth + c * L);
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        const V y = N::Set(k[j * stride + b]);
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) sum[b][c] += y * x[c];
      }
    }
    for (int b = 0; b < B; ++b) {
      for (int c = 0; c < C; ++c) N::Store(dq + b * kWidth + c * L, sum[b][c]);
    }
  }

  // out[key][d] = sum_row p[key][row] x[row][d] for the keys of the block, over strips [first,
  // last); columns in pieces of up to four vectors.
  void OverRows(const T* p, const T* x, int64_t first, int64_t last, int64_t count, T* out) const {
    constexpr int kMost = L >= 16 ? 4 : 3;  // 32 registers hold B x 4 sums, 16 hold B x 3
    for (int64_t d = 0; d < dims_;) {
      const int64_t left = (dims_ - d) / L;
      const int64_t vectors = left <= kMost ? left : left == kMost + 1 ? 2 : kMost;
      for (int64_t j = 0; j < count; j += B) {
        int64_t begin = first;  // later rows see more keys: the first strip that sees key j
        while (begin < last && seen_[begin] <= j) ++begin;
        const T* p_j = p + j * kWidth;
        T* out_j = out + j * dims_ + d;
        switch (vectors) {
          case 1:
            OverRowsOf<1>(p_j, x + d, begin, last, out_j);
            break;
          case 2:
            OverRowsOf<2>(p_j, x + d, begin, last, out_j);
            break;
          case 3:
            OverRowsOf<3>(p_j, x + d, begin, last, out_j);
            break;
          default:
            OverRowsOf<4>(p_j, x + d, begin, last, out_j);
        }
      }
      d += vectors * L;
    }
  }

  template <int M>
  void OverRowsOf(const T* p, const T* x, int64_t first, int64_t last, T* out) const {
    V sum[B][M] = {};
    const int64_t stride = dims_;
    for (int64_t strip = first; strip < last; ++strip) {
      const T* weights = p + strip * keys_ * kWidth;
      const T* rows = x + strip * kWidth * stride;
      for (int64_t row = 0; row < kWidth; ++row) {
        V y[M];
        for (int m = 0; m < M; ++m) y[m] = N::LoadOnce(rows + row * stride + m * L);
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
          const V weight = N::Set(weights[b * kWidth + row]);
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) sum[b][m] += weight * y[m];
        }
      }
    }
    for (int b = 0; b < B; ++b) {
      for (int m = 0; m < M; ++m) N::Store(out + b * stride + m * L, sum[b][m]);
    }
  }

  void AddKeys(int64_t begin, int64_t count) const {
    for (int64_t j = 0; j < count; ++j) {
      T* dk = g_.dk + (begin + j) * g_.dk_stride + b_.kv_head * dim_;
      T* dv = g_.dv + (begin + j) * g_.dv_stride + b_.kv_head * dim_;
      for (int64_t d = 0; d < dim_; ++d) dk[d] += dk_[j * dims_ + d];
      for (int64_t d = 0; d < dim_; ++d) dv[d] += dv_[j * dims_ + d];
    }
  }

  void AddQueries() const {
    const T scale = T(a_.scale);  // k holds none
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t token = token_ + row / head_count_, head = head_ + row % head_count_;
      const T* from = dq_lanes_ + row / kWidth * dims_ * kWidth + row % kWidth;
      T* dq = g_.dq + token * g_.dq_stride + head * dim_;
      for (int64_t d = 0; d < dim_; ++d) dq[d] += from[d * kWidth] * scale;
    }
  }

  const AttentionArgs<T>& a_;
  const AttentionBackwardArgs<T>& g_;
  const AttentionBackwardBlock& b_;
  const int64_t dim_, dims_;
  int64_t keys_, max_strips_;  // keys to a block; strips that fit
  int64_t head_ = 0, head_count_ = 0, token_ = 0, rows_ = 0, strips_ = 0;
  int64_t seen_[kMaxStrips] = {};
  T *k_, *v_, *dk_, *dv_, *q_, *do_, *q_lanes_, *do_lanes_, *dq_lanes_, *p_, *ds_, *lse_, *delta_;
  Int *low_, *high_;
};

template <typename T, int L>
void AttendBlockBackward(const AttentionBackwardArgs<T>& args, const AttentionBackwardBlock& block,
                         void* scratch) {
  AttentionBackwardStrips<T, L>(args, block, scratch).Run();
}

}  // namespace
}  // namespace toroid
