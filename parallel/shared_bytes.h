// SharedBytes: bytes of a message, written once by whoever made them and then read by all that
// share them: what a pod encodes is its own share of a merge, what it sends, and what lies in the
// queue of the link, without a copy.
//
// BytePool: their memory, used again. A step's messages are as large as the last step's; memory
// that is taken from the system anew each time costs a fault for every page, which is as much as
// what is copied there.
#pragma once

#include <cstddef>
#include <memory>
#include <ostream>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

namespace toroid {

class SharedBytes {
 public:
  SharedBytes() = default;
  SharedBytes(std::string text);  // NOLINT: what is short and made once is a string
  SharedBytes(const char* text) : SharedBytes(std::string(text)) {}  // NOLINT

  const char* data() const { return data_.get(); }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  operator absl::string_view() const { return {data(), size_}; }  // NOLINT
  // Bytes [begin, begin + count), cut at the end, of the same memory.
  SharedBytes Part(size_t begin, size_t count) const;
  // Where they are written. REQUIRES: nobody shares them yet.
  char* mutable_data();

  friend bool operator==(const SharedBytes& a, const SharedBytes& b) {
    return absl::string_view(a) == absl::string_view(b);
  }
  friend std::ostream& operator<<(std::ostream& out, const SharedBytes& bytes) {
    return out << absl::string_view(bytes);
  }

 private:
  friend class BytePool;
  SharedBytes(std::shared_ptr<char> data, size_t size) : data_(std::move(data)), size_(size) {}

  std::shared_ptr<char> data_;
  size_t size_ = 0;
};

// Keeps what is given back, as long as that and what is in use are no more than was in use at some
// moment, and until it was passed over a thousand times. Thread-safe; what it gave may outlive it.
class BytePool {
 public:
  BytePool();
  // Of any content.
  SharedBytes Take(size_t size) const;
  // Of what it has from the system, in use or not; how often it asked.
  size_t held_bytes() const;
  int64_t allocations() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace toroid
