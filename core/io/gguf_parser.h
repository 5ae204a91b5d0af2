// The one pass over a GGUF file that checks and collects it; used by gguf.cc alone. Layout:
//   magic "GGUF", u32 version, u64 tensors, u64 keys, keys, tensor infos, padding, tensor data
//   key:    string name, u32 type, value        string: u64 length, bytes
//   array:  u32 element type, u64 count, elements
//   info:   string name, u32 dims, u64 dim (innermost first) each, u32 ggml type, u64 offset
// Offsets count from the data's begin, a multiple of general.alignment (32 unless the key says
// else).
#pragma once

#include <string>
#include <vector>

#include "core/io/gguf.h"

namespace toroid {

class GgufParser {
 public:
  GgufParser(absl::Span<const uint8_t> bytes, const std::string& name)
      : bytes_(bytes), name_(name) {}

  absl::Status Parse(absl::flat_hash_map<std::string, GgufValue>& values,
                     std::vector<GgufTensor>& tensors, absl::Span<const uint8_t>& header);

 private:
  absl::Status Bad(absl::string_view rule) const;
  template <typename T>
  absl::Status Read(T& out, absl::string_view what);
  absl::Status Skip(uint64_t count, absl::string_view what);
  absl::Status ReadString(std::string& out, absl::string_view what);
  absl::Status ReadValue(const std::string& key, GgufValue& value);
  // One element, or a run of `count` elements of a fixed width.
  absl::Status SkipElements(GgufValue::Type type, uint64_t count, const std::string& key);
  // Adds the tensor, without its bytes, and moves `expected`, where the next one must begin.
  absl::Status ReadTensor(std::vector<GgufTensor>& tensors, uint64_t& expected);
  // Bytes of a tensor, all sizes checked.
  absl::Status ReadType(GgufTensor& tensor, uint64_t elements, uint64_t& size);
  absl::Status ReadAlignment(const absl::flat_hash_map<std::string, GgufValue>& values);

  absl::Span<const uint8_t> bytes_;
  const std::string& name_;
  size_t at_ = 0;
  uint64_t alignment_ = 32;
  struct Extent {
    uint64_t offset, size;
  };
  std::vector<Extent> extents_;  // of each tensor, from the data's begin
};

}  // namespace toroid
