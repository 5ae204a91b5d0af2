#include "parallel/shared_bytes.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "core/check.h"

namespace toroid {
namespace {

// What is smaller is the allocator's.
constexpr size_t kSmallest = size_t{64} << 10;
constexpr size_t kPage = size_t{4} << 10, kLargePage = size_t{2} << 20;
// A block that so many others were taken before is not needed: that is more than a step takes.
constexpr int64_t kMostPassed = 1000;

struct Block {
  char* data;
  size_t capacity;
  int64_t back;  // when: blocks taken until then
};

size_t UnitOf(size_t size) { return size >= kLargePage ? kLargePage : kPage; }

// Large pages: the first use is a fault for each.
char* Allocate(size_t capacity) {
  const size_t unit = UnitOf(capacity);
  void* const data = operator new(capacity, std::align_val_t(unit));
  if (unit == kLargePage) (void)madvise(data, capacity, MADV_HUGEPAGE);
  return static_cast<char*>(data);
}

void Free(const Block& block) {
  operator delete(block.data, std::align_val_t(UnitOf(block.capacity)));
}

}  // namespace

SharedBytes::SharedBytes(std::string text) : size_(text.size()) {
  auto owner = std::make_shared<std::string>(std::move(text));
  data_ = std::shared_ptr<char>(owner, owner->data());
}

SharedBytes SharedBytes::Part(size_t begin, size_t count) const {
  TOROID_CHECK_LE(begin, size_);
  return {std::shared_ptr<char>(data_, data_.get() + begin), std::min(count, size_ - begin)};
}

char* SharedBytes::mutable_data() {
  TOROID_CHECK_LE(data_.use_count(), 1);
  return data_.get();
}

struct BytePool::State {
  mutable std::mutex mutex;
  std::vector<Block> back;  // in the order in which they came back
  size_t used = 0, idle = 0, most_used = 0;
  int64_t taken = 0, allocations = 0;

  ~State() {
    for (const Block& block : back) Free(block);
  }

  // The one that came back last of those that fit best; it may be a quarter too large. Else null.
  Block Find(size_t capacity) {
    auto best = back.end();
    for (auto block = back.begin(); block != back.end(); ++block) {
      if (block->capacity < capacity || block->capacity - capacity > capacity / 4) continue;
      if (best == back.end() || block->capacity <= best->capacity) best = block;
    }
    if (best == back.end()) return {nullptr, 0, 0};
    const Block found = *best;
    back.erase(best);
    idle -= found.capacity;
    return found;
  }

  void Trim() {
    while (!back.empty() && (used + idle > most_used || back.front().back + kMostPassed < taken)) {
      Free(back.front());
      idle -= back.front().capacity;
      back.erase(back.begin());
    }
  }

  Block Take(size_t size) {
    const size_t unit = UnitOf(size), capacity = (size + unit - 1) / unit * unit;
    const std::lock_guard<std::mutex> lock(mutex);
    Block block = Find(capacity);
    if (block.data == nullptr) block.capacity = capacity;
    used += block.capacity;
    most_used = std::max(most_used, used);
    ++taken;
    Trim();
    if (block.data == nullptr) {
      ++allocations;
      block.data = Allocate(block.capacity);
    }
    return block;
  }

  void GiveBack(char* data, size_t capacity) {
    const std::lock_guard<std::mutex> lock(mutex);
    used -= capacity;
    idle += capacity;
    back.push_back({data, capacity, taken});
    Trim();
  }
};

BytePool::BytePool() : state_(std::make_shared<State>()) {}

SharedBytes BytePool::Take(size_t size) const {
  if (size < kSmallest) return SharedBytes(std::string(size, '\0'));
  const Block block = state_->Take(size);
  const auto give_back = [state = state_, capacity = block.capacity](char* data) {
    state->GiveBack(data, capacity);
  };
  return {std::shared_ptr<char>(block.data, give_back), size};
}

size_t BytePool::held_bytes() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->used + state_->idle;
}

int64_t BytePool::allocations() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->allocations;
}

}  // namespace toroid
