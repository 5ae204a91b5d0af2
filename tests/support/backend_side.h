// The same ops on two backends: a side is one of them with its compute stream and the memory of a
// test. OnGpu::ExpectSame runs a body on the CPU and on the GPU.
//
// Results lie in poisoned memory (NaN), so that an element which nobody wrote is never close, and
// inside a wider poisoned frame, so that one written too far is found (FrameIsWhole).
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <functional>
#include <vector>

#include "core/backend.h"
#include "tests/support/all_close.h"

namespace toroid {

class BackendSide {
 public:
  explicit BackendSide(std::unique_ptr<Backend> backend)
      : backend_(std::move(backend)), s(backend_->NewStream(/*communication=*/false)) {}
  ~BackendSide() { Clear(); }
  // Frees the tensors made so far.
  void Clear() {
    for (const auto& [data, bytes] : memory_) backend_->Free(data, bytes);
    memory_.clear();
  }

  Backend& ops() { return *backend_; }

  // Tensors of `shape`, holding `host` or poison. A row is `before` elements to the right of the
  // start of its frame, which is 2 `before` wider than the row: odd numbers spoil every alignment.
  template <typename T>
  Tensor Put(DType type, std::initializer_list<int64_t> shape, const std::vector<T>& host,
             int64_t before = 0) {
    Tensor x = Poisoned(type, shape, before);
    EXPECT_EQ(x.bytes(), int64_t(host.size() * sizeof(T)));
    backend_->Upload(s, host.data(), x);
    return x;
  }
  Tensor Poisoned(DType type, std::initializer_list<int64_t> shape, int64_t before = 0) {
    Tensor x(type, shape, nullptr);
    x.stride += 2 * before;
    const int64_t bytes = RowBytes(type, x.stride * x.rows());
    auto data = backend_->Allocate(bytes);
    EXPECT_TRUE(data.ok()) << data.status();
    memory_.push_back({*data, bytes});
    const std::vector<uint8_t> poison(size_t(bytes), 0xff);
    backend_->Upload(s, poison.data(), Tensor(DType::kU8, {bytes}, *data));
    x.data = static_cast<char*>(*data) + RowBytes(type, before);
    return x;
  }

  template <typename T>
  std::vector<T> Get(Tensor x) {
    std::vector<T> host(size_t(x.bytes()) / sizeof(T));
    backend_->Download(s, x, host.data());
    return host;
  }
  std::vector<float> Floats(Tensor x) { return Get<float>(x); }

  // True if the frame of a tensor made with `before` is still poison.
  bool FrameIsWhole(Tensor x, int64_t before) {
    Tensor frame(DType::kU8, {RowBytes(x.dtype, x.stride * x.rows())},
                 static_cast<char*>(x.data) - RowBytes(x.dtype, before));
    const std::vector<uint8_t> bytes = Get<uint8_t>(frame);
    const int64_t stride = RowBytes(x.dtype, x.stride), skip = RowBytes(x.dtype, before);
    for (int64_t i = 0; i < int64_t(bytes.size()); ++i) {
      const int64_t at = i % stride;
      if ((at < skip || at >= skip + x.row_bytes()) && bytes[i] != 0xff) return false;
    }
    return true;
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::deque<std::pair<void*, int64_t>> memory_;

 public:
  const Stream s;
};

using Results = std::vector<std::vector<float>>;

// Tests of the GPU against the CPU. Prints SKIPPED where there is no GPU, or no CUDA in this build.
class OnGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (CudaDevices() == 0) GTEST_SKIP() << NewCudaBackend({}).status().message();
  }

  static std::unique_ptr<Backend> Gpu(DType product = DType::kF32) {
    CudaOptions options;
    options.product = product;  // what the GPU multiplies matrices in
    auto gpu = NewCudaBackend(options);
    EXPECT_TRUE(gpu.ok()) << gpu.status();
    return gpu.ok() ? std::move(*gpu) : nullptr;
  }

  // What `body` returns on the CPU and on the GPU, element by element within `tolerance` of the
  // largest.
  void ExpectSame(const std::function<Results(BackendSide&)>& body,
                  double tolerance = Tolerance<float>::kForward, DType product = DType::kF32) {
    std::unique_ptr<BackendSide>& gpu = product == DType::kF32 ? f32_ : bf16_;
    if (cpu_ == nullptr) cpu_ = std::make_unique<BackendSide>(NewCpuBackend(DType::kF32, 2));
    if (gpu == nullptr) gpu = std::make_unique<BackendSide>(Gpu(product));
    const Results expected = body(*cpu_), actual = body(*gpu);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      EXPECT_TRUE(AllClose(actual[i], expected[i], tolerance)) << "result " << i;
    }
    cpu_->Clear(), gpu->Clear();
  }

 private:
  std::unique_ptr<BackendSide> cpu_, f32_, bf16_;
};

}  // namespace toroid
