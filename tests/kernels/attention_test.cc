#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>
#include <numeric>

#include "kernels/attention_merge.h"
#include "tests/support/all_close.h"
#include "tests/support/attention_inputs.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using reference::AttentionInput;
using reference::AttentionOutput;

// Keys in tiles of `chunk`, one after the other on one carry.
template <typename T>
Carry<T> Attend(const AttentionInput& in, int64_t chunk, int threads = 2) {
  ThreadPool pool(threads);
  Carry<T> carry(in);
  Call<T> call(in, &carry);
  const int64_t n = call.args.k_count;
  for (int64_t begin = 0; begin < n; begin += chunk) {
    call.args.k_begin = begin, call.args.k_count = std::min(chunk, n - begin);
    AttendTile(pool, call.args);
  }
  return carry;
}

template <typename T>
void ExpectMatches(const AttentionInput& in, int64_t chunk) {
  const AttentionOutput expected = reference::Attention(in);
  const Carry<T> actual = Attend<T>(in, chunk);
  EXPECT_TRUE(AllClose(actual.o, expected.o_thK));
  EXPECT_TRUE(AllClose(actual.lse, expected.lse_th));
}

// Spec A1, forward: n x chunk x mask.
TEST(Attention, MatchesReferenceForSizesChunksAndMasks) {
  ForEachIsa([](Isa isa) {
    for (int64_t n : {1, 7, 64, 257, 1024}) {
      AttentionInput in = RandomInput(n, n, n > 257 ? 1 : 3, 1, 16);
      for (int mask = 0; mask < 4; ++mask) {
        in.causal = mask == 1 || mask == 3;
        in.window = mask >= 2 ? 37 : 0;
        const AttentionOutput expected = reference::Attention(in);
        for (int64_t chunk : {int64_t{1}, int64_t{13}, int64_t{64}, n}) {
          if (chunk == 1 && n > 257 && mask != 1) continue;  // slow, nothing new
          SCOPED_TRACE(testing::Message() << "n " << n << " mask " << mask << " chunk " << chunk);
          const Carry<float> actual = Attend<float>(in, chunk);
          EXPECT_TRUE(AllClose(actual.o, expected.o_thK));
          EXPECT_TRUE(AllClose(actual.lse, expected.lse_th));
          if (isa != Isa::kScalar) continue;
          const Carry<double> exact = Attend<double>(in, chunk);
          EXPECT_TRUE(AllClose(exact.o, expected.o_thK));
          EXPECT_TRUE(AllClose(exact.lse, expected.lse_th));
        }
      }
    }
  });
}

TEST(Attention, MatchesReferenceForEveryHeadDimAndHeadMap) {
  ForEachIsa([](Isa) {
    for (int64_t head_dim : {1, 5, 16, 64, 80, 100, 128, 256, 300}) {
      SCOPED_TRACE(head_dim);
      AttentionInput in = RandomInput(65, 130, 5, 3, head_dim, head_dim);
      in.kv_index = {0, 0, 1, 1, 2};  // as HeadLayout cuts heads: runs of unequal length
      ExpectMatches<float>(in, 100);
      in.kv_index = {1, 1, 1, 2, 2};
      ExpectMatches<float>(in, 130);
      ExpectMatches<double>(in, 130);
    }
    // More query heads on one KV head than a block has rows.
    ExpectMatches<float>(RandomInput(3, 70, 200, 1, 16), 70);
  });
}

TEST(Attention, MatchesReferenceForFewQueriesAndManyKeys) {
  ForEachIsa([](Isa) {
    for (int64_t n : {1, 255, 600, 5000}) {
      for (int64_t t : {1, 2}) {
        SCOPED_TRACE(testing::Message() << n << " keys " << t << " queries");
        AttentionInput in = RandomInput(t, n, 9, 3, 64);
        ExpectMatches<float>(in, n);
        ExpectMatches<double>(in, n);
        ExpectMatches<float>(in, 700);  // the second tile merges into a carry
        in.window = 300;
        ExpectMatches<float>(in, n);
      }
    }
  });
}

// Decode reads several KV heads in one go, but not heads of unequal need in one.
TEST(Attention, MatchesReferenceForFewQueriesAndManyHeads) {
  ForEachIsa([](Isa) {
    ExpectMatches<float>(RandomInput(1, 600, 20, 20, 16), 600);
    ExpectMatches<float>(RandomInput(1, 600, 40, 5, 32), 600);
    ExpectMatches<float>(RandomInput(2, 600, 6, 2, 24), 600);  // no whole vectors of 16
    AttentionInput in = RandomInput(1, 600, 16, 4, 48);
    in.kv_index = {2, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1};
    ExpectMatches<float>(in, 600);
    in.kv_index = {2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0, 1};  // 13 rows on one KV head
    ExpectMatches<float>(in, 600);
    ExpectMatches<double>(in, 600);
  });
}

// Positions with gaps, on both sides, are as general as a mask by position can be.
TEST(Attention, MatchesReferenceForScatteredPositions) {
  ForEachIsa([](Isa) {
    AttentionInput in = RandomInput(90, 200, 2, 1, 32);
    for (size_t i = 0; i < in.q_positions.size(); ++i) {
      in.q_positions[i] = int32_t(5 * i + Philox(3, i, 0)[0] % 5);
    }
    for (size_t i = 0; i < in.k_positions.size(); ++i) {
      in.k_positions[i] = int32_t(20 + 2 * i + Philox(4, i, 0)[0] % 2);
    }
    for (int64_t window : {0, 1, 50}) {
      in.window = window;
      ExpectMatches<float>(in, 77);
      ExpectMatches<double>(in, 77);
    }
  });
}

TEST(Attention, RowsThatSeeNothingKeepTheirBits) {
  ForEachIsa([](Isa) {
    for (int64_t t : {1, 70}) {
      AttentionInput in = RandomInput(t, 600, 3, 3, 64);
      for (int32_t& p : in.q_positions) p = 5;
      for (int32_t& p : in.k_positions) p = 100;
      Carry<float> carry(in);
      Call<float> call(in, &carry);
      ThreadPool pool(2);
      AttendTile(pool, call.args);
      for (float o : carry.o) EXPECT_EQ(o, 0.0f);
      for (float lse : carry.lse) EXPECT_EQ(lse, -INFINITY);
      carry.o = As<float>(RandomArray(int64_t(carry.o.size()), 9));
      carry.lse = As<float>(RandomArray(int64_t(carry.lse.size()), 10));
      call.args.o = carry.o.data(), call.args.lse = carry.lse.data();
      const Carry<float> before = carry;
      AttendTile(pool, call.args);
      EXPECT_EQ(carry.o, before.o);
      EXPECT_EQ(carry.lse, before.lse);
      in.k_positions[0] = 0;  // negative control: one visible key changes every row
      AttendTile(pool, call.args);
      EXPECT_NE(carry.lse, before.lse);
    }
  });
}

TEST(Attention, LargeLogitsStayFinite) {
  ForEachIsa([](Isa) {
    AttentionInput in = RandomInput(64, 257, 2, 1, 64);
    in.scale *= 100;
    const AttentionOutput expected = reference::Attention(in);
    const Carry<float> actual = Attend<float>(in, 64);
    for (float o : actual.o) ASSERT_TRUE(std::isfinite(o));
    // The scores themselves are rounded, at 100 times the size.
    EXPECT_TRUE(AllClose(actual.o, expected.o_thK, 100 * Tolerance<float>::kForward));
    EXPECT_TRUE(AllClose(Attend<double>(in, 64).o, expected.o_thK));
  });
}

// A physical layout of pages in shuffled order, holding the packed keys and values.
template <typename E>
struct Pages {
  std::vector<int32_t> table;
  std::vector<E> k, v;
  Pages(const std::vector<E>& packed_k, const std::vector<E>& packed_v, int64_t n, int64_t cols,
        int64_t page) {
    const int64_t count = (n + page - 1) / page;
    table.resize(count);
    std::iota(table.begin(), table.end(), 0);
    for (int64_t i = count - 1; i > 0; --i)
      std::swap(table[i], table[Philox(8, i, 0)[0] % (i + 1)]);
    k.assign(count * page * cols, E(12345));
    v.assign(count * page * cols, E(12345));
    for (int64_t j = 0; j < n; ++j) {
      const int64_t row = table[j / page] * page + j % page;
      std::copy_n(&packed_k[j * cols], cols, &k[row * cols]);
      std::copy_n(&packed_v[j * cols], cols, &v[row * cols]);
    }
  }
};

TEST(Attention, PagedEqualsContiguousBitForBit) {
  ForEachIsa([](Isa) {
    for (int64_t t : {1, 150}) {
      const int64_t n = 1000;
      const AttentionInput in = RandomInput(t, n, 6, 2, 64);
      const Carry<float> packed = Attend<float>(in, 300);
      for (int64_t page : {16, 64}) {
        Carry<float> carry(in);
        Call<float> call(in, &carry);
        const Pages<float> pages(call.k, call.v, n, 2 * 64, page);
        call.args.k = pages.k.data(), call.args.v = pages.v.data();
        call.args.page_table = pages.table.data(), call.args.page_tokens = page;
        ThreadPool pool(2);
        for (int64_t begin = 0; begin < n; begin += 300) {
          call.args.k_begin = begin, call.args.k_count = std::min<int64_t>(300, n - begin);
          AttendTile(pool, call.args);
        }
        EXPECT_EQ(std::memcmp(carry.o.data(), packed.o.data(), carry.o.size() * 4), 0);
        EXPECT_EQ(carry.lse, packed.lse);
        // Negative control: one page table entry wrong.
        std::vector<int32_t> wrong = pages.table;
        std::swap(wrong.front(), wrong.back());
        call.args.page_table = wrong.data();
        call.args.k_begin = 0, call.args.k_count = n;
        carry = Carry<float>(in);
        call.args.o = carry.o.data(), call.args.lse = carry.lse.data();
        AttendTile(pool, call.args);
        EXPECT_FALSE(
            AllClose(carry.o, As<double>(reference::Array(packed.o.begin(), packed.o.end()))));
      }
    }
  });
}

TEST(Attention, ReadsBf16) {
  ForEachIsa([](Isa) {
    for (int64_t t : {1, 3, 100}) {
      AttentionInput in = RandomInput(t, 700, 4, 2, 48);
      std::vector<uint16_t> k, v;
      for (double& x : in.k_ngK) k.push_back(ToBf16(float(x))), x = FromBf16(k.back());
      for (double& x : in.v_ngK) v.push_back(ToBf16(float(x))), x = FromBf16(v.back());
      const AttentionOutput expected = reference::Attention(in);
      Carry<float> carry(in);
      Call<float> call(in, &carry);
      call.args.k = k.data(), call.args.v = v.data(), call.args.kv_type = DType::kBF16;
      ThreadPool pool(1);
      AttendTile(pool, call.args);
      EXPECT_TRUE(AllClose(carry.o, expected.o_thK));
    }
  });
}

TEST(Attention, BitsDoNotDependOnThreads) {
  ForEachIsa([](Isa) {
    for (int64_t t : {1, 300}) {
      const AttentionInput in = RandomInput(t, 1100, 6, 2, 64);
      const Carry<float> one = Attend<float>(in, 1100, 1);
      for (int threads : {2, 3}) {
        const Carry<float> many = Attend<float>(in, 1100, threads);
        EXPECT_EQ(std::memcmp(one.o.data(), many.o.data(), one.o.size() * 4), 0);
        EXPECT_EQ(one.lse, many.lse);
      }
    }
  });
}

// Strided queries and outputs: a column range of a fused product.
TEST(Attention, HonoursStrides) {
  const AttentionInput in = RandomInput(33, 33, 2, 1, 16);
  const AttentionOutput expected = reference::Attention(in);
  Carry<float> carry(in);
  Call<float> call(in, &carry);
  const int64_t stride = 50;
  std::vector<float> wide_q(33 * stride, 7.0f), wide_o(33 * stride, 3.0f);
  for (int64_t i = 0; i < 33; ++i) {
    std::copy_n(&call.q[i * 32], 32, &wide_q[i * stride + 5]);
    std::fill_n(&wide_o[i * stride + 5], 32, 0.0f);
  }
  call.args.q = &wide_q[5], call.args.q_stride = stride;
  call.args.o = &wide_o[5], call.args.o_stride = stride;
  ThreadPool pool(1);
  AttendTile(pool, call.args);
  std::vector<float> o;
  for (int64_t i = 0; i < 33 * stride; ++i) {
    const bool inside = i % stride >= 5 && i % stride < 37;
    if (inside) {
      o.push_back(wide_o[i]);
    } else {
      EXPECT_EQ(wide_o[i], 3.0f);
    }
  }
  EXPECT_TRUE(AllClose(o, expected.o_thK));
}

// Spec A12 on a CPU: at least twice as fast as materialising the scores in the same arithmetic.
// Measured in CPU time of this thread, best of several, so that busy neighbours do not decide.
double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

void NaiveFloatAttention(const Call<float>& call, const AttentionInput& in, std::vector<float>* o) {
  const int64_t t = call.args.q_count, n = call.args.k_count, dim = in.head_dim;
  std::vector<float> p(n);
  for (int64_t i = 0; i < t; ++i) {
    float max = -INFINITY, sum = 0;
    for (int64_t j = 0; j <= i; ++j) {
      float dot = 0;
      for (int64_t d = 0; d < dim; ++d) dot += call.q[i * dim + d] * call.k[j * dim + d];
      p[j] = dot * float(in.scale);
      max = std::max(max, p[j]);
    }
    for (int64_t j = 0; j <= i; ++j) sum += p[j] = std::exp(p[j] - max);
    float* out = &(*o)[i * dim];
    std::fill_n(out, dim, 0.0f);
    for (int64_t j = 0; j <= i; ++j) {
      const float weight = p[j] / sum;
      for (int64_t d = 0; d < dim; ++d) out[d] += weight * call.v[j * dim + d];
    }
  }
}

TEST(AttentionTiming, TwiceAsFastAsNaiveAt2048) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
  GTEST_SKIP() << "times of this build say nothing";
#endif
  const AttentionInput in = RandomInput(2048, 2048, 1, 1, 64);
  ThreadPool pool(1);
  Carry<float> carry(in);
  Call<float> call(in, &carry);
  std::vector<float> naive(carry.o.size());
  double fast_s = INFINITY, naive_s = INFINITY;
  for (int i = 0; i < 3; ++i) {
    std::fill(carry.lse.begin(), carry.lse.end(), -INFINITY);
    double start = ThreadSeconds();
    AttendTile(pool, call.args);
    fast_s = std::min(fast_s, ThreadSeconds() - start);
    start = ThreadSeconds();
    NaiveFloatAttention(call, in, &naive);
    naive_s = std::min(naive_s, ThreadSeconds() - start);
  }
  EXPECT_LE(RelativeError(carry.o, naive), 2e-5);  // the same result
  RecordProperty("speedup", std::to_string(naive_s / fast_s));
  EXPECT_GE(naive_s, 2 * fast_s);
}

// Merges `parts` of keys in a random binary tree.
AttentionOutput MergeTree(std::vector<AttentionOutput> parts, int64_t head_dim, uint64_t seed) {
  ThreadPool pool(1);
  for (uint64_t round = 0; parts.size() > 1; ++round) {
    const size_t i = Philox(seed, round, 0)[0] % parts.size();
    std::swap(parts[i], parts.back());
    const AttentionOutput a = parts.back();
    parts.pop_back();
    AttentionOutput& b = parts[Philox(seed, round, 1)[0] % parts.size()];
    std::vector<double> o = a.o_thK, lse = a.lse_th;
    o.insert(o.end(), b.o_thK.begin(), b.o_thK.end());
    lse.insert(lse.end(), b.lse_th.begin(), b.lse_th.end());
    MergeArgs<double> merge;
    merge.o_parts = o.data(), merge.lse_parts = lse.data(), merge.parts = 2;
    merge.rows = int64_t(b.lse_th.size()), merge.dim = head_dim;
    merge.o_part_stride = int64_t(b.o_thK.size()), merge.lse_part_stride = merge.rows;
    merge.o = b.o_thK.data(), merge.o_stride = head_dim;
    merge.lse = b.lse_th.data(), merge.lse_stride = 1;
    AttentionMerge(pool, merge);
  }
  return parts.front();
}

TEST(AttentionMerge, RandomTreesAgree) {
  AttentionInput in = RandomInput(40, 200, 3, 1, 16);
  const AttentionOutput expected = reference::Attention(in);
  std::vector<AttentionOutput> parts;
  for (int64_t begin = 0; begin < 200; begin += 29) {
    AttentionInput part = in;
    const int64_t count = std::min<int64_t>(29, 200 - begin);
    part.k_positions.assign(&in.k_positions[begin], &in.k_positions[begin] + count);
    part.k_ngK.assign(&in.k_ngK[begin * 16], &in.k_ngK[begin * 16] + count * 16);
    part.v_ngK.assign(&in.v_ngK[begin * 16], &in.v_ngK[begin * 16] + count * 16);
    const Carry<double> carry = Attend<double>(part, count);
    parts.push_back({carry.o, carry.lse});
  }
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const AttentionOutput merged = MergeTree(parts, 16, seed);
    EXPECT_LE(RelativeError(merged.o_thK, expected.o_thK), 1e-14 * 10);
    EXPECT_LE(RelativeError(merged.lse_th, expected.lse_th), 1e-14 * 10);
  }
  parts.pop_back();  // negative control: a lost part shows
  EXPECT_GT(RelativeError(MergeTree(parts, 16, 1).o_thK, expected.o_thK), 1e-3);
}

TEST(AttentionMerge, FloatMatchesReferenceAndEmptyRowsAreZero) {
  ThreadPool pool(2);
  for (int64_t parts : {1, 2, 7}) {
    const int64_t t = 7, heads = 3, dim = 20;
    std::vector<AttentionOutput> in(parts);
    std::vector<float> o_parts, lse_parts;
    for (int64_t i = 0; i < parts; ++i) {
      in[i].o_thK = RandomArray(t * heads * dim, 20 + i);
      in[i].lse_th = RandomArray(t * heads, 40 + i, 5);
      in[i].lse_th[4] = -INFINITY;              // in all parts
      if (i != 0) in[i].lse_th[5] = -INFINITY;  // in all but one
      std::fill_n(&in[i].o_thK[4 * dim], dim, 0);
      o_parts.insert(o_parts.end(), in[i].o_thK.begin(), in[i].o_thK.end());
      lse_parts.insert(lse_parts.end(), in[i].lse_th.begin(), in[i].lse_th.end());
    }
    std::vector<float> o(t * heads * dim, 99.0f);
    MergeArgs<float> merge;
    merge.o_parts = o_parts.data(), merge.lse_parts = lse_parts.data(), merge.parts = parts;
    merge.rows = t * heads, merge.heads = heads, merge.dim = dim;
    merge.o_part_stride = t * heads * dim, merge.lse_part_stride = t * heads;
    merge.o = o.data(), merge.o_stride = heads * dim;
    AttentionMerge(pool, merge);
    EXPECT_TRUE(AllClose(o, reference::Merge(in, dim).o_thK));
  }
}

}  // namespace
}  // namespace toroid
