// Memory, streams, and the ops along rows: the GPU against the CPU, over types and awkward sizes.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/backend_side.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

constexpr int64_t kSizes[] = {1, 7, 64, 257, 4096};
constexpr DType kReals[] = {DType::kF32, DType::kF64, DType::kBF16};

std::vector<float> Random(int64_t size, uint64_t seed, double deviation = 1) {
  return As<float>(RandomArray(size, seed, deviation));
}

TEST(NoCuda, IsAnErrorWithARemedy) {
  if (CudaDevices() > 0) GTEST_SKIP() << "there is a GPU";
  const auto gpu = NewCudaBackend({});
  ASSERT_FALSE(gpu.ok());
  EXPECT_EQ(gpu.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(gpu.status().message()).find("--device cpu"), std::string::npos);
}

using CudaBackend = OnGpu;

TEST_F(CudaBackend, RefusesADeviceThatIsNotThereAndMoreMemoryThanThereIs) {
  CudaOptions options;
  options.device = CudaDevices();
  EXPECT_EQ(NewCudaBackend(options).status().code(), absl::StatusCode::kFailedPrecondition);
  const auto gpu = Gpu();
  const auto data = gpu->Allocate(int64_t{1} << 50);
  ASSERT_FALSE(data.ok());
  EXPECT_EQ(data.status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_NE(std::string(data.status().message()).find("1125899906842624"), std::string::npos);
  const auto less = gpu->Allocate(1000);  // the refusal has not broken the context
  ASSERT_TRUE(less.ok()) << less.status();
  gpu->Free(*less, 1000);
}

TEST_F(CudaBackend, UploadsAreReadAtTheCallAndReachStridedViews) {
  BackendSide gpu(Gpu());
  for (int64_t rows : kSizes) {  // small ones through the pinned ring, 4096 past it
    std::vector<float> host = Random(rows * 5, 1);
    const std::vector<float> kept = host;
    const Tensor x = gpu.Poisoned(DType::kF32, {rows, 5}, 3);
    gpu.ops().Upload(gpu.s, host.data(), x);
    std::fill(host.begin(), host.end(), -1.0f);
    EXPECT_EQ(gpu.Floats(x), kept) << rows;
    EXPECT_TRUE(gpu.FrameIsWhole(x, 3)) << rows;
  }
  std::vector<Tensor> many;  // more uploads at once than the ring has slots
  for (int32_t i = 0; i < 200; ++i) {
    many.push_back(gpu.Poisoned(DType::kI32, {1}));
  }
  for (int32_t i = 0; i < 200; ++i) gpu.ops().Upload(gpu.s, &i, many[i]);
  for (int32_t i = 0; i < 200; ++i) EXPECT_EQ(gpu.Get<int32_t>(many[i])[0], i);
}

// What lies in device arrays may differ each time; what the host knew stays as it was.
TEST_F(CudaBackend, KeepsWorkUntilMemoryIsFreed) {
  BackendSide gpu(Gpu());
  Backend& ops = gpu.ops();
  ASSERT_TRUE(ops.repeats());
  const Tensor x = gpu.Poisoned(DType::kF32, {1000}), sum = gpu.Poisoned(DType::kF32, {1000});
  ops.Fill(gpu.s, sum, 0);
  int calls = 0;
  double factor = 2;
  const auto again = [&](int64_t key) {
    ops.Repeat(gpu.s, {key, 0, 0, 0}, [&] {
      ++calls;
      ops.Scale(gpu.s, x, factor);
      ops.Add(gpu.s, sum.Reshape({1, 1000}), x.Reshape({1, 1000}));
    });
  };
  for (int i = 1; i <= 3; ++i) {
    gpu.ops().Upload(gpu.s, std::vector<float>(1000, float(i)).data(), x);
    again(1);
    factor = 100;
  }
  EXPECT_EQ(gpu.Floats(sum), std::vector<float>(1000, 12));  // 2 (1 + 2 + 3)
  EXPECT_EQ(calls, 1);
  again(2);  // another key: made anew
  EXPECT_EQ(gpu.Floats(sum), std::vector<float>(1000, 612));
  EXPECT_EQ(calls, 2);
  ops.Free(*ops.Allocate(1), 1);
  again(1);
  EXPECT_EQ(gpu.Floats(sum), std::vector<float>(1000, 60612));
  EXPECT_EQ(calls, 3);
}

// The one stream keeps filling; the other copies what it waited for.
TEST_F(CudaBackend, ForkAndJoinOrderTwoStreams) {
  BackendSide gpu(Gpu());
  const Stream comm = gpu.ops().NewStream(/*communication=*/true);
  const int64_t rows = 4096, cols = 4096;
  const Tensor x = gpu.Poisoned(DType::kF32, {rows, cols});
  const Tensor y = gpu.Poisoned(DType::kF32, {rows, cols});
  for (int round = 1; round <= 5; ++round) {
    for (int i = 0; i < 20; ++i) gpu.ops().Fill(gpu.s, x, -1);
    gpu.ops().Fill(gpu.s, x, round);
    gpu.ops().Fork(gpu.s, comm);  // comm waits for the fill
    gpu.ops().Copy(comm, x, y);
    gpu.ops().Join(gpu.s, comm);  // the next fills wait for the copy
  }
  gpu.ops().Fill(gpu.s, x, -1);
  gpu.ops().Synchronize(gpu.s);
  const std::vector<float> copied = gpu.Floats(y);
  EXPECT_EQ(copied, std::vector<float>(size_t(rows * cols), 5.0f));
}

TEST_F(CudaBackend, CopiesConvertAsTheCpuDoes) {
  for (DType from : kReals) {
    for (DType to : kReals) {
      for (int64_t n : kSizes) {
        SCOPED_TRACE(testing::Message() << Info(from).name << " to " << Info(to).name << ", " << n);
        const int64_t before = n % 2;  // odd sizes in a frame
        const auto body = [&](BackendSide& side) -> Results {
          const Tensor x = side.Put(DType::kF64, {3, n}, RandomArray(3 * n, 1), before);
          const Tensor mid = side.Poisoned(from, {3, n}, before);
          const Tensor out = side.Poisoned(to, {3, n}, before);
          const Tensor wide = side.Poisoned(DType::kF32, {3, n});
          side.ops().Copy(side.s, x, mid);
          side.ops().Copy(side.s, mid, out);
          side.ops().Copy(side.s, out, wide);
          EXPECT_TRUE(side.FrameIsWhole(out, before));
          return {side.Floats(wide)};
        };
        ExpectSame(body, 0.0);
      }
    }
  }
}

TEST_F(CudaBackend, FillsAndAdds) {
  BackendSide gpu(Gpu());
  for (DType type : {DType::kF32, DType::kF64, DType::kBF16, DType::kI32, DType::kI64}) {
    const Tensor x = gpu.Poisoned(type, {257, 7}, 1);
    gpu.ops().Fill(gpu.s, x, 3);
    EXPECT_TRUE(gpu.FrameIsWhole(x, 1)) << Info(type).name;
    const Tensor wide = gpu.Poisoned(DType::kF32, {257, 7});
    if (type == DType::kI64) {
      EXPECT_EQ(gpu.Get<int64_t>(x), std::vector<int64_t>(257 * 7, 3));
    } else if (type == DType::kI32) {
      EXPECT_EQ(gpu.Get<int32_t>(x), std::vector<int32_t>(257 * 7, 3));
    } else {
      gpu.ops().Copy(gpu.s, x, wide);
      EXPECT_EQ(gpu.Floats(wide), std::vector<float>(257 * 7, 3.0f));
    }
  }
  for (int64_t n : kSizes) {
    for (int64_t y_rows : {1, 7}) {
      ExpectSame(
          [&](BackendSide& side) -> Results {
            const Tensor x = side.Put(DType::kF32, {7, n}, Random(7 * n, 1), 1);
            side.ops().Add(side.s, x, side.Put(DType::kF32, {y_rows, n}, Random(y_rows * n, 2)));
            EXPECT_TRUE(side.FrameIsWhole(x, 1));
            return {side.Floats(x)};
          },
          0.0);
    }
  }
}

TEST_F(CudaBackend, Embeds) {
  for (DType type : {DType::kF32, DType::kF64, DType::kF16, DType::kBF16, DType::kQ8_0,
                     DType::kQ4_0, DType::kQ4_1}) {
    for (int64_t dim : {1, 7, 64, 257, 4096}) {
      if (dim % Info(type).block != 0) continue;
      SCOPED_TRACE(testing::Message() << Info(type).name << " " << dim);
      const std::vector<uint8_t> table = RandomWeights(type, 9, dim, 5);
      const std::vector<int32_t> ids = {105, 100, 99, 108, 109, 103, 0};
      ExpectSame(
          [&](BackendSide& side) -> Results {
            const Tensor out = side.Poisoned(DType::kF32, {7, dim}, 1);
            side.ops().Embed(side.s, side.Put(DType::kI32, {7}, ids),
                             side.Put(type, {9, dim}, table), 100, out);
            EXPECT_TRUE(side.FrameIsWhole(out, 1));
            return {side.Floats(out)};
          },
          1e-6);
    }
  }
}

TEST_F(CudaBackend, RmsNorms) {
  for (int64_t dim : kSizes) {
    for (int64_t rows : {1, 7, 257}) {
      for (DType gain_type : {DType::kF32, DType::kF64}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << dim);
        ExpectSame([&](BackendSide& side) -> Results {
          const Tensor x = side.Put(DType::kF32, {rows, dim}, Random(rows * dim, 1), 1);
          const Tensor gain = gain_type == DType::kF32
                                  ? side.Put(gain_type, {dim}, Random(dim, 2))
                                  : side.Put(gain_type, {dim}, RandomArray(dim, 2));
          const Tensor out = side.Poisoned(DType::kF32, {rows, dim}, 1);
          side.ops().RmsNorm(side.s, x, gain, 1e-5, out);
          side.ops().RmsNorm(side.s, x, gain, 1e-5, x);  // in place
          EXPECT_TRUE(side.FrameIsWhole(out, 1));
          return {side.Floats(out), side.Floats(x)};
        });
      }
    }
  }
  ExpectSame([](BackendSide& side) -> Results {  // heads in a fused product
    const Tensor x = side.Put(DType::kF32, {7, 5, 64}, Random(7 * 5 * 64, 1), 1);
    side.ops().RmsNorm(side.s, x, side.Put(DType::kF32, {64}, Random(64, 2)), 1e-5, x);
    EXPECT_TRUE(side.FrameIsWhole(x, 1));
    return {side.Floats(x)};
  });
}

TEST_F(CudaBackend, Ropes) {
  for (int64_t dim : {2, 64, 128, 256}) {
    for (int64_t t : kSizes) {
      if (t * dim > 1 << 18) continue;
      SCOPED_TRACE(testing::Message() << t << " x " << dim);
      std::vector<int32_t> positions(t);
      for (int64_t i = 0; i < t; ++i) positions[i] = int32_t(i * 1000003 % 1048576);
      std::vector<double> inv_freq(dim / 2);
      for (int64_t i = 0; i < dim / 2; ++i) {
        inv_freq[i] = std::pow(10000.0, -2.0 * double(i) / double(dim));
      }
      ExpectSame([&](BackendSide& side) -> Results {
        const Tensor x = side.Put(DType::kF32, {t, 3, dim}, Random(t * 3 * dim, 1), 1);
        side.ops().Rope(side.s, x, side.Put(DType::kI32, {t}, positions),
                        side.Put(DType::kF64, {dim / 2}, inv_freq), 1.25);
        EXPECT_TRUE(side.FrameIsWhole(x, 1));
        return {side.Floats(x)};
      });
    }
  }
}

TEST_F(CudaBackend, WritesTheCache) {
  for (DType type : kReals) {
    for (int64_t t : kSizes) {
      SCOPED_TRACE(testing::Message() << Info(type).name << " " << t);
      std::vector<int64_t> slots(t);
      for (int64_t i = 0; i < t; ++i) slots[i] = i % 3 == 2 ? -1 : t - 1 - i;
      ExpectSame(
          [&](BackendSide& side) -> Results {
            const Tensor x = side.Put(DType::kF32, {t, 2, 7}, Random(t * 14, 1), 1);
            const Tensor narrowed = side.Poisoned(type, {t, 2, 7}, 1);
            side.ops().Copy(side.s, x, narrowed);
            const Tensor cache = side.Poisoned(type, {2 * t, 2, 7});
            side.ops().Fill(side.s, cache, 9);  // rows that no slot names stay
            const Tensor to = side.Put(DType::kI64, {t}, slots);
            side.ops().KvWrite(side.s, x, to, cache.Rows(0, t));
            side.ops().KvWrite(side.s, narrowed, to, cache.Rows(t, t));
            const Tensor wide = side.Poisoned(DType::kF32, {2 * t, 2, 7});
            side.ops().Copy(side.s, cache, wide);
            return {side.Floats(wide)};
          },
          0.0);
    }
  }
}

TEST_F(CudaBackend, SwiGlus) {
  for (int64_t n : kSizes) {
    ExpectSame([&](BackendSide& side) -> Results {
      const Tensor gate = side.Put(DType::kF32, {7, n}, Random(7 * n, 1, 4), 1);
      const Tensor up = side.Put(DType::kF32, {7, n}, Random(7 * n, 2));
      const Tensor out = side.Poisoned(DType::kF32, {7, n}, 1);
      side.ops().SwiGlu(side.s, gate, up, out);
      side.ops().SwiGlu(side.s, gate, up, gate);  // in place
      EXPECT_TRUE(side.FrameIsWhole(out, 1));
      return {side.Floats(out), side.Floats(gate)};
    });
  }
}

TEST_F(CudaBackend, FoldsAndMergesTheVocabulary) {
  const double none = -std::numeric_limits<double>::infinity();
  for (int64_t n : kSizes) {
    SCOPED_TRACE(n);
    const int64_t t = 7;
    std::vector<float> logits = Random(2 * t * n, 1, 10);
    for (int64_t i = 0; i < n; ++i) logits[i] = -INFINITY;  // row 0 of the first tile: nothing
    std::vector<int32_t> labels = {0, int32_t(n), int32_t(2 * n - 1), -5, int32_t(2 * n), 0, 0};
    ExpectSame([&](BackendSide& side) -> Results {
      const Tensor stat = side.Put(DType::kF64, {t, 3}, std::vector<double>(3 * t, none));
      side.ops().Fill(side.s, stat.Cols(1, 1), 0);
      const Tensor all = side.Put(DType::kF32, {2 * t, n}, logits, 1);
      const Tensor labels_t = side.Put(DType::kI32, {t}, labels);
      side.ops().VocabStatistics(side.s, all.Rows(0, t), 0, labels_t, stat);
      side.ops().VocabStatistics(side.s, all.Rows(t, t), n, labels_t, stat);
      const Tensor parts = side.Poisoned(DType::kF64, {3 * t, 3});  // the second shard is empty
      side.ops().Copy(side.s, stat, parts.Rows(0, t));
      side.ops().Copy(side.s, stat, parts.Rows(2 * t, t));
      side.ops().Fill(side.s, parts.Rows(t, t), none);
      side.ops().Fill(side.s, parts.Rows(t, t).Cols(1, 1), 0);
      const Tensor log_p = side.Poisoned(DType::kF64, {t}), log_z = side.Poisoned(DType::kF64, {t});
      side.ops().VocabMerge(side.s, parts.Reshape({3, t, 3}), log_p, log_z);
      const std::vector<double> p = side.Get<double>(log_p), z = side.Get<double>(log_z);
      return {std::vector<float>(p.begin(), p.end()), std::vector<float>(z.begin(), z.end())};
    });
  }
}

// Negative control of this file: a comparison that cannot fail proves nothing.
TEST_F(CudaBackend, TheComparisonSeesAWrongElement) {
  const auto softly_wrong = [](BackendSide& side) {
    std::vector<float> x = Random(257, 1);
    const bool gpu = side.s.native != nullptr;
    if (gpu) x[255] += 1e-3f;
    const Tensor up = side.Put(DType::kF32, {1, 257}, Random(257, 2));
    const Tensor gate = side.Put(DType::kF32, {1, 257}, x);
    side.ops().SwiGlu(side.s, gate, up, gate);
    return side.Floats(gate);
  };
  BackendSide cpu(NewCpuBackend(DType::kF32, 1)), gpu(Gpu());
  EXPECT_FALSE(AllClose(softly_wrong(gpu), softly_wrong(cpu)));
  const Tensor x = gpu.Poisoned(DType::kF32, {7, 7}, 1);  // one row too many
  gpu.ops().Fill(gpu.s, Tensor(DType::kF32, {1, 10}, x.data), 0);
  EXPECT_FALSE(gpu.FrameIsWhole(x, 1));
  EXPECT_FALSE(AllClose(gpu.Floats(x), std::vector<float>(49, 0.0f)));  // poison is never close
}

}  // namespace
}  // namespace toroid
