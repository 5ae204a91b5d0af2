#include "core/io/gguf_parser.h"

#include <cstring>
#include <optional>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr uint64_t kMaxName = 65535;
constexpr uint64_t kMaxBytes = uint64_t{1} << 60;  // sums and rounding up stay below 2^63

// Names of ggml's tensor types; toroid reads those with a DType.
struct GgmlType {
  uint32_t id;
  const char* name;
  std::optional<DType> dtype;
};
constexpr GgmlType kGgmlTypes[] = {
    {0, "F32", DType::kF32},      {1, "F16", DType::kF16},       {2, "Q4_0", DType::kQ4_0},
    {3, "Q4_1", DType::kQ4_1},    {6, "Q5_0", DType::kQ5_0},     {7, "Q5_1", DType::kQ5_1},
    {8, "Q8_0", DType::kQ8_0},    {9, "Q8_1", std::nullopt},     {10, "Q2_K", std::nullopt},
    {11, "Q3_K", std::nullopt},   {12, "Q4_K", DType::kQ4_K},    {13, "Q5_K", DType::kQ5_K},
    {14, "Q6_K", DType::kQ6_K},   {15, "Q8_K", std::nullopt},    {16, "IQ2_XXS", std::nullopt},
    {17, "IQ2_XS", std::nullopt}, {18, "IQ3_XXS", std::nullopt}, {19, "IQ1_S", std::nullopt},
    {20, "IQ4_NL", std::nullopt}, {21, "IQ3_S", std::nullopt},   {22, "IQ2_S", std::nullopt},
    {23, "IQ4_XS", std::nullopt}, {24, "I8", std::nullopt},      {25, "I16", std::nullopt},
    {26, "I32", std::nullopt},    {27, "I64", std::nullopt},     {28, "F64", std::nullopt},
    {29, "IQ1_M", std::nullopt},  {30, "BF16", DType::kBF16},    {34, "TQ1_0", std::nullopt},
    {35, "TQ2_0", std::nullopt},  {39, "MXFP4", std::nullopt},   {40, "NVFP4", std::nullopt},
};

// Bytes of a scalar; 0 for strings, arrays and unknown types.
uint64_t Width(uint32_t type) {
  switch (type) {
    case GgufValue::kUint8:
    case GgufValue::kInt8:
    case GgufValue::kBool:
      return 1;
    case GgufValue::kUint16:
    case GgufValue::kInt16:
      return 2;
    case GgufValue::kUint32:
    case GgufValue::kInt32:
    case GgufValue::kFloat32:
      return 4;
    case GgufValue::kUint64:
    case GgufValue::kInt64:
    case GgufValue::kFloat64:
      return 8;
    default:
      return 0;
  }
}

}  // namespace

absl::Status GgufParser::Bad(absl::string_view rule) const {
  return absl::InvalidArgumentError(absl::StrCat(name_, ": not a valid GGUF file: ", rule));
}

absl::Status GgufParser::Skip(uint64_t count, absl::string_view what) {
  if (count > bytes_.size() - at_) {
    return Bad(absl::StrCat("it ends within ", what, " (byte ", at_, " of ", bytes_.size(),
                            "); the file may be truncated"));
  }
  at_ += size_t(count);
  return absl::OkStatus();
}

template <typename T>
absl::Status GgufParser::Read(T& out, absl::string_view what) {
  const uint8_t* data = bytes_.data() + at_;
  TOROID_RETURN_IF_ERROR(Skip(sizeof(T), what));
  std::memcpy(&out, data, sizeof(T));
  return absl::OkStatus();
}

absl::Status GgufParser::ReadString(std::string& out, absl::string_view what) {
  uint64_t length = 0;
  TOROID_RETURN_IF_ERROR(Read(length, what));
  if (length > kMaxName) return Bad(absl::StrCat(what, " is longer than ", kMaxName, " bytes"));
  const char* data = reinterpret_cast<const char*>(bytes_.data() + at_);
  TOROID_RETURN_IF_ERROR(Skip(length, what));
  out.assign(data, size_t(length));
  return absl::OkStatus();
}

absl::Status GgufParser::SkipElements(GgufValue::Type type, uint64_t count,
                                      const std::string& key) {
  const std::string what = absl::StrCat("the value of key ", key);
  if (type != GgufValue::kString) {
    const uint64_t width = Width(type);
    if (count > kMaxBytes / width) return Bad(absl::StrCat(what, " overflows"));
    const size_t begin = at_;
    TOROID_RETURN_IF_ERROR(Skip(count * width, what));
    if (type != GgufValue::kBool) return absl::OkStatus();
    for (size_t i = begin; i < at_; ++i) {
      if (bytes_[i] > 1) return Bad(absl::StrCat("key ", key, " has a truth value above 1"));
    }
    return absl::OkStatus();
  }
  for (uint64_t i = 0; i < count; ++i) {  // ends with the bytes: each string takes eight or more
    uint64_t length = 0;
    TOROID_RETURN_IF_ERROR(Read(length, what));
    TOROID_RETURN_IF_ERROR(Skip(length, what));
  }
  return absl::OkStatus();
}

absl::Status GgufParser::ReadValue(const std::string& key, GgufValue& value) {
  uint32_t type = 0;
  TOROID_RETURN_IF_ERROR(Read(type, "the type of a key"));
  if (type == GgufValue::kArray) {
    value.is_array = true;
    TOROID_RETURN_IF_ERROR(Read(type, "the type of an array"));
    TOROID_RETURN_IF_ERROR(Read(value.count, "the length of an array"));
    if (type == GgufValue::kArray) return Bad(absl::StrCat("key ", key, " is an array of arrays"));
  }
  if (type != GgufValue::kString && Width(type) == 0) {
    return Bad(absl::StrCat("key ", key, " has the unknown type ", type));
  }
  value.type = GgufValue::Type(type);
  const size_t begin = at_;
  TOROID_RETURN_IF_ERROR(SkipElements(value.type, value.count, key));
  value.data = bytes_.subspan(begin, at_ - begin);
  return absl::OkStatus();
}

absl::Status GgufParser::ReadType(GgufTensor& tensor, uint64_t elements, uint64_t& size) {
  const std::string what = absl::StrCat("tensor ", tensor.name);
  uint32_t id = 0;
  TOROID_RETURN_IF_ERROR(Read(id, what));
  const GgmlType* type = nullptr;
  for (const GgmlType& known : kGgmlTypes) {
    if (known.id == id) type = &known;
  }
  if (type == nullptr) return Bad(absl::StrCat(what, " has the unknown ggml type ", id));
  if (!type->dtype.has_value()) {
    return absl::UnimplementedError(absl::StrCat(
        name_, ": ", what, " has ggml type ", type->name,
        ", which toroid does not read; it reads F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, "
        "Q5_1, Q4_K, Q5_K and Q6_K"));
  }
  tensor.dtype = *type->dtype;
  const DTypeInfo info = Info(tensor.dtype);
  if (tensor.shape.back() % info.block != 0) {
    return Bad(absl::StrCat(what, " has rows of ", tensor.shape.back(),
                            " elements, no multiple of ", info.block, ", the block of ",
                            info.name));
  }
  const uint64_t blocks = elements / uint64_t(info.block);
  if (blocks > kMaxBytes / uint64_t(info.bytes)) {
    return Bad(absl::StrCat(what, " has a size that overflows"));
  }
  size = blocks * uint64_t(info.bytes);
  return absl::OkStatus();
}

absl::Status GgufParser::ReadTensor(std::vector<GgufTensor>& tensors, uint64_t& expected) {
  GgufTensor tensor;
  TOROID_RETURN_IF_ERROR(ReadString(tensor.name, "the name of a tensor"));
  const std::string what = absl::StrCat("tensor ", tensor.name);
  uint32_t dims = 0;
  TOROID_RETURN_IF_ERROR(Read(dims, what));
  if (dims < 1 || dims > 4) {
    return Bad(absl::StrCat(what, " has ", dims, " dimensions; 1 to 4 are allowed"));
  }
  tensor.shape.resize(dims);
  uint64_t elements = 1, size = 0, offset = 0;
  for (uint32_t i = 0; i < dims; ++i) {
    uint64_t dim = 0;
    TOROID_RETURN_IF_ERROR(Read(dim, what));
    if (dim == 0) return Bad(absl::StrCat(what, " has a dimension of 0"));
    if (dim > kMaxBytes / elements) return Bad(absl::StrCat(what, " has a size that overflows"));
    elements *= dim;
    tensor.shape[dims - 1 - i] = int64_t(dim);
  }
  TOROID_RETURN_IF_ERROR(ReadType(tensor, elements, size));
  TOROID_RETURN_IF_ERROR(Read(offset, what));
  if (offset != expected) {
    return Bad(absl::StrCat(what, " begins at offset ", offset, " where ", expected,
                            " was expected: tensors lie one after the other without holes"));
  }
  if (size > kMaxBytes - expected) return Bad(absl::StrCat(what, " has a size that overflows"));
  expected = (expected + size + alignment_ - 1) / alignment_ * alignment_;
  extents_.push_back({offset, size});
  tensors.push_back(std::move(tensor));
  return absl::OkStatus();
}

absl::Status GgufParser::ReadAlignment(const absl::flat_hash_map<std::string, GgufValue>& values) {
  const auto found = values.find("general.alignment");
  if (found == values.end()) return absl::OkStatus();
  uint32_t alignment = 0;
  if (found->second.is_array || found->second.type != GgufValue::kUint32) {
    return Bad("general.alignment is not a 32-bit unsigned integer");
  }
  std::memcpy(&alignment, found->second.data.data(), sizeof(alignment));
  if (alignment == 0 || alignment > (1u << 20) || (alignment & (alignment - 1)) != 0) {
    return Bad(absl::StrCat("general.alignment is ", alignment, ", no power of two up to 1 MiB"));
  }
  alignment_ = alignment;
  return absl::OkStatus();
}

absl::Status GgufParser::Parse(absl::flat_hash_map<std::string, GgufValue>& values,
                               std::vector<GgufTensor>& tensors,
                               absl::Span<const uint8_t>& header) {
  uint32_t version = 0;
  uint64_t tensor_count = 0, key_count = 0;
  if (bytes_.size() < 4 || std::memcmp(bytes_.data(), "GGUF", 4) != 0) {
    return Bad("it does not begin with GGUF");
  }
  at_ = 4;
  TOROID_RETURN_IF_ERROR(Read(version, "the header"));
  if (version == 0x03000000u) return Bad("it is big-endian; toroid reads little-endian files");
  if (version != 3)
    return Bad(absl::StrCat("it has version ", version, "; toroid reads version 3"));
  TOROID_RETURN_IF_ERROR(Read(tensor_count, "the header"));
  TOROID_RETURN_IF_ERROR(Read(key_count, "the header"));
  for (uint64_t i = 0; i < key_count; ++i) {  // ends with the bytes, however large the count
    std::string key;
    GgufValue value;
    TOROID_RETURN_IF_ERROR(ReadString(key, "the name of a key"));
    TOROID_RETURN_IF_ERROR(ReadValue(key, value));
    if (!values.emplace(key, value).second) return Bad(absl::StrCat("key ", key, " appears twice"));
  }
  TOROID_RETURN_IF_ERROR(ReadAlignment(values));

  absl::flat_hash_set<std::string> names;
  uint64_t expected = 0;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    TOROID_RETURN_IF_ERROR(ReadTensor(tensors, expected));
    if (!names.insert(tensors.back().name).second) {
      return Bad(absl::StrCat("tensor ", tensors.back().name, " appears twice"));
    }
  }
  header = bytes_.subspan(0, at_);
  const uint64_t begin = (at_ + alignment_ - 1) / alignment_ * alignment_;
  const uint64_t room = begin > bytes_.size() ? 0 : bytes_.size() - begin;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Extent extent = extents_[i];
    if (extent.offset > room || extent.size > room - extent.offset) {
      return Bad(absl::StrCat("tensor ", tensors[i].name, " ends beyond the file (", bytes_.size(),
                              " bytes); the file may be truncated"));
    }
    tensors[i].data = bytes_.subspan(size_t(begin + extent.offset), size_t(extent.size));
  }
  return absl::OkStatus();
}

}  // namespace toroid
