// Arena: a stack of tensors in one piece of a backend's memory.
//
// Each rank has two, `saved` (what Backward reads) and `scratch` (a mark per layer and per block of
// tokens). A mark remembers the height; releasing it frees everything above. Nothing is allocated
// in steady state: Reserve is called before a run with what the counting backend foresaw.
//
// Accounting. *Token-long* tensors are the named ones that are as long as this rank's tokens (x, a,
// Q, K and V, travelling and incoming KV, O, LSE, y, ids, positions, slots); all others are blocks.
// Block scratch is the peak of the others alone: it must not grow with the length of the text.
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "absl/status/status.h"
#include "core/backend.h"
#include "core/tensor.h"

namespace toroid {

class Arena {
 public:
  Arena(Backend& backend, std::string name) : backend_(backend), name_(std::move(name)) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Room for at least `bytes`. REQUIRES: nothing in use. ResourceExhausted or OutOfRange names the
  // arena.
  absl::Status Reserve(int64_t bytes);
  // Gives the memory behind an empty arena back to the system, keeping the reservation.
  void Trim();

  enum class Length { kBlock, kTokens };
  // A contiguous tensor, 64-byte aligned, contents undefined. Overflow is our own mistake: CHECK.
  Tensor New(const char* name, DType type, std::initializer_list<int64_t> shape,
             Length length = Length::kBlock);

  // Frees everything allocated after construction when it goes out of scope.
  class Mark {
   public:
    explicit Mark(Arena& arena)
        : arena_(arena), used_(arena.used_), block_used_(arena.block_used_) {}
    ~Mark() {
      arena_.used_ = used_;
      arena_.block_used_ = block_used_;
    }
    Mark(const Mark&) = delete;
    Mark& operator=(const Mark&) = delete;

   private:
    Arena& arena_;
    int64_t used_, block_used_;
  };

  int64_t used() const { return used_; }
  int64_t peak() const { return peak_; }
  int64_t block_peak() const { return block_peak_; }
  int64_t capacity() const { return capacity_; }
  void ResetPeak() { peak_ = used_, block_peak_ = block_used_; }

 private:
  Backend& backend_;
  const std::string name_;
  char* data_ = nullptr;
  int64_t capacity_ = 0, used_ = 0, peak_ = 0, block_used_ = 0, block_peak_ = 0;
};

}  // namespace toroid
