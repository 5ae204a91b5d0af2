// Products and attention: the GPU against the CPU, over types, shapes and ways to lay keys out.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/backend_side.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using CudaProducts = OnGpu;

std::vector<float> Random(int64_t size, uint64_t seed, double deviation = 1) {
  return As<float>(RandomArray(size, seed, deviation));
}

struct Product {
  DType type;
  int64_t m, n, k;
};

// before: how far rows of x and out lie from every alignment.
Results Multiply(BackendSide& side, const Product& p, int64_t before, uint64_t weight_seed = 1) {
  const Tensor x = side.Put(DType::kF32, {p.m, p.k}, Random(p.m * p.k, 2), before);
  const Tensor w = side.Put(p.type, {p.n, p.k}, RandomWeights(p.type, p.n, p.k, weight_seed));
  const Tensor out = side.Poisoned(DType::kF32, {p.m, p.n}, before);
  side.ops().MatMul(side.s, x, w, side.Put(DType::kF32, {p.n}, Random(p.n, 3)), out);
  const Tensor plain = side.Poisoned(DType::kF32, {p.m, p.n});
  side.ops().MatMul(side.s, x, w, Tensor(), plain);
  EXPECT_TRUE(side.FrameIsWhole(out, before));
  return {side.Floats(out), side.Floats(plain)};
}

TEST_F(CudaProducts, MatMulsOfStoredWeights) {
  for (DType type : {DType::kF32, DType::kF64, DType::kF16, DType::kBF16, DType::kQ8_0,
                     DType::kQ4_0, DType::kQ4_1}) {
    for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
             {1, 257, 64},   {1, 7, 4096}, {2, 64, 32},   {3, 257, 64},   {5, 7, 4096},
             {8, 64, 288},   {9, 64, 64},  {9, 7, 32},    {64, 257, 64},  {257, 64, 4096},
             {64, 4096, 64}, {7, 257, 96}, {64, 64, 576}, {1, 1, 1},      {1, 64, 7},
             {7, 257, 257},  {8, 7, 1},    {64, 64, 7},   {64, 257, 257}, {257, 1, 257},
             {4096, 7, 64}}) {
      if (k % Info(type).block != 0) continue;
      for (int64_t before : {0, 1}) {
        SCOPED_TRACE(testing::Message() << Info(type).name << " " << m << " x " << n << " x " << k
                                        << " aside " << before);
        ExpectSame([&](BackendSide& side) { return Multiply(side, {type, m, n, k}, before); });
        if (HasFailure()) return;
      }
    }
  }
}

// Past what the workspace holds at once: w is cut.
TEST_F(CudaProducts, MatMulCutsWeightsThatTheWorkspaceDoesNotHold) {
  ExpectSame([](BackendSide& side) { return Multiply(side, {DType::kQ8_0, 9, 20000, 1024}, 0); });
  ExpectSame(
      [](BackendSide& side) {
        return Multiply(side, {DType::kBF16, 9, 37000, 1024}, 0);
      },
      2e-2, DType::kBF16);
}

TEST_F(CudaProducts, MatMulInBf16RoundsOperandsAlone) {
  for (DType type : {DType::kF32, DType::kBF16, DType::kF16, DType::kQ4_1}) {
    for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
             {64, 257, 64}, {257, 64, 4096}, {64, 64, 7}, {9, 7, 257}, {64, 1, 32}}) {
      if (k % Info(type).block != 0) continue;
      SCOPED_TRACE(testing::Message() << Info(type).name << " " << m << " x " << n << " x " << k);
      for (int64_t before : {0, 1}) {
        ExpectSame(
            [&](BackendSide& side) {
              return Multiply(side, {type, m, n, k}, before);
            },
            1e-2, DType::kBF16);
      }
    }
  }
  // Few rows are multiplied in float32 here too.
  ExpectSame(
      [](BackendSide& side) {
        return Multiply(side, {DType::kBF16, 3, 257, 4096}, 0);
      },
      1e-5, DType::kBF16);
}

TEST_F(CudaProducts, MatMulNegativeControl) {
  BackendSide cpu(NewCpuBackend(DType::kF32, 1)), cuda(Gpu());
  const Product p{DType::kQ4_1, 64, 64, 64};
  EXPECT_FALSE(AllClose(Multiply(cuda, p, 0, 1)[0], Multiply(cpu, p, 0, 2)[0]));
  BackendSide bf16(Gpu(DType::kBF16));  // and bf16 products are told from float32 ones
  EXPECT_FALSE(AllClose(Multiply(bf16, p, 0)[0], Multiply(cpu, p, 0)[0]));
}

// --- attention -----------------------------------------------------------------------------------

struct Case {
  int64_t t, n, heads, kv_heads, head_dim;
  int64_t window = 0;
  bool causal = true;
  DType kv_type = DType::kF32;
  int64_t page_tokens = 0;         // 0: packed
  int64_t first = -1;              // position of the first query; -1: n - t, the prompt's end
  int64_t q_step = 1, k_step = 1;  // stripes: positions so far apart
  int64_t tiles = 1;               // keys are attended in so many tiles, continuing the carry
  int64_t before = 0;              // rows of q and o aside from alignment
  int32_t length = -1;             // keys that are there
  bool q_bf16 = false;             // q holds numbers that bf16 can hold
  bool activation = false;         // and is of the backend's type of activations
};

std::string Text(const Case& c) {
  return testing::PrintToString(std::vector<int64_t>{
      c.t, c.n, c.heads, c.kv_heads, c.head_dim, c.window, c.causal, int64_t(c.kv_type),
      c.page_tokens, c.first, c.q_step, c.k_step, c.tiles, c.before, c.length});
}

Results Attend(BackendSide& side, const Case& c) {
  Backend& ops = side.ops();
  const int64_t g = c.kv_heads, dim = c.head_dim;
  std::vector<int32_t> q_positions(c.t), k_positions(c.n), kv_index(c.heads);
  const int64_t first = c.first < 0 ? std::max<int64_t>(0, c.n - c.t) : c.first;
  for (int64_t i = 0; i < c.t; ++i) q_positions[i] = int32_t(first + i * c.q_step);
  for (int64_t i = 0; i < c.n; ++i) k_positions[i] = int32_t(i * c.k_step);
  for (int64_t i = 0; i < c.heads; ++i) kv_index[i] = int32_t(i * g / c.heads);

  KvView view;
  const auto keys = [&](uint64_t seed) {
    const Tensor x = side.Put(DType::kF32, {c.n, g, dim}, Random(c.n * g * dim, seed));
    if (c.page_tokens == 0) {
      const Tensor packed = side.Poisoned(c.kv_type, {c.n, g, dim});
      ops.Copy(side.s, x, packed);
      return packed;
    }
    const int64_t pages = (c.n + c.page_tokens - 1) / c.page_tokens;
    std::vector<int32_t> table(pages);  // the last page first
    for (int64_t i = 0; i < pages; ++i) table[i] = int32_t(pages - 1 - i);
    std::vector<int64_t> slots(c.n);
    for (int64_t i = 0; i < c.n; ++i) {
      slots[i] = table[i / c.page_tokens] * c.page_tokens + i % c.page_tokens;
    }
    const Tensor cache = side.Poisoned(c.kv_type, {pages * c.page_tokens, g, dim});
    ops.KvWrite(side.s, x, side.Put(DType::kI64, {c.n}, slots), cache);
    view.page_table = side.Put(DType::kI32, {pages}, table);
    view.page_tokens = c.page_tokens;
    return cache;
  };
  view.k = keys(1), view.v = keys(2);
  view.positions = side.Put(DType::kI32, {c.n}, k_positions);
  if (c.length >= 0) view.length = side.Put(DType::kI32, {1}, std::vector<int32_t>{c.length});
  AttentionSpec spec;
  spec.causal = c.causal, spec.window = c.window, spec.scale = 1.5 / std::sqrt(double(dim));

  Tensor q = side.Put(DType::kF32, {c.t, c.heads, dim}, Random(c.t * c.heads * dim, 3), c.before);
  if (c.q_bf16) {
    const Tensor narrow = side.Poisoned(DType::kBF16, {c.t, c.heads, dim});
    ops.Copy(side.s, q, narrow), ops.Copy(side.s, narrow, q);
  }
  if (c.activation) {
    const Tensor kept = side.Poisoned(ops.activation(), {c.t, c.heads, dim}, c.before);
    ops.Copy(side.s, q, kept);
    q = kept;
  }
  const Tensor o = side.Poisoned(DType::kF32, {c.t, c.heads, dim}, c.before);
  const Tensor lse = side.Poisoned(DType::kF32, {c.t, c.heads}, c.before);
  ops.Fill(side.s, o, 0), ops.Fill(side.s, lse, -INFINITY);
  const Tensor positions = side.Put(DType::kI32, {c.t}, q_positions);
  const Tensor index = side.Put(DType::kI32, {c.heads}, kv_index);
  for (int64_t i = 0; i < c.tiles; ++i) {
    const int64_t begin = c.n * i / c.tiles, end = c.n * (i + 1) / c.tiles;
    ops.AttendTile(side.s, q, positions, view, index, spec, Tile{0, c.t, begin, end - begin}, o,
                   lse);
  }
  EXPECT_TRUE(side.FrameIsWhole(o, c.before) && side.FrameIsWhole(lse, c.before));
  return {side.Floats(o), side.Floats(lse)};
}

TEST_F(CudaProducts, AttendsOverSizes) {
  for (int64_t t : {1, 7, 16, 64, 257}) {
    for (int64_t n : {1, 7, 64, 257, 4096}) {
      for (int64_t dim : {64, 128, 256}) {
        if (t * n * dim > int64_t{64} << 20) continue;
        const Case c{t, n, 3, 1, dim};
        SCOPED_TRACE(Text(c));
        ExpectSame([&](BackendSide& side) { return Attend(side, c); });
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(CudaProducts, AttendsInEveryWay) {
  std::vector<Case> cases;
  for (int64_t t : {1, 15, 100}) {
    Case c{t, 300, 5, 2, 64};
    cases.push_back(c);
    c.causal = false, cases.push_back(c);
    c.window = 40, cases.push_back(c);
    c.causal = true, cases.push_back(c);
    c = {t, 300, 4, 4, 64}, c.page_tokens = 16, cases.push_back(c);
    c.kv_type = DType::kBF16, c.tiles = 3, cases.push_back(c);
    c.page_tokens = 1, c.length = 250, cases.push_back(c);
    c = {t, 300, 8, 1, 64}, c.before = 1, cases.push_back(c);
    c.kv_type = DType::kBF16, cases.push_back(c);
    c = {t, 300, 4, 2, 64}, c.first = 0, cases.push_back(c);      // the first queries see few keys
    c.q_step = 2, c.k_step = 2, c.first = 1, cases.push_back(c);  // striped
    c.k_step = 5, c.first = 3, c.tiles = 2, cases.push_back(c);
    for (int64_t dim : {1, 7, 32, 65, 96, 200, 257, 512, 1024}) {
      c = {t, 130, 3, 3, dim}, c.tiles = 2, cases.push_back(c);
    }
  }
  for (const Case& c : cases) {
    SCOPED_TRACE(Text(c));
    ExpectSame([&](BackendSide& side) { return Attend(side, c); });
  }
}

// Shapes that tensor cores take where they are (kernels/attention_bf16.h), and shapes next to them
// that they do not. Beyond the rounding of q, which both sides share, probabilities are rounded.
TEST_F(CudaProducts, AttendsInBf16InEveryWay) {
  std::vector<Case> cases;
  for (int64_t dim : {64, 128, 256}) {
    for (int64_t t : {63, 64, 257}) {
      Case c{t, 400, 6, 2, dim};
      c.kv_type = DType::kBF16, c.q_bf16 = true, cases.push_back(c);
      c.causal = false, cases.push_back(c);
      c.tiles = 3, cases.push_back(c);
      c.causal = true, cases.push_back(c);
      c.window = 100, cases.push_back(c);
      c = {t, 400, 8, 1, dim}, c.kv_type = DType::kBF16, c.q_bf16 = true, c.before = 4;
      cases.push_back(c);
      c.first = 0, cases.push_back(c);                              // the first see few keys
      c.q_step = 2, c.k_step = 2, c.first = 1, cases.push_back(c);  // stripes of a ring
      c.k_step = 5, c.first = 3, c.tiles = 2, cases.push_back(c);
      c.before = 1, cases.push_back(c);  // rows aside from 16 bytes
      c = {t, 300, 3, 3, dim}, c.kv_type = DType::kBF16, c.q_bf16 = true, c.first = 250;
      cases.push_back(c);  // the last see all keys
    }
  }
  for (const Case& c : cases) {
    SCOPED_TRACE(Text(c));
    ExpectSame([&](BackendSide& side) { return Attend(side, c); }, 4e-3, DType::kBF16);
    Case kept = c;
    kept.activation = true, kept.before = 2 * c.before;  // rows at the same multiples of bytes
    ExpectSame([&](BackendSide& side) { return Attend(side, kept); }, 4e-3, DType::kBF16);
  }
}

// Chunks of queries: more than the workspace has room for at a time.
TEST_F(CudaProducts, AttendsToManyQueriesInBf16) {
  Case c{2200, 100, 64, 1, 256};
  c.kv_type = DType::kBF16, c.q_bf16 = true, c.first = 0;
  ExpectSame([&](BackendSide& side) { return Attend(side, c); }, 4e-3, DType::kBF16);
  c.activation = true;
  ExpectSame([&](BackendSide& side) { return Attend(side, c); }, 4e-3, DType::kBF16);
  c.window = 90;  // widened into the workspace, in parts
  ExpectSame([&](BackendSide& side) { return Attend(side, c); }, 4e-3, DType::kBF16);
}

// Negative controls: the tensor cores are told from the plain cores by their rounding, and a key
// too few is seen.
TEST_F(CudaProducts, AttentionInBf16IsToldFromFloat32) {
  BackendSide f32(Gpu()), bf16(Gpu(DType::kBF16));
  Case c{100, 300, 4, 2, 64};
  c.kv_type = DType::kBF16;
  const Results exact = Attend(f32, c);
  EXPECT_FALSE(AllClose(Attend(bf16, c)[0], exact[0], 1e-5));
  c.q_bf16 = true;
  const Results rounded = Attend(f32, c);
  EXPECT_TRUE(AllClose(Attend(bf16, c)[0], rounded[0], 4e-3));
  EXPECT_EQ(Attend(bf16, c), Attend(bf16, c));  // the same bits each time
  const Results cast = Attend(bf16, c);
  c.activation = true;  // where q is bf16 already nothing else changes
  EXPECT_EQ(Attend(bf16, c), cast);
  c.window = 299;  // plain cores: no rounding but q's
  EXPECT_EQ(Attend(bf16, c), Attend(f32, c));
  EXPECT_FALSE(AllClose(Attend(bf16, c)[0], rounded[0], 4e-3));
}

TEST_F(CudaProducts, ARowThatSeesNoKeyKeepsItsCarry) {
  BackendSide side(Gpu());
  for (int64_t t : {3, 40}) {
    Case c{t, 64, 2, 1, 64};
    c.first = 5, c.k_step = 10, c.q_step = 0;  // all queries at 5: key 0 alone is seen
    const Results few = Attend(side, c);
    EXPECT_NE(few[1][0], -INFINITY);
    c.length = 0;
    const Results none = Attend(side, c);
    for (float x : none[0]) ASSERT_EQ(x, 0.0f);
    for (float x : none[1]) ASSERT_EQ(x, -INFINITY);
  }
}

TEST_F(CudaProducts, AttentionHasTheSameBitsEachTime) {
  BackendSide side(Gpu());
  for (int64_t t : {1, 100}) {
    const Case c{t, 1000, 4, 2, 128};
    const Results once = Attend(side, c);
    for (int i = 0; i < 10; ++i) EXPECT_EQ(Attend(side, c), once);
  }
}

TEST_F(CudaProducts, AttentionNegativeControl) {
  BackendSide cpu(NewCpuBackend(DType::kF32, 1)), cuda(Gpu());
  for (int64_t t : {1, 100}) {
    Case c{t, 300, 4, 2, 64};
    const Results right = Attend(cpu, c);
    EXPECT_TRUE(AllClose(Attend(cuda, c)[0], right[0]));
    c.window = 299;  // one key less for the last queries
    EXPECT_FALSE(AllClose(Attend(cuda, c)[0], right[0]));
  }
}

TEST_F(CudaProducts, MergesAttention) {
  for (int64_t parts : {1, 2, 7}) {
    for (int64_t dim : {1, 64, 257}) {
      const int64_t t = 7, h = 3;
      std::vector<float> lse = Random(parts * t * h, 1, 5);
      for (int64_t i = 0; i < parts; ++i) lse[i * t * h] = -INFINITY;  // row 0: nobody
      for (int64_t i = 1; i < parts; ++i) lse[i * t * h + 1] = -INFINITY;
      SCOPED_TRACE(testing::Message() << parts << " x " << dim);
      ExpectSame([&](BackendSide& side) -> Results {
        const Tensor o_parts =
            side.Put(DType::kF32, {parts, t, h, dim}, Random(parts * t * h * dim, 2));
        const Tensor out = side.Poisoned(DType::kF32, {t, h, dim}, 1);
        side.ops().AttentionMerge(side.s, o_parts, side.Put(DType::kF32, {parts, t, h}, lse), out);
        EXPECT_TRUE(side.FrameIsWhole(out, 1));
        return {side.Floats(out)};
      });
    }
  }
}

}  // namespace
}  // namespace toroid
