// Ring attention over packs: each document by itself is the truth, on every ring and rule.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/backend.h"
#include "parallel/ring_attention.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

constexpr int64_t kHeads = 2, kHeadDim = 4, kRow = kHeads * kHeadDim;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
using Packs = std::vector<std::vector<int64_t>>;

// Element of q (part 0), k (1) or v (2) of a token: a function of its place in the text.
double Value(int part, int64_t token, int64_t element) {
  return std::sin(double(1 + part) * 1.7 + double(token) * 0.37 + double(element) * 1.13);
}

// Attention of one document whose first token has number `first`: o [length, heads, dim].
std::vector<double> NaiveAttention(int64_t first, int64_t length) {
  std::vector<double> o(length * kRow, 0.0);
  for (int64_t q = 0; q < length; ++q) {
    for (int64_t h = 0; h < kHeads; ++h) {
      double sum = 0;
      for (int64_t k = 0; k <= q; ++k) {
        double score = 0;
        for (int64_t i = h * kHeadDim; i < (h + 1) * kHeadDim; ++i) {
          score += Value(0, first + q, i) * Value(1, first + k, i);
        }
        const double weight = std::exp(score * 0.5);
        sum += weight;
        for (int64_t i = h * kHeadDim; i < (h + 1) * kHeadDim; ++i) {
          o[q * kRow + i] += weight * Value(2, first + k, i);
        }
      }
      for (int64_t i = h * kHeadDim; i < (h + 1) * kHeadDim; ++i) o[q * kRow + i] /= sum;
    }
  }
  return o;
}

// Number in the whole text of each document's first token.
std::vector<int64_t> Firsts(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> firsts;
  int64_t first = 0;
  for (const int64_t length : lengths) {
    firsts.push_back(first);
    first += length;
  }
  return firsts;
}

// The largest |o - naive| over the documents `truth`, with attention scheduled by `packs`, which
// hold the same tokens.
double LargestError(LayoutRule rule, const Packs& packs, const Packs& truth, MeshShape shape) {
  const auto whole = TokenLayout::Packed({}, truth, 1, 1);
  std::vector<std::vector<double>> expected;
  const std::vector<int64_t> firsts = Firsts(whole.lengths());
  for (size_t i = 0; i < firsts.size(); ++i) {
    const std::vector<double> o = NaiveAttention(firsts[i], whole.lengths()[i]);
    for (size_t row = 0; row < o.size(); row += kRow) {
      expected.emplace_back(o.begin() + row, o.begin() + row + kRow);
    }
  }
  const TokenLayout layout = TokenLayout::Packed(rule, packs, shape.data, shape.ring);
  std::vector<double> errors(shape.size(), 0.0);
  RunOnMesh(shape, [&](Mesh& mesh) {
    const auto ops = NewCpuBackend(DType::kF64, 1);
    const Stream s = ops->NewStream(false), comm_s = ops->NewStream(true);
    Arena scratch(*ops, "test");
    ASSERT_TRUE(scratch.Reserve(1 << 20).ok());
    const int64_t d = mesh.data_rank(), r = mesh.ring_rank(), t = layout.count(d, r);
    auto positions = layout.Positions(d, r);
    const auto documents = layout.Sequences(d, r);
    const std::vector<int64_t> places = Firsts(layout.lengths());
    std::vector<double> q(t * kRow), kv(2 * layout.max_count(d) * kRow), o(t * kRow, 0.0);
    std::vector<double> lse(t * kHeads, -kInfinity);
    const auto token = [&](int64_t i) { return places[documents[i]] + positions[i]; };
    for (int64_t i = 0; i < t * kRow; ++i) {
      q[i] = Value(0, token(i / kRow), i % kRow);
      kv[i] = Value(1, token(i / kRow), i % kRow);
      kv[t * kRow + i] = Value(2, token(i / kRow), i % kRow);
    }
    std::vector<int32_t> kv_index = {0, 1};
    RingAttention ring(*ops, s, comm_s, scratch, mesh, layout, [](int64_t, int64_t, int64_t) {});
    ring.Attend(0, {.scale = 0.5}, Tensor(DType::kF64, {t, kHeads, kHeadDim}, q.data()),
                Tensor(DType::kI32, {t}, positions.data()),
                Tensor(DType::kF64, {2 * t, kHeads, kHeadDim}, kv.data()),
                Tensor(DType::kI32, {kHeads}, kv_index.data()),
                Tensor(DType::kF64, {t, kHeads, kHeadDim}, o.data()),
                Tensor(DType::kF64, {t, kHeads}, lse.data()));
    ops->Synchronize(s);
    EXPECT_TRUE(mesh.Health().ok()) << mesh.Health();
    for (int64_t i = 0; i < t * kRow; ++i) {
      double& error = errors[mesh.world().rank()];
      error = std::max(error, std::abs(o[i] - expected[token(i / kRow)][i % kRow]));
    }
  });
  return *std::max_element(errors.begin(), errors.end());
}

const Packs kPacks = {{1, 9, 4, 1, 1, 17}, {}, {2}, {6, 0, 5}};

TEST(PackedRing, EachDocumentIsByItself) {
  for (const LayoutRule rule :
       {LayoutRule{LayoutRule::Kind::kContiguous}, LayoutRule{LayoutRule::Kind::kZigzag},
        LayoutRule{LayoutRule::Kind::kStriped, 1}, LayoutRule{LayoutRule::Kind::kStriped, 3}}) {
    for (const int64_t ring : {1, 2, 3, 5}) {
      for (const int64_t data : {1, 2}) {
        EXPECT_LE(LargestError(rule, kPacks, kPacks, {.data = data, .ring = ring}), 1e-14)
            << ToString(rule) << " data " << data << " ring " << ring;
      }
    }
  }
}

// With a boundary left out, or one token further, a document sees its neighbour.
TEST(PackedRing, ALostBoundaryShows) {
  const LayoutRule rule;
  EXPECT_GE(LargestError(rule, {{1, 13, 1, 1, 17}, {}, {2}, {6, 5}}, kPacks, {.ring = 3}), 1e-3);
  EXPECT_GE(LargestError(rule, {{1, 9, 5, 1, 17}, {}, {2}, {6, 5}}, kPacks, {.ring = 3}), 1e-3);
}

}  // namespace
}  // namespace toroid
