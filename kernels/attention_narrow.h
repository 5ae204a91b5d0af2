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

#include "kernels/attention_narrow_rows.h"
#include "kernels/attention_visible.h"

namespace toroid {
namespace {

// E: what K and V hold, float or uint16_t (bf16).
template <int L, typename E>
class NarrowAttention {
 public:
  using Kernels = NarrowRows<L, E>;

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
      FindRows(a_, low, high, next_);
      for (int64_t begin = low; begin < high; begin += kKeyBlock) {
        const int64_t count = high - begin < kKeyBlock ? high - begin : kKeyBlock;
        __builtin_memcpy(now_, next_, sizeof(now_));
        if (begin + count < high) FindRows(a_, begin + count, high, next_);
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
      const int64_t row = FirstRow(run) + i;
      Kernels::Softmax(s_ + i * kKeyBlock, seen_[i / run.heads], begin, count, dim_,
                       o_ + row * dim_, max_ + row, sum_ + row);
    }
    for (int64_t d = 0; d + kPiece <= dim_; d += kPiece) Accumulate<4>(run, d, count);
    for (int64_t d = dim_ / kPiece * kPiece; d < dim_; d += L) Accumulate<1>(run, d, count);
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
    ForPasses(Rows(run), [&]<int R>(int64_t i) {
      Kernels::template Scores<R>(k, q_ + (FirstRow(run) + i) * dim_, dim_, s_ + i * kKeyBlock + j);
    });
  }

  // o[row][d ..] += sum_j p[row][j] v[j][d ..) for the rows of the run and C vectors. The first
  // pass over the values prefetches the next ones.
  template <int C>
  void Accumulate(const HeadRun& run, int64_t d, int64_t count) {
    ForPasses(Rows(run), [&]<int R>(int64_t i) {
      const bool first = d == 0 && i == 0;
      const auto prefetch = [&] {
        if (first) PrefetchNext(&ahead_v_, &HeadRun::v, a_.v_stride);
      };
      Kernels::template Accumulate<R, C>(run.v + d, now_, a_.v_stride, s_ + i * kKeyBlock, count,
                                         dim_, o_ + (FirstRow(run) + i) * dim_ + d, prefetch);
    });
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
