// The register kernels of narrow attention (attention_narrow.h): up to three rows of queries
// against keys and values where they lie. Included by kernel files alone.
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

// Calls pass.operator()<R>(i) for rows i .. i + R - 1 until `rows` rows are done, three at a time,
// but rather twice two than three and one.
template <typename Pass>
inline void ForPasses(int64_t rows, Pass pass) {
  for (int64_t i = 0; i < rows;) {
    const int64_t left = rows - i;
    if (left == 3 || left > 4) {
      pass.template operator()<3>(i);
      i += 3;
    } else if (left == 1) {
      pass.template operator()<1>(i);
      i += 1;
    } else {
      pass.template operator()<2>(i);
      i += 2;
    }
  }
}

// Rows of scores, s and p, are kKeyBlock apart. E: what K and V hold, float or uint16_t (bf16).
template <int L, typename E>
struct NarrowRows {
  using N = Lanes<float, L>;
  using V = typename N::V;
  using I = typename N::I;

  static V LoadWide(const float* x) { return N::LoadOnce(x); }
  static V LoadWide(const uint16_t* x) {
    typedef uint16_t Half __attribute__((vector_size(2 * L)));
    Half half;
    __builtin_memcpy(&half, x, sizeof(half));
    V v = reinterpret_cast<V>(__builtin_convertvector(half, I) << 16);
    asm("" : "+x"(v));
    return v;
  }

  // s[r][i] = q[r] . k[i] for R rows of queries, `dim` apart, and the keys k[0 .. 3].
  template <int R>
  static void Scores(const E* const* k, const float* q, int64_t dim, float* s) {
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

  // One row and `count` keys from `begin` on, of which it sees those of `seen`: s becomes p; max,
  // sum and o go over to the new maximum. As in AttentionStrips, 0 stands for the maximum of a row
  // that has seen no key.
  static void Softmax(float* s, KeyRange seen, int64_t begin, int64_t count, int64_t dim, float* o,
                      float* max, float* sum) {
    const V minus_inf = N::Set(-__builtin_inff());
    if (seen.begin > begin || seen.end < begin + kKeyBlock) {
      for (int64_t j = 0; j < kKeyBlock; ++j) {
        s[j] = begin + j >= seen.begin && begin + j < seen.end ? s[j] : -__builtin_inff();
      }
    }
    V most = minus_inf;
    for (int64_t j = 0; j < count; j += L) most = N::Max(N::Load(s + j), most);
    const float block_max = N::MaxLane(most);
    const float old_max = *max;
    const float new_max = block_max > old_max ? block_max : old_max;
    const float safe = new_max == -__builtin_inff() ? 0 : new_max;
    V p_sum = {};
    for (int64_t j = 0; j < count; j += L) {
      const V p = Exp<L>(N::Load(s + j) - N::Set(safe), 0.0f);
      N::Store(s + j, p);
      p_sum += p;
    }
    const V rescale = Exp<L>(N::Set(old_max - safe), 0.0f);
    *sum = *sum * rescale[0] + N::Sum(p_sum);
    if (new_max > old_max) {
      for (int64_t d = 0; d < dim; d += L) N::Store(o + d, N::Load(o + d) * rescale);
    }
    *max = new_max;
  }

  // o[r][0 .. C L) += sum_j p[r][j] v[j], where value j lies at values + places[j] * stride, for R
  // rows, `dim` apart in o. each() runs before every value.
  template <int R, int C, typename Each>
  static void Accumulate(const E* values, const int64_t* places, int64_t stride, const float* p,
                         int64_t count, int64_t dim, float* o, Each each) {
    V sum[R][C];
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) sum[r][c] = N::Load(o + r * dim + c * L);
    }
    for (int64_t j = 0; j < count; ++j) {
      each();
      const E* v = values + places[j] * stride;
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
      for (int c = 0; c < C; ++c) N::Store(o + r * dim + c * L, sum[r][c]);
    }
  }
};

}  // namespace
}  // namespace toroid
