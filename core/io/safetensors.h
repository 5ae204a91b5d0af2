// Reader of safetensors files: 8 bytes of header length, a JSON header, tensor bytes.
//
// The bytes are untrusted. The rules of the format are all enforced: the header is at most
// 100,000,000 bytes and begins with '{'; names appear once; sizes do not overflow and agree with
// the offsets; the offsets cover the data exactly, without hole or overlap. Views lie in the parsed
// bytes, which must outlive the result.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/dtype.h"

namespace toroid {

struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // empty: one number
  absl::Span<const uint8_t> data;
};

// In the order of their bytes. InvalidArgument naming the broken rule; Unimplemented for an element
// type that toroid does not read (it reads F64, F32, F16, BF16, I64, I32, U8). `name` (a path)
// begins every message.
absl::StatusOr<std::vector<SafetensorsTensor>> ParseSafetensors(absl::Span<const uint8_t> bytes,
                                                                const std::string& name);

}  // namespace toroid
