// The attention of a block of few rows (decode), written once for vectors of L floats. Here the
// bytes of K and V are the bound, so each is read once, where it lies, for all rows.
//
// Lanes run along the head dimension. Blocks of 64 keys:
//   s[row][key] = q[row] . k[key]      four keys by up to three rows in registers, their twelve
//                                      vectors of partial sums folded by transposed additions
//   s -> p = e^(s - max)               keys along the lanes
//   o[row]     += p[row][key] v[key]   up to three rows by four vectors in registers
// A block may span several KV heads, which lie side by side in memory: each block of keys is done
// for one KV head after the other, so that memory is read nearly in order. While scores are formed
// the values of the same keys are prefetched, and while values are added up the keys that come
// next.
//
// REQUIRES: kv_type f32 or bf16, head_dim a multiple of L, at most kNarrowRows rows to a KV head.
#pragma once

#include "kernels/attention_visible.h"
#include "kernels/vector.h"

namespace toroid {
namespace {

// The lanes of four vectors added up: result[i] is the sum of v[i].
template <int L>
inline Lanes<float, 4>::V SumEach(const typename Lanes<float, L>::V* v) {
  using V4 = Lanes<float, 4>::V;
  constexpr int kQuarters = L / 4;
  V4 part[4];
  for (int i = 0; i < 4; ++i) {
    const V4* quarters = reinterpret_cast<const V4*>(&v[i]);
    part[i] = quarters[0];
    for (int j = 1; j < kQuarters; ++j) part[i] += quarters[j];
  }
  const V4 low01 = __builtin_shufflevector(part[0], part[1], 0, 4, 1, 5) +
                   __builtin_shufflevector(part[0], part[1], 2, 6, 3, 7);
  const V4 low23 = __builtin_shufflevector(part[2], part[3], 0, 4, 1, 5) +
                   __builtin_shufflevector(part[2], part[3], 2, 6, 3, 7);
  return __builtin_shufflevector(low01, low23, 0, 1, 4, 5) +
         __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
}

// E: what K and V hold, float or uint16_t (bf16).
template <int L, typename E>
class NarrowAttention {
 public:
  using N = Lanes<float, L>;
  using V = typename N::V;
  using I = typename N::I;

  NarrowAttention(const AttentionArgs<float>& args, const AttentionBlock<float>& block,
                  void* scratch)
      : a_(args), b_(block), dim_(args.head_dim) {
    for (int64_t head = 0; head < block.head_count;) {
      const int64_t heads = RunHeads(args, block, head);
      const int64_t offset = int64_t{args.kv_index[block.head_begin + head]} * dim_;
      runs_[run_count_++] = {head, heads, static_cast<const E*>(args.k) + offset,
                             static_cast<const E*>(args.v) + offset};
      head += heads;
    }
    const int64_t rows = block.token_count * block.head_count;
    q_ = static_cast<float*>(scratch);
    o_ = q_ + rows * dim_;
    s_ = o_ + rows * dim_;
    max_ = s_ + kNarrowRows * kKeyBlock;
    sum_ = max_ + rows;
  }

  void Run() {
    int64_t low = b_.key_end, high = b_.key_begin;  // keys that any token sees
    for (int64_t token = 0; token < b_.token_count; ++token) {
      seen_[token] = VisibleKeys(a_, b_, token);
      if (seen_[token].begin >= seen_[token].end) continue;
      low = seen_[token].begin < low ? seen_[token].begin : low;
      high = seen_[token].end > high ? seen_[token].end : high;
    }
    if (low < high) {
      for (int run = 0; run < run_count_; ++run) LoadQueries(runs_[run]);
      low = b_.key_begin + (low - b_.key_begin) / kKeyBlock * kKeyBlock;
      FindRows(low, high, next_);
      for (int64_t begin = low; begin < high; begin += kKeyBlock) {
        const int64_t count = high - begin < kKeyBlock ? high - begin : kKeyBlock;
        __builtin_memcpy(now_, next_, sizeof(now_));
        if (begin + count < high) FindRows(begin + count, high, next_);
        ahead_k_ = ahead_v_ = Ahead();
        for (int run = 0; run < run_count_; ++run) {
          AttendKeys(runs_[run], begin, count);
        }
      }
    }
    for (int run = 0; run < run_count_; ++run) Store(runs_[run]);
  }

 private:
  static constexpr int64_t kPiece = 4 * L;  // of the head dimension

  // Query heads that read one KV head; `head` counts in the block. The rows of the run are its
  // (token, head) pairs, token by token, from row FirstRow on.
  struct HeadRun {
    int64_t head, heads;
    const E *k, *v;
  };
  int64_t FirstRow(const HeadRun& run) const { return run.head * b_.token_count; }
  int64_t Rows(const HeadRun& run) const { return run.heads * b_.token_count; }

  static V LoadWide(const float* x) { return N::LoadOnce(x); }
  static V LoadWide(const uint16_t* x) {
    typedef uint16_t Half __attribute__((vector_size(2 * L)));
    Half half;
    __builtin_memcpy(&half, x, sizeof(half));
    V v = reinterpret_cast<V>(__builtin_convertvector(half, I) << 16);
    asm("" : "+x"(v));
    return v;
  }

  // How many of `left` rows one pass takes: three, but rather twice two than three and one.
  static int64_t RowsOfPass(int64_t left) { return left == 4 ? 2 : left < 3 ? left : 3; }

  void LoadQueries(const HeadRun& run) {
    const float scale = float(a_.scale);
    for (int64_t i = 0; i < Rows(run); ++i) {
      const int64_t row = FirstRow(run) + i;
      const int64_t token = i / run.heads, head = run.head + i % run.heads;
      const float* q =
          a_.q + (b_.token_begin + token) * a_.q_stride + (b_.head_begin + head) * dim_;
      const float* carry = b_.o + token * b_.o_stride + head * dim_;
      max_[row] = b_.fresh ? -__builtin_inff() : b_.lse[token * b_.lse_stride + head];
      const bool empty = max_[row] == -__builtin_inff();
      sum_[row] = empty ? 0 : 1;
      for (int64_t d = 0; d < dim_; ++d) q_[row * dim_ + d] = q[d] * scale;
      for (int64_t d = 0; d < dim_; ++d) o_[row * dim_ + d] = empty ? 0 : carry[d];
    }
  }

  void AttendKeys(const HeadRun& run, int64_t begin, int64_t count) {
    for (int64_t j = 0; j < count; j += 4) Scores(run, j);
    for (int64_t i = 0; i < Rows(run); ++i) {
      Softmax(FirstRow(run) + i, s_ + i * kKeyBlock, seen_[i / run.heads], begin, count);
    }
    for (int64_t d = 0; d + kPiece <= dim_; d += kPiece) Accumulate<4>(run, d, count);
    for (int64_t d = dim_ / kPiece * kPiece; d < dim_; d += L) Accumulate<1>(run, d, count);
  }

  // The places of the 64 keys from `begin` on; the last one stands for those from `end` on.
  void FindRows(int64_t begin, int64_t end, int64_t* rows) const {
    const int64_t count = end - begin < kKeyBlock ? end - begin : kKeyBlock;
    int64_t left = 0;  // keys of this page still to come
    for (int64_t j = 0; j < count; ++j, --left) {
      if (left == 0) {
        rows[j] = PhysicalRow(a_, begin + j);
        left = a_.page_table ? a_.page_tokens - (begin + j) % a_.page_tokens : count;
      } else {
        rows[j] = rows[j - 1] + 1;
      }
    }
    for (int64_t j = count; j < kKeyBlock; ++j) rows[j] = rows[count - 1];
  }

  // Prefetches one row of the next keys, in the order in which rows lie in memory. Called as often
  // as the block has (key, run) pairs.
  struct Ahead {
    int64_t key = 0;
    int run = 0;
  };
  void PrefetchNext(Ahead* ahead, const E* HeadRun::*base, int64_t stride) const {
    const E* x = runs_[ahead->run].*base + next_[ahead->key & (kKeyBlock - 1)] * stride;
    for (int64_t d = 0; d < dim_; d += 64 / int64_t{sizeof(E)}) __builtin_prefetch(x + d);
    if (++ahead->run == run_count_) ahead->run = 0, ++ahead->key;
  }

  // s[i][j .. j + 3] for the rows i of the run.
  void Scores(const HeadRun& run, int64_t j) {
    const E* k[4];
    for (int i = 0; i < 4; ++i) {
      k[i] = run.k + now_[j + i] * a_.k_stride;
      PrefetchNext(&ahead_k_, &HeadRun::k, a_.k_stride);
    }
    for (int64_t i = 0, rows = Rows(run); i < rows;) {
      const float* q = q_ + (FirstRow(run) + i) * dim_;
      float* s = s_ + i * kKeyBlock + j;
      const int64_t pass = RowsOfPass(rows - i);
      if (pass == 3) {
        ScoreRows<3>(k, q, s);
      } else if (pass == 2) {
        ScoreRows<2>(k, q, s);
      } else {
        ScoreRows<1>(k, q, s);
      }
      i += pass;
    }
  }

  template <int R>
  void ScoreRows(const E* const* k, const float* q, float* s) const {
    const int64_t dim = dim_;
    V sum[R][4] = {};
    for (int64_t d = 0; d < dim; d += L) {
      V x[R];
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) x[r] = N::LoadOnce(q + r * dim + d);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const V y = LoadWide(k[i] + d);
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) sum[r][i] += y * x[r];
      }
    }
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) {
      Lanes<float, 4>::Store(s + r * kKeyBlock, SumEach<L>(sum[r]));
    }
  }

  // s becomes p; max, sum and o go over to the new maximum. As in AttentionStrips, 0 stands for the
  // maximum of a row that has seen no key.
  void Softmax(int64_t row, float* s, KeyRange seen, int64_t begin, int64_t count) {
    const V minus_inf = N::Set(-__builtin_inff());
    if (seen.begin > begin || seen.end < begin + kKeyBlock) {
      for (int64_t j = 0; j < kKeyBlock; ++j) {
        s[j] = begin + j >= seen.begin && begin + j < seen.end ? s[j] : -__builtin_inff();
      }
    }
    V most = minus_inf;
    for (int64_t j = 0; j < count; j += L) most = N::Max(N::Load(s + j), most);
    const float block_max = N::MaxLane(most);
    const float max = block_max > max_[row] ? block_max : max_[row];
    const float safe = max == -__builtin_inff() ? 0 : max;
    V sum = {};
    for (int64_t j = 0; j < count; j += L) {
      const V p = Exp<L>(N::Load(s + j) - N::Set(safe), 0.0f);
      N::Store(s + j, p);
      sum += p;
    }
    const V rescale = Exp<L>(N::Set(max_[row] - safe), 0.0f);
    sum_[row] = sum_[row] * rescale[0] + N::Sum(sum);
    if (max > max_[row]) {
      float* o = o_ + row * dim_;
      for (int64_t d = 0; d < dim_; d += L) N::Store(o + d, N::Load(o + d) * rescale);
    }
    max_[row] = max;
  }

  // o[row][d ..] += sum_j p[row][j] v[j][d ..) for the rows of the run and C vectors.
  template <int C>
  void Accumulate(const HeadRun& run, int64_t d, int64_t count) {
    for (int64_t i = 0, rows = Rows(run); i < rows;) {
      float* o = o_ + (FirstRow(run) + i) * dim_ + d;
      const float* p = s_ + i * kKeyBlock;
      const int64_t pass = RowsOfPass(rows - i);
      const bool first = d == 0 && i == 0;
      if (pass == 3) {
        AccumulateRows<3, C>(run.v + d, p, count, o, first);
      } else if (pass == 2) {
        AccumulateRows<2, C>(run.v + d, p, count, o, first);
      } else {
        AccumulateRows<1, C>(run.v + d, p, count, o, first);
      }
      i += pass;
    }
  }

  template <int R, int C>
  void AccumulateRows(const E* values, const float* p, int64_t count, float* o, bool first) {
    V sum[R][C];
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) sum[r][c] = N::Load(o + r * dim_ + c * L);
    }
    for (int64_t j = 0; j < count; ++j) {
      if (first) PrefetchNext(&ahead_v_, &HeadRun::v, a_.v_stride);
      const E* v = values + now_[j] * a_.v_stride;
      V x[R];
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) x[r] = N::Set(p[r * kKeyBlock + j]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        const V y = LoadWide(v + c * L);
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) sum[r][c] += y * x[r];
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) N::Store(o + r * dim_ + c * L, sum[r][c]);
    }
  }

  // o / sum and lse = max + ln sum, for rows that saw a key here.
  void Store(const HeadRun& run) const {
    for (int64_t i = 0; i < Rows(run); ++i) {
      const int64_t row = FirstRow(run) + i;
      const int64_t token = i / run.heads, head = run.head + i % run.heads;
      float* o = b_.o + token * b_.o_stride + head * dim_;
      float* lse = b_.lse + token * b_.lse_stride + head;
      if (seen_[token].begin >= seen_[token].end) {
        if (!b_.fresh) continue;
        for (int64_t d = 0; d < dim_; ++d) o[d] = 0;
        *lse = -__builtin_inff();
        continue;
      }
      const float inverse = 1 / sum_[row];
      for (int64_t d = 0; d < dim_; ++d) o[d] = o_[row * dim_ + d] * inverse;
      *lse = max_[row] + float(__builtin_log(double(sum_[row])));
    }
  }

  const AttentionArgs<float>& a_;
  const AttentionBlock<float>& b_;
  const int64_t dim_;
  HeadRun runs_[kNarrowRuns];
  int run_count_ = 0;
  float *q_, *o_, *s_, *max_, *sum_;
  KeyRange seen_[kNarrowRows];
  Ahead ahead_k_, ahead_v_;
  int64_t now_[kKeyBlock], next_[kKeyBlock];
};

// True if it took the block.
template <int L>
bool AttendNarrow(const AttentionArgs<float>& args, const AttentionBlock<float>& block,
                  void* scratch) {
  if (args.head_dim % L != 0) return false;
  for (int64_t head = 0; head < block.head_count;) {
    const int64_t heads = RunHeads(args, block, head);
    if (heads * block.token_count > kNarrowRows) return false;
    head += heads;
  }
  if (args.kv_type == DType::kF32) {
    NarrowAttention<L, float>(args, block, scratch).Run();
  } else if (args.kv_type == DType::kBF16) {
    NarrowAttention<L, uint16_t>(args, block, scratch).Run();
  } else {
    return false;
  }
  return true;
}

}  // namespace
}  // namespace toroid
