// Reader of GGUF version 3 files (little-endian): typed keys and a table of tensors over mapped
// bytes.
//
// The bytes are untrusted. Parse checks every rule before anything is used: known version and
// types, no duplicate key or tensor, each tensor where the sizes before it put it, all of them
// inside the file. Nothing is allocated beyond a small multiple of what the file itself holds.
// Values are views into the bytes, which must outlive the GgufFile. Immutable after Parse, hence
// thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/dtype.h"

namespace toroid {

// One value of the key table: a scalar, a string or an array of either.
struct GgufValue {
  enum Type : uint32_t {
    kUint8,
    kInt8,
    kUint16,
    kInt16,
    kUint32,
    kInt32,
    kFloat32,
    kBool,
    kString,
    kArray,
    kUint64,
    kInt64,
    kFloat64
  };
  Type type = kUint8;  // of the elements, for an array
  bool is_array = false;
  uint64_t count = 1;              // elements
  absl::Span<const uint8_t> data;  // as in the file; strings carry their lengths
};

struct GgufTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t>
      shape;  // outermost first: [rows, cols] of a matrix (the file has it reversed)
  absl::Span<const uint8_t> data;
};

class GgufFile {
 public:
  // InvalidArgument naming the rule that the bytes break; Unimplemented for a tensor type that
  // toroid does not read, by its ggml name. `name` (a path) begins every message of this object.
  static absl::StatusOr<GgufFile> Parse(absl::Span<const uint8_t> bytes, const std::string& name);

  const std::string& name() const { return name_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const absl::flat_hash_map<std::string, GgufValue>& values() const { return values_; }
  // Bytes before the first tensor: keys and table.
  absl::Span<const uint8_t> header() const { return header_; }

  bool Has(const std::string& key) const { return values_.contains(key); }
  // The value of a key. NotFound if it is absent, InvalidArgument if it has another kind. Int takes
  // any integer type, Double any number.
  absl::StatusOr<int64_t> Int(const std::string& key) const;
  absl::StatusOr<double> Double(const std::string& key) const;
  absl::StatusOr<bool> Bool(const std::string& key) const;
  absl::StatusOr<std::string> String(const std::string& key) const;
  absl::StatusOr<std::vector<int64_t>> Ints(const std::string& key) const;
  absl::StatusOr<std::vector<float>> Floats(const std::string& key) const;
  absl::StatusOr<std::vector<std::string>> Strings(const std::string& key) const;
  // The same with a value for an absent key.
  absl::StatusOr<int64_t> IntOr(const std::string& key, int64_t fallback) const;
  absl::StatusOr<double> DoubleOr(const std::string& key, double fallback) const;

 private:
  GgufFile() = default;
  // The value if it is a scalar or array as asked.
  absl::StatusOr<GgufValue> Find(const std::string& key, bool is_array) const;
  absl::Status WrongKind(const std::string& key, absl::string_view wanted) const;

  std::string name_;
  absl::flat_hash_map<std::string, GgufValue> values_;
  std::vector<GgufTensor> tensors_;
  absl::Span<const uint8_t> header_;
};

}  // namespace toroid
