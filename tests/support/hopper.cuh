// What tests of Hopper kernels share: arrays on the device, and a fixture that skips elsewhere.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

namespace toroid {

inline void Ok(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

template <typename T>
struct DeviceArray {
  T* data = nullptr;
  size_t size = 0;

  explicit DeviceArray(size_t n) : size(n) {
    Ok(cudaMalloc(&data, n * sizeof(T) + 1));
    Ok(cudaMemset(data, 0xff, n * sizeof(T)));  // NaN, as bf16, float and double
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) { Set(host); }
  ~DeviceArray() { cudaFree(data); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  void Set(const std::vector<T>& host) {
    Ok(cudaMemcpy(data, host.data(), size * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> Get() const {
    std::vector<T> host(size);
    Ok(cudaMemcpy(host.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
};

inline std::vector<__nv_bfloat16> NormalBf16(size_t count, float spread, std::mt19937& random) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<__nv_bfloat16> x(count);
  for (__nv_bfloat16& value : x) value = __float2bfloat16(normal(random));
  return x;
}

class HopperTest : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0, major = 0, minor = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "no CUDA device";
    }
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    if (major != 9 || minor != 0) GTEST_SKIP() << "no device of compute capability 9.0";
  }
};

}  // namespace toroid
