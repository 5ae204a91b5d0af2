// Attention's backward: against the dense double reference, against central differences, over any
// cut into tiles, on any number of threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "kernels/attention.h"
#include "tests/reference/backward.h"
#include "tests/support/all_close.h"
#include "tests/support/attention_inputs.h"
#include "tests/support/differences.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using reference::Array;
using reference::AttentionGradient;
using reference::AttentionInput;

struct Cut {
  int64_t begin, count;
};
using Cuts = std::vector<Cut>;

Cuts Pieces(int64_t n, int64_t size) {
  Cuts cuts;
  for (int64_t i = 0; i < n; i += size) cuts.push_back({i, std::min(size, n - i)});
  return cuts;
}

template <typename T>
struct Gradient {
  std::vector<T> dq, dk, dv;
};

// Forward over all keys, then backward over every tile of a cut of the queries by a cut of the
// keys.
template <typename T>
Gradient<T> Backward(const AttentionInput& in, const Array& d_o, const Cuts& q_cuts,
                     const Cuts& k_cuts, int threads = 2,
                     std::function<void(AttentionBackwardArgs<T>*)> change = nullptr) {
  ThreadPool pool(threads);
  Carry<T> carry(in);
  Call<T> call(in, &carry);
  AttendTile(pool, call.args);
  Gradient<T> g = {std::vector<T>(call.q.size()), std::vector<T>(call.k.size()),
                   std::vector<T>(call.v.size())};
  const std::vector<T> narrow_do = As<T>(d_o);
  std::vector<T> delta(carry.lse.size());
  const int64_t width = in.heads * in.head_dim;
  AttentionDelta<T>(pool, carry.o.data(), width, narrow_do.data(), width, call.args.q_count,
                    in.heads, in.head_dim, delta.data(), in.heads);
  AttentionBackwardArgs<T> args;
  args.forward = call.args, args.forward.o = nullptr;
  args.kv_heads = in.kv_heads, args.d_o = narrow_do.data(), args.do_stride = width;
  args.delta = delta.data(), args.delta_stride = in.heads;
  args.dq = g.dq.data(), args.dq_stride = width, args.dk = g.dk.data(), args.dv = g.dv.data();
  args.dk_stride = args.dv_stride = in.kv_heads * in.head_dim;
  if (change) change(&args);
  for (const Cut& q : q_cuts) {
    for (const Cut& k : k_cuts) {
      args.forward.q_begin = q.begin, args.forward.q_count = q.count;
      args.forward.k_begin = k.begin, args.forward.k_count = k.count;
      AttendTileBackward(pool, args);
    }
  }
  return g;
}

template <typename T>
Gradient<T> Whole(const AttentionInput& in, const Array& d_o, int threads = 2) {
  return Backward<T>(in, d_o, {{0, int64_t(in.q_positions.size())}},
                     {{0, int64_t(in.k_positions.size())}}, threads);
}

Array OutputGradient(const AttentionInput& in) { return RandomArray(int64_t(in.q_thK.size()), 77); }

template <typename T>
testing::AssertionResult Close(const Gradient<T>& g, const AttentionGradient& expected,
                               double tolerance = Tolerance<T>::kGradient) {
  const auto dq = AllClose(g.dq, expected.dq_thK, tolerance);
  if (!dq) return testing::AssertionFailure() << "dq: " << dq.message();
  const auto dk = AllClose(g.dk, expected.dk_ngK, tolerance);
  if (!dk) return testing::AssertionFailure() << "dk: " << dk.message();
  const auto dv = AllClose(g.dv, expected.dv_ngK, tolerance);
  if (!dv) return testing::AssertionFailure() << "dv: " << dv.message();
  return testing::AssertionSuccess();
}

template <typename T>
bool SameBits(const Gradient<T>& a, const Gradient<T>& b) {
  const auto same = [](const std::vector<T>& x, const std::vector<T>& y) {
    return std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0;
  };
  return same(a.dq, b.dq) && same(a.dk, b.dk) && same(a.dv, b.dv);
}

TEST(AttentionBackward, MatchesReferenceForSizesAndMasks) {
  ForEachIsa([](Isa isa) {
    for (int64_t n : {1, 7, 64, 257, 1024}) {
      AttentionInput in = RandomInput(n, n, 3, 1, 16);
      const Array d_o = OutputGradient(in);
      for (int mask = 0; mask < (n > 257 ? 2 : 4); ++mask) {
        SCOPED_TRACE(testing::Message() << "n " << n << " mask " << mask);
        in.causal = mask == 1 || mask == 3;
        in.window = mask >= 2 ? 37 : 0;
        const AttentionGradient expected = reference::AttentionBackward(in, d_o);
        EXPECT_TRUE(Close(Whole<float>(in, d_o), expected));
        if (isa == Isa::kScalar) {
          EXPECT_TRUE(Close(Whole<double>(in, d_o), expected));
        }
        if (n > 1 && mask == 1) {  // negative control: another mask shows
          in.causal = false;
          EXPECT_FALSE(Close(Whole<float>(in, d_o), expected));
        }
      }
    }
  });
}

TEST(AttentionBackward, MatchesReferenceForEveryHeadDimAndHeadMap) {
  for (int64_t head_dim : {1, 5, 16, 64, 80, 100, 128, 256, 300, 1024}) {
    SCOPED_TRACE(head_dim);
    AttentionInput in = RandomInput(65, 130, 5, 3, head_dim, head_dim);
    const Array d_o = OutputGradient(in);
    for (const std::vector<int32_t>& map :
         {std::vector<int32_t>{0, 0, 1, 1, 2}, {1, 1, 1, 2, 2}, {0, 2, 0, 2, 0}}) {
      if (head_dim > 300 && map[0] == 1) continue;
      in.kv_index = map;
      const AttentionGradient expected = reference::AttentionBackward(in, d_o);
      ForEachIsa([&](Isa isa) {
        EXPECT_TRUE(Close(Whole<float>(in, d_o), expected));
        if (isa == Isa::kScalar) {
          EXPECT_TRUE(Close(Whole<double>(in, d_o), expected));
        }
      });
    }
  }
  // MHA and MQA; more query heads on one KV head than the strips have rows.
  for (const auto& [heads, kv_heads] : {std::pair{4, 4}, {4, 2}, {4, 1}, {200, 1}}) {
    const AttentionInput in = RandomInput(9, 70, heads, kv_heads, 16);
    const Array d_o = OutputGradient(in);
    const AttentionGradient expected = reference::AttentionBackward(in, d_o);
    ForEachIsa([&](Isa) { EXPECT_TRUE(Close(Whole<float>(in, d_o), expected)); });
  }
}

// Positions with gaps: some queries see nothing, some blocks are seen by few.
TEST(AttentionBackward, MatchesReferenceForScatteredPositions) {
  ForEachIsa([](Isa) {
    AttentionInput in = RandomInput(90, 200, 2, 1, 32);
    for (size_t i = 0; i < in.q_positions.size(); ++i) {
      in.q_positions[i] = int32_t(5 * i + Philox(3, i, 0)[0] % 5);
    }
    for (size_t i = 0; i < in.k_positions.size(); ++i) {
      in.k_positions[i] = int32_t(20 + 2 * i + Philox(4, i, 0)[0] % 2);
    }
    const Array d_o = OutputGradient(in);
    for (int64_t window : {0, 1, 50}) {
      in.window = window;
      const AttentionGradient expected = reference::AttentionBackward(in, d_o);
      EXPECT_TRUE(Close(Whole<float>(in, d_o), expected));
      EXPECT_TRUE(Close(Whole<double>(in, d_o), expected));
    }
  });
}

TEST(AttentionBackward, RowsThatSeeNothingGiveNothing) {
  ForEachIsa([](Isa) {
    AttentionInput in = RandomInput(70, 130, 3, 1, 16);
    for (int32_t& p : in.q_positions) p = 5;
    for (int32_t& p : in.k_positions) p = 100;
    const Array d_o = OutputGradient(in);
    Gradient<float> g = Whole<float>(in, d_o);
    for (const auto* x : {&g.dq, &g.dk, &g.dv}) {
      for (float value : *x) ASSERT_EQ(value, 0.0f);
    }
    // A row may see keys of the tile in the backward call and yet have seen none at all, as its lse
    // says: a tile outside of the schedule. Nothing comes of it, and no NaN.
    g = Backward<float>(in, d_o, {{0, 70}}, {{0, 130}}, 2,
                        [](AttentionBackwardArgs<float>* args) { args->forward.causal = false; });
    for (const auto* x : {&g.dq, &g.dk, &g.dv}) {
      for (float value : *x) ASSERT_EQ(value, 0.0f);
    }
    in.k_positions[0] = 0;  // negative control: one visible key has all of dv
    g = Whole<float>(in, d_o);
    EXPECT_NE(g.dv[0], 0.0f);
    EXPECT_TRUE(Close(g, reference::AttentionBackward(in, d_o)));
  });
}

TEST(AttentionBackward, LargeLogitsStayFinite) {
  ForEachIsa([](Isa) {
    AttentionInput in = RandomInput(64, 257, 2, 1, 64);
    in.scale *= 100;
    const Array d_o = OutputGradient(in);
    const AttentionGradient expected = reference::AttentionBackward(in, d_o);
    // The scores themselves are rounded, at 100 times the size.
    EXPECT_TRUE(Close(Whole<float>(in, d_o), expected, 100 * Tolerance<float>::kGradient));
    EXPECT_TRUE(Close(Whole<double>(in, d_o), expected));
  });
}

TEST(AttentionBackward, TilesAddUpToTheWhole) {
  ForEachIsa([](Isa isa) {
    for (bool causal : {true, false}) {
      AttentionInput in = RandomInput(300, 300, 4, 2, 64);
      in.causal = causal;
      const Array d_o = OutputGradient(in);
      const Gradient<float> whole = Whole<float>(in, d_o);
      const Gradient<double> exact = Whole<double>(in, d_o);
      const auto reference_of = [](const auto& g) {
        return AttentionGradient{Array(g.dq.begin(), g.dq.end()), Array(g.dk.begin(), g.dk.end()),
                                 Array(g.dv.begin(), g.dv.end())};
      };
      const Cuts odd = {{0, 1}, {1, 76}, {77, 0}, {77, 130}, {207, 93}};
      const std::vector<std::pair<Cuts, Cuts>> cuts = {{Pieces(300, 300), Pieces(300, 37)},
                                                       {Pieces(300, 50), Pieces(300, 300)},
                                                       {odd, Pieces(300, 64)},
                                                       {Pieces(300, 101), odd}};
      for (const auto& [q_cuts, k_cuts] : cuts) {
        const auto tiled = Backward<float>(in, d_o, q_cuts, k_cuts);
        EXPECT_TRUE(Close(tiled, reference_of(whole), 1e-5));
        if (isa != Isa::kScalar) continue;
        EXPECT_TRUE(Close(Backward<double>(in, d_o, q_cuts, k_cuts), reference_of(exact), 1e-12));
      }
      Cuts lost = Pieces(300, 37);  // negative controls: a tile lost, a tile twice
      lost.pop_back();
      EXPECT_FALSE(
          Close(Backward<float>(in, d_o, Pieces(300, 300), lost), reference_of(whole), 1e-5));
      lost = Pieces(300, 37);
      lost.push_back({0, 1});
      EXPECT_FALSE(
          Close(Backward<float>(in, d_o, Pieces(300, 300), lost), reference_of(whole), 1e-5));
    }
  });
}

// Enough queries and keys for several ranges of each, so that steps of blocks really run abreast.
TEST(AttentionBackward, BitsDoNotDependOnThreads) {
  ForEachIsa([](Isa) {
    for (const auto& [t, n] : {std::pair{700, 700}, {300, 1100}, {900, 200}}) {
      const AttentionInput in = RandomInput(t, n, 4, 1, 32);
      const Array d_o = OutputGradient(in);
      const Gradient<float> one = Whole<float>(in, d_o, 1);
      EXPECT_TRUE(Close(one, reference::AttentionBackward(in, d_o)));
      for (int threads : {2, 3, 5}) EXPECT_TRUE(SameBits(one, Whole<float>(in, d_o, threads)));
      // Negative control: another cut does change bits.
      EXPECT_FALSE(SameBits(one, Backward<float>(in, d_o, {{0, t}}, Pieces(n, 77))));
    }
  });
}

TEST(AttentionBackward, ReadsBf16AndHonoursStrides) {
  ForEachIsa([](Isa) {
    const int64_t t = 40, n = 70, dim = 24;
    AttentionInput in = RandomInput(t, n, 2, 2, dim);
    std::vector<uint16_t> k, v;
    for (double& x : in.k_ngK) k.push_back(ToBf16(float(x))), x = FromBf16(k.back());
    for (double& x : in.v_ngK) v.push_back(ToBf16(float(x))), x = FromBf16(v.back());
    const Array d_o = OutputGradient(in);
    const int64_t width = 2 * dim, stride = width + 5;
    const auto wide_q = Spread(As<float>(in.q_thK), t, stride, NAN);
    const auto wide_do = Spread(As<float>(d_o), t, stride, NAN);
    const auto wide_k = Spread(k, n, stride, uint16_t(0x7fff));
    const auto wide_v = Spread(v, n, stride, uint16_t(0x7fff));
    // Gradients that hold something already, between guards.
    const Array before_q = RandomArray(t * width, 5), before_k = RandomArray(n * width, 6);
    auto dq = Spread(As<float>(before_q), t, stride, 3.0f);
    auto dk = Spread(As<float>(before_k), n, stride, 3.0f), dv = dk;
    Backward<float>(in, d_o, {{0, t}}, {{0, n}}, 2, [&](AttentionBackwardArgs<float>* args) {
      args->forward.q = wide_q.data(), args->forward.q_stride = stride;
      args->forward.k = wide_k.data(), args->forward.v = wide_v.data();
      args->forward.kv_type = DType::kBF16;
      args->forward.k_stride = args->forward.v_stride = stride;
      args->d_o = wide_do.data(), args->do_stride = stride;
      args->dq = dq.data(), args->dk = dk.data(), args->dv = dv.data();
      args->dq_stride = args->dk_stride = args->dv_stride = stride;
    });
    AttentionGradient expected = reference::AttentionBackward(in, d_o);
    for (size_t i = 0; i < before_q.size(); ++i) expected.dq_thK[i] += before_q[i];
    for (size_t i = 0; i < before_k.size(); ++i) expected.dk_ngK[i] += before_k[i];
    for (size_t i = 0; i < before_k.size(); ++i) expected.dv_ngK[i] += before_k[i];
    const Gradient<float> g = {Gather(dq, width, stride, 3.0f), Gather(dk, width, stride, 3.0f),
                               Gather(dv, width, stride, 3.0f)};
    EXPECT_TRUE(Close(g, expected));
  });
}

TEST(AttentionBackward, IsTheGradientByDifferences) {
  AttentionInput in = RandomInput(9, 12, 3, 2, 5);
  in.kv_index = {0, 0, 1};
  for (int64_t window : {0, 6}) {
    in.window = window;
    const Array d_o = OutputGradient(in);
    const Gradient<double> g = Whole<double>(in, d_o);
    const auto with = [&](Array AttentionInput::*operand) {
      return [&in, operand](const Array& x) {
        AttentionInput moved = in;
        moved.*operand = x;
        ThreadPool pool(1);
        Carry<double> carry(moved);
        Call<double> call(moved, &carry);
        AttendTile(pool, call.args);
        return carry.o;
      };
    };
    EXPECT_TRUE(MatchesDifferences(with(&AttentionInput::q_thK), in.q_thK, d_o, g.dq));
    EXPECT_TRUE(MatchesDifferences(with(&AttentionInput::k_ngK), in.k_ngK, d_o, g.dk));
    EXPECT_TRUE(MatchesDifferences(with(&AttentionInput::v_ngK), in.v_ngK, d_o, g.dv));
    Array wrong = g.dq;  // negative control
    wrong[3] *= 1.00001;
    EXPECT_FALSE(MatchesDifferences(with(&AttentionInput::q_thK), in.q_thK, d_o, wrong));
  }
}

}  // namespace
}  // namespace toroid
