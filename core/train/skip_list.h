// Which parts of the endless list of training tokens a run leaves out, and so where each of its
// batches lies.
//
// The *list* is what the data set gives: global token indices 0, 1, 2, ... A run walks it in order
// and jumps over the windows of this list: token v of the run is token At(v) of the list. Skipping
// is therefore part of what a run is, like its seed: a run that met a spike, went back and skipped,
// and a run started with that skip list see the same batches.
// Invariants: windows ascend, are not empty and do not touch. Value type.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace toroid {

class SkipList {
 public:
  // List indices [begin, end).
  struct Window {
    int64_t begin = 0, end = 0;
    bool operator==(const Window&) const = default;
  };

  SkipList() = default;
  // "4096-8192,65536-131072" in list indices, as ToString writes it; empty: nothing.
  // InvalidArgument naming the part that is no window.
  static absl::StatusOr<SkipList> Parse(absl::string_view text);
  std::string ToString() const;

  // Index in the list of the run's token `v`.
  int64_t At(int64_t v) const;
  // Leaves out, besides, what would have been the run's tokens [begin, end). REQUIRES 0 <= begin <=
  // end.
  void SkipOfRun(int64_t begin, int64_t end);
  // Leaves out [begin, end) of the list; windows that touch become one. REQUIRES the same.
  void Skip(int64_t begin, int64_t end);

  const std::vector<Window>& windows() const { return windows_; }
  bool operator==(const SkipList&) const = default;

 private:
  std::vector<Window> windows_;
};

}  // namespace toroid
