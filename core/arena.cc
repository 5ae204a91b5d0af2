#include "core/arena.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace toroid {

Arena::~Arena() {
  if (data_ != nullptr) backend_.Free(data_, capacity_);
}

absl::Status Arena::Reserve(int64_t bytes) {
  TOROID_CHECK_EQ(used_, 0);
  if (bytes <= capacity_) return absl::OkStatus();
  if (data_ != nullptr) backend_.Free(data_, capacity_);
  data_ = nullptr;
  capacity_ = 0;
  auto data = backend_.Allocate(bytes);
  if (!data.ok()) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for the ", name_, " arena: ", bytes,
                                                     " bytes wanted: use more ranks on the ring, ",
                                                     "a shorter prompt or a smaller --context (",
                                                     data.status().message(), ")"));
  }
  data_ = static_cast<char*>(*data);
  capacity_ = bytes;
  return absl::OkStatus();
}

void Arena::Trim() {
  TOROID_CHECK_EQ(used_, 0);
  if (data_ != nullptr) backend_.Discard(data_, capacity_);
}

Tensor Arena::New(const char* name, DType type, std::initializer_list<int64_t> shape,
                  Length length) {
  Tensor tensor(type, shape, data_ + used_);
  const int64_t bytes = (tensor.bytes() + 63) / 64 * 64;
  TOROID_CHECK_MSG(used_ + bytes <= capacity_,
                   absl::StrCat(name_, " arena: ", name, " wants ", bytes, " bytes on top of ",
                                used_, " of ", capacity_));
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  if (length == Length::kBlock) block_used_ += bytes;
  block_peak_ = std::max(block_peak_, block_used_);
  return tensor;
}

}  // namespace toroid
