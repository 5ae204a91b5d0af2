#include "parallel/ordered_communicator.h"

#include <utility>

namespace toroid {

absl::Status OrderedCommunicator::Health() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return error_;
}

void OrderedCommunicator::Enqueue(Stream s, std::function<bool()> poll) {
  TOROID_CHECK(s.cpu != nullptr);
  s.cpu->Enqueue([this, number = called_++, poll = std::move(poll)] {
    if (done_.load(std::memory_order_acquire) != number) return false;
    if (!failed() && !poll()) return false;
    done_.store(number + 1, std::memory_order_release);
    return true;
  });
}

bool OrderedCommunicator::Fail(absl::Status error) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (error_.ok()) error_ = std::move(error);
  failed_.store(true, std::memory_order_release);
  return true;
}

}  // namespace toroid
