// Attention that is not causal on a ring, forward and backward, in double: every query sees the
// keys of all ranks, also those after it. The dense reference over the whole text is the truth.
#include "parallel/ring_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/backend.h"
#include "tests/reference/backward.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using reference::Array;

constexpr int64_t kHeads = 3, kKvHeads = 2, kHeadDim = 4;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
const std::vector<int32_t> kKvIndex = {0, 0, 1};

struct RingCase {
  LayoutRule rule;
  int64_t tokens = 29, ring = 1;
  AttentionSpec spec;  // that of the ring
};

Array Values(int part, int64_t size) {
  Array values(size);
  for (int64_t i = 0; i < size; ++i) {
    values[i] = std::sin(double(1 + part) * 1.7 + double(i) * 0.37 * double(3 + part));
  }
  return values;
}

// The whole text, on one rank.
reference::AttentionInput Whole(int64_t tokens, const AttentionSpec& spec) {
  reference::AttentionInput in;
  in.heads = kHeads, in.kv_heads = kKvHeads, in.head_dim = kHeadDim, in.kv_index = kKvIndex;
  for (int64_t i = 0; i < tokens; ++i) in.q_positions.push_back(int32_t(i));
  in.k_positions = in.q_positions;
  in.q_thK = Values(0, tokens * kHeads * kHeadDim);
  in.k_ngK = Values(1, tokens * kKvHeads * kHeadDim);
  in.v_ngK = Values(2, tokens * kKvHeads * kHeadDim);
  in.causal = spec.causal, in.window = spec.window, in.scale = spec.scale;
  return in;
}

// Rows of some tokens, one after the other.
Array Rows(const Array& whole, const std::vector<int32_t>& tokens, int64_t width) {
  Array rows;
  for (const int32_t token : tokens) {
    rows.insert(rows.end(), whole.begin() + token * width, whole.begin() + (token + 1) * width);
  }
  return rows;
}

double LargestDifference(const Array& x, const Array& expected) {
  EXPECT_EQ(x.size(), expected.size());
  double largest = 0;
  for (size_t i = 0; i < x.size(); ++i) largest = std::max(largest, std::abs(x[i] - expected[i]));
  return largest;
}

// The largest error on any rank of o and lse, and of dq, dk and dv.
struct Errors {
  double forward = 0, backward = 0;
};

// This rank's; the truth is attention by `spec`.
Errors ErrorsOfRank(const RingCase& c, Mesh& mesh, const AttentionSpec& spec) {
  const reference::AttentionInput whole = Whole(c.tokens, spec);
  const Array whole_do = Values(3, c.tokens * kHeads * kHeadDim);
  const reference::AttentionOutput out = reference::Attention(whole);
  const reference::AttentionGradient gradient = reference::AttentionBackward(whole, whole_do);
  const TokenLayout layout(c.rule, {c.tokens}, 1, c.ring);
  std::vector<int32_t> mine = layout.Positions(0, mesh.ring_rank());
  const int64_t t = int64_t(mine.size()), room = 2 * layout.max_count(0);
  const int64_t q_row = kHeads * kHeadDim, kv_row = kKvHeads * kHeadDim;

  Array q = Rows(whole.q_thK, mine, q_row), d_o = Rows(whole_do, mine, q_row);
  const Array k = Rows(whole.k_ngK, mine, kv_row), v = Rows(whole.v_ngK, mine, kv_row);
  Array kv = k, o(t * q_row, 0.0), lse(t * kHeads, -kInfinity), dq(t * q_row, 0.0);
  kv.insert(kv.end(), v.begin(), v.end());
  Array kv_again = kv, dkv(room * kv_row, 0.0);  // what Attend is given travels
  kv.resize(room * kv_row), kv_again.resize(room * kv_row);
  std::vector<int32_t> kv_index = kKvIndex;

  const auto ops = NewCpuBackend(DType::kF64, 1);
  const Stream s = ops->NewStream(false), comm_s = ops->NewStream(true);
  Arena scratch(*ops, "test");
  TOROID_CHECK(scratch.Reserve(1 << 20).ok());
  const auto tensor = [](Array& values, int64_t rows, int64_t heads) {
    return Tensor(DType::kF64, {rows, heads, kHeadDim}, values.data());
  };
  const Tensor positions_t(DType::kI32, {t}, mine.data());
  const Tensor index(DType::kI32, {kHeads}, kv_index.data());
  const Tensor lse_th(DType::kF64, {t, kHeads}, lse.data());
  RingAttention ring(*ops, s, comm_s, scratch, mesh, layout, [](int64_t, int64_t, int64_t) {});
  ring.Attend(0, c.spec, tensor(q, t, kHeads), positions_t, tensor(kv, 2 * t, kKvHeads), index,
              tensor(o, t, kHeads), lse_th);
  ring.Backward(0, c.spec, tensor(q, t, kHeads), positions_t, tensor(kv_again, 2 * t, kKvHeads),
                index, tensor(o, t, kHeads), lse_th, tensor(d_o, t, kHeads), tensor(dq, t, kHeads),
                tensor(dkv, 2 * t, kKvHeads));
  ops->Synchronize(s);
  EXPECT_TRUE(mesh.Health().ok()) << mesh.Health();

  const Array dk(dkv.begin(), dkv.begin() + t * kv_row);
  const Array dv(dkv.begin() + t * kv_row, dkv.begin() + 2 * t * kv_row);
  return {std::max(LargestDifference(o, Rows(out.o_thK, mine, q_row)),
                   LargestDifference(lse, Rows(out.lse_th, mine, kHeads))),
          std::max({LargestDifference(dq, Rows(gradient.dq_thK, mine, q_row)),
                    LargestDifference(dk, Rows(gradient.dk_ngK, mine, kv_row)),
                    LargestDifference(dv, Rows(gradient.dv_ngK, mine, kv_row))})};
}

Errors ErrorsOf(const RingCase& c, const AttentionSpec& truth) {
  std::vector<Errors> of_rank(c.ring);
  RunOnMesh({1, c.ring, 1},
            [&](Mesh& mesh) { of_rank[mesh.ring_rank()] = ErrorsOfRank(c, mesh, truth); });
  Errors largest;
  for (const Errors& errors : of_rank) {
    largest.forward = std::max(largest.forward, errors.forward);
    largest.backward = std::max(largest.backward, errors.backward);
  }
  return largest;
}

const LayoutRule kRules[] = {{LayoutRule::Kind::kContiguous},
                             {LayoutRule::Kind::kZigzag},
                             {LayoutRule::Kind::kStriped, 1},
                             {LayoutRule::Kind::kStriped, 4}};

TEST(RingAttentionTest, NotCausalEqualsTheDenseReference) {
  for (const LayoutRule& rule : kRules) {
    for (const int64_t ring : {1, 2, 3, 5, 8}) {
      for (const int64_t tokens : {1, 7, 29}) {
        for (const int64_t window : {0, 5}) {
          const AttentionSpec spec{.causal = false, .window = window, .scale = 0.5};
          const Errors errors = ErrorsOf({rule, tokens, ring, spec}, spec);
          EXPECT_LE(errors.forward, 1e-14) << ToString(rule) << " " << ring << " " << tokens;
          EXPECT_LE(errors.backward, 1e-13) << ToString(rule) << " " << ring << " " << tokens;
        }
      }
    }
  }
}

// Negative control: the two masks differ on every ring, both ways.
TEST(RingAttentionTest, TheOtherMaskShows) {
  const AttentionSpec causal{.scale = 0.5}, whole{.causal = false, .scale = 0.5};
  for (const LayoutRule& rule : kRules) {
    for (const int64_t ring : {1, 3}) {
      for (const AttentionSpec& made : {causal, whole}) {
        const AttentionSpec& other = made.causal ? whole : causal;
        const Errors errors = ErrorsOf({rule, 29, ring, made}, other);
        EXPECT_GT(errors.forward, 1e-2);
        EXPECT_GT(errors.backward, 1e-2);
        EXPECT_LE(ErrorsOf({rule, 29, ring, made}, made).backward, 1e-13);
      }
    }
  }
}

}  // namespace
}  // namespace toroid
