// Ops that a device may do in one pass, against the ops that they stand for: on a CPU their very
// bits, on a GPU the CPU's numbers. And products whose algorithm is measured.
#include <gtest/gtest.h>

#include "tests/support/backend_side.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using CudaOnePass = OnGpu;

std::vector<float> Random(int64_t size, uint64_t seed) {
  return As<float>(RandomArray(size, seed, 1));
}

struct Shape {
  int64_t m, n, k;
};

// out = addend + x w^T elsewhere, and in the addend's place.
Results Add(BackendSide& side, const Shape& p, int64_t before, bool one_by_one) {
  Backend& ops = side.ops();
  const Tensor x = side.Put(DType::kF32, {p.m, p.k}, Random(p.m * p.k, 1), before);
  const Tensor w = side.Put(DType::kBF16, {p.n, p.k}, RandomWeights(DType::kBF16, p.n, p.k, 2));
  const Tensor addend = side.Put(DType::kF32, {p.m, p.n}, Random(p.m * p.n, 3), before);
  const Tensor out = side.Poisoned(DType::kF32, {p.m, p.n}, before);
  const Tensor room = side.Poisoned(DType::kF32, {p.m, p.n});
  if (one_by_one) {
    ops.MatMul(side.s, x, w, Tensor(), room);
    ops.Copy(side.s, addend, out);
    ops.Add(side.s, out, room);
    ops.Add(side.s, addend, room);
  } else {
    ops.MatMulAdd(side.s, x, w, addend, room, out);
    ops.MatMulAdd(side.s, x, w, addend, room, addend);
  }
  EXPECT_TRUE(side.FrameIsWhole(out, before) && side.FrameIsWhole(addend, before));
  return {side.Floats(out), side.Floats(addend)};
}

Results NormBackward(BackendSide& side, int64_t rows, int64_t dim, int64_t before,
                     bool one_by_one) {
  Backend& ops = side.ops();
  const Tensor x = side.Put(DType::kF32, {rows, dim}, Random(rows * dim, 1), before);
  const Tensor gain = side.Put(DType::kF32, {dim}, Random(dim, 2));
  const Tensor dgain = side.Put(DType::kF32, {dim}, Random(dim, 3));
  const Tensor dout = side.Put(DType::kF32, {rows, dim}, Random(rows * dim, 4), before);
  const Tensor dx = side.Put(DType::kF32, {rows, dim}, Random(rows * dim, 5), before);
  if (one_by_one) {
    ops.RmsNormBackward(side.s, x, gain, 1e-5, dout, dout, dgain);
    ops.Add(side.s, dx, dout);
  } else {
    ops.RmsNormBackwardAdd(side.s, x, gain, 1e-5, dout, dx, dgain);
  }
  EXPECT_TRUE(side.FrameIsWhole(dx, before));
  return {side.Floats(dx), side.Floats(dgain)};
}

TEST(OnePass, OnACpuItHasTheBitsOfTheOpsOneByOne) {
  BackendSide cpu(NewCpuBackend(DType::kF32, 2));
  for (const Shape& shape : {Shape{1, 64, 64}, Shape{9, 257, 64}, Shape{64, 64, 96}}) {
    EXPECT_EQ(Add(cpu, shape, 1, false), Add(cpu, shape, 1, true));
  }
  EXPECT_EQ(NormBackward(cpu, 7, 257, 1, false), NormBackward(cpu, 7, 257, 1, true));
}

TEST_F(CudaOnePass, ProductsAreAdded) {
  for (const Shape& shape : {Shape{1, 64, 64}, Shape{8, 257, 64}, Shape{9, 64, 64},
                             Shape{64, 257, 96}, Shape{257, 64, 7}, Shape{257, 1, 64}}) {
    for (const int64_t before : {0, 1}) {
      SCOPED_TRACE(testing::Message() << shape.m << " x " << shape.n << " x " << shape.k);
      ExpectSame([&](BackendSide& side) { return Add(side, shape, before, false); });
      ExpectSame([&](BackendSide& side) { return Add(side, shape, before, false); }, 1e-2,
                 DType::kBF16);
    }
  }
}

TEST_F(CudaOnePass, GradientsOfNormsAreAdded) {
  for (const int64_t dim : {5, 64, 257, 2048, 4096, 8192}) {
    for (const int64_t rows : {1, 7, 257}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << dim);
      for (const int64_t before : {0, 1}) {
        ExpectSame([&](BackendSide& side) { return NormBackward(side, rows, dim, before, false); },
                   2e-5);
      }
    }
  }
}

// Whichever algorithm is chosen, the product is the same up to rounding, what C held is not in it,
// and it stays chosen.
TEST_F(CudaOnePass, MeasuredProductsAreTheSame) {
  CudaOptions options;
  options.product = DType::kBF16;
  BackendSide first(Gpu(DType::kBF16));
  options.measures = true;
  auto backend = NewCudaBackend(options);
  ASSERT_TRUE(backend.ok()) << backend.status();
  BackendSide measured(std::move(*backend));
  const Shape shape{1024, 2048, 1024};  // 4.3 GFLOP: long enough to be measured
  const Results expected = Add(first, shape, 0, false), actual = Add(measured, shape, 0, false);
  EXPECT_TRUE(AllClose(actual[0], expected[0], 1e-5));
  EXPECT_TRUE(AllClose(actual[1], expected[1], 1e-5));
  EXPECT_EQ(Add(measured, shape, 0, false), actual);
}

TEST_F(CudaOnePass, WhatIsAddedMatters) {  // negative control
  BackendSide gpu(Gpu());
  const Results sums = Add(gpu, {64, 64, 64}, 0, false);
  const Tensor x = gpu.Put(DType::kF32, {64, 64}, Random(64 * 64, 1));
  const Tensor w = gpu.Put(DType::kBF16, {64, 64}, RandomWeights(DType::kBF16, 64, 64, 2));
  const Tensor product = gpu.Poisoned(DType::kF32, {64, 64});
  gpu.ops().MatMul(gpu.s, x, w, Tensor(), product);
  EXPECT_FALSE(AllClose(gpu.Floats(product), sums[0]));
}

}  // namespace
}  // namespace toroid
