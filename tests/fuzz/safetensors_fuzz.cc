// Any bytes as a safetensors file: what is accepted must be covered exactly by its tensors.
#include <cstddef>
#include <cstdint>

#include "core/io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace toroid;
  const auto tensors = ParseSafetensors({data, size}, "f");
  if (!tensors.ok()) return 0;
  uint64_t sum = 0, covered = 0;
  for (const SafetensorsTensor& tensor : *tensors) {
    uint64_t elements = 1;
    for (const int64_t dim : tensor.shape) elements *= uint64_t(dim);
    if (elements * uint64_t(Info(tensor.dtype).bytes) != tensor.data.size()) __builtin_trap();
    if (tensor.data.data() < data || tensor.data.data() + tensor.data.size() > data + size) {
      __builtin_trap();
    }
    covered += tensor.data.size();
    if (!tensor.data.empty()) sum += tensor.data.front() + tensor.data.back();
  }
  uint64_t header = 0;
  for (int i = 7; i >= 0; --i) header = header << 8 | data[i];
  if (8 + header + covered != size) __builtin_trap();
  asm volatile("" : : "r"(sum));  // what was read counts as used
  return 0;
}
