// A fast 64-bit hash for telling copies of a model apart by accident, not by malice: eight bytes at
// a time, multiplied and folded (the finaliser of MurmurHash3 between words).
#pragma once

#include <cstdint>
#include <cstring>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace toroid {

class FingerprintHash {
 public:
  void Number(int64_t value) { Mix(uint64_t(value)); }

  // Length first, so that neighbouring texts cannot run together.
  void Bytes(absl::Span<const uint8_t> bytes) {
    Mix(bytes.size());
    size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
      uint64_t word;
      std::memcpy(&word, bytes.data() + i, 8);
      Mix(word);
    }
    uint64_t rest = 0;
    if (i < bytes.size()) std::memcpy(&rest, bytes.data() + i, bytes.size() - i);
    Mix(rest);
  }
  void Text(absl::string_view text) {
    Bytes({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }

  uint64_t value() const { return state_; }

 private:
  void Mix(uint64_t word) {
    uint64_t x = state_ ^ word;
    x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdu;
    x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53u;
    state_ = (x ^ (x >> 33)) + 0x9e3779b97f4a7c15u;
  }

  uint64_t state_ = 0x746f726f6964u;  // "toroid"
};

}  // namespace toroid
