#include "parallel/broadcast_channel.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstring>
#include <ctime>
#include <new>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

constexpr int64_t kSlots = 32, kSlotBytes = 16 << 10;
constexpr uint32_t kLeft = 1;                // of a rank's `left`
constexpr long kLongestSleep = 100'000'000;  // nanoseconds, should a wake ever be missed
// The first message of those without shared memory: the length, and as much as fits. Most fit
// whole.
constexpr int64_t kFirstBytes = 4000;  // with the length, what MPI sends at once

// Not private: other processes know the word by other addresses.
void Futex(std::atomic<uint32_t>& word, int op, uint32_t value, const timespec* timeout) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), op, value, timeout, nullptr, 0);
}

absl::Status HasLeft(int rank) {
  return absl::UnavailableError(absl::StrCat("rank ", rank, " left the world"));
}

// Until the queue is empty; what is waited for may be long in coming, and an idle world must not
// burn the cores of others.
void DriveWithSleeps(CpuStream& queue) {
  const auto patient = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
  while (!queue.Drive()) {
    const bool idle = std::chrono::steady_clock::now() > patient;
    std::this_thread::sleep_for(std::chrono::microseconds(idle ? 1000 : 50));
  }
}

}  // namespace

struct BroadcastChannel::Slot {
  int64_t left = 0;  // bytes of the message, from this piece on
  char bytes[kSlotBytes];
};

// The memory that is shared: this, the others' places by world rank, the slots.
struct BroadcastChannel::Page {
  struct alignas(64) Place {
    std::atomic<uint32_t> received{0}, left{0};
  };
  uint64_t token = 0;                          // by which a rank knows that it is rank 0's
  int64_t places = 0;                          // ranks of the world
  alignas(64) std::atomic<uint32_t> sent{0};   // pieces; the word that others sleep on
  alignas(64) std::atomic<uint32_t> ended{0};  // rank 0 has left
  Place& PlaceOf(int rank) { return reinterpret_cast<Place*>(this + 1)[rank]; }

  static int64_t Bytes(int64_t ranks) {
    return int64_t{sizeof(Page)} + ranks * int64_t{sizeof(Place)} + kSlots * int64_t{sizeof(Slot)};
  }
  static_assert(std::atomic<uint32_t>::is_always_lock_free);
};

BroadcastChannel::BroadcastChannel(Communicator& world, Page* page, int64_t page_bytes)
    : rank_(world.rank()), page_(page), page_bytes_(page_bytes) {
  const std::vector<uint8_t> shares = GatherHost(world, uint8_t(page != nullptr));
  for (int r = 1; r < world.size() && rank_ == 0; ++r) {
    if (shares[r] != 0) sharers_.push_back(r);
  }
  others_ = world.Split([&shares](int r) { return r == 0 || shares[r] == 0 ? 0 : r; });
}

// Null: it cannot be had.
BroadcastChannel::Page* BroadcastChannel::Map(const std::string& name, int64_t bytes, bool make) {
  const int flags = O_RDWR | O_CLOEXEC | (make ? O_CREAT | O_EXCL : 0);
  const int file = shm_open(name.c_str(), flags, 0600);
  if (file < 0) return nullptr;
  void* memory = MAP_FAILED;
  if (!make || posix_fallocate(file, 0, bytes) == 0) {  // memory that is full is said here
    memory = mmap(nullptr, size_t(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  close(file);
  return memory == MAP_FAILED ? nullptr : static_cast<Page*>(memory);
}

std::unique_ptr<BroadcastChannel> BroadcastChannel::Create(Communicator& world, Sharing sharing) {
  const std::vector<int64_t> processes = GatherHost(world, int64_t{getpid()});
  const bool threads =
      std::all_of(processes.begin(), processes.end(), [&](int64_t p) { return p == processes[0]; });
  Page* page = nullptr;
  const int64_t bytes = Page::Bytes(world.size());
  if (sharing == Sharing::kAlways || (sharing == Sharing::kProcesses && !threads)) {
    std::random_device random;
    uint64_t token = uint64_t{random()} << 32 | random();
    const bool makes = world.rank() == 0;
    const std::string name =
        BroadcastText(world, absl::StrCat("/toroid-", getpid(), "-", absl::Hex(token)));
    if (makes) page = Map(name, bytes, /*make=*/true);
    if (makes && page != nullptr) {
      new (page) Page();
      for (int r = 0; r < world.size(); ++r) new (&page->PlaceOf(r)) Page::Place();
      page->token = token;
      page->places = world.size();
    }
    token = GatherHost(world, page != nullptr ? token : 0)[0];
    if (!makes && token != 0) page = Map(name, bytes, /*make=*/false);
    if (page != nullptr && page->token != token) {
      munmap(page, size_t(bytes));
      page = nullptr;
    }
    (void)GatherHost(world, uint8_t{0});  // all have opened it: its name has served
    if (makes) shm_unlink(name.c_str());
  }
  return std::unique_ptr<BroadcastChannel>(new BroadcastChannel(world, page, bytes));
}

BroadcastChannel::~BroadcastChannel() {
  if (page_ == nullptr) return;
  if (rank_ == 0) {
    page_->ended.store(kLeft, std::memory_order_release);
    Futex(page_->sent, FUTEX_WAKE, INT_MAX, nullptr);
  } else {
    page_->PlaceOf(rank_).left.store(kLeft, std::memory_order_release);
  }
  munmap(page_, size_t(page_bytes_));
}

BroadcastChannel::Slot& BroadcastChannel::SlotOf(uint32_t piece) const {
  char* slots = reinterpret_cast<char*>(&page_->PlaceOf(int(page_->places)));
  return reinterpret_cast<Slot*>(slots)[piece % kSlots];
}

// Until all have received what lies in the slot of the next piece.
absl::Status BroadcastChannel::AwaitRoom() const {
  for (const int rank : sharers_) {
    Page::Place& place = page_->PlaceOf(rank);
    const auto has_left = [&place] { return place.left.load(std::memory_order_acquire) != 0; };
    while (!has_left() && pieces_ - place.received.load(std::memory_order_acquire) >= kSlots) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    if (has_left()) return HasLeft(rank);
  }
  return absl::OkStatus();
}

absl::Status BroadcastChannel::SendToHost(const std::string& bytes) {
  size_t done = 0;
  do {
    TOROID_RETURN_IF_ERROR(AwaitRoom());
    Slot& slot = SlotOf(pieces_);
    slot.left = int64_t(bytes.size() - done);
    const size_t part = std::min(bytes.size() - done, size_t{kSlotBytes});
    std::memcpy(slot.bytes, bytes.data() + done, part);
    done += part;
    page_->sent.store(++pieces_, std::memory_order_release);
    Futex(page_->sent, FUTEX_WAKE, INT_MAX, nullptr);
  } while (done < bytes.size());
  return absl::OkStatus();
}

absl::StatusOr<std::string> BroadcastChannel::ReceiveOnHost() {
  const timespec longest = {0, kLongestSleep};
  std::string bytes;
  while (true) {
    while (page_->sent.load(std::memory_order_acquire) == pieces_) {
      if (page_->ended.load(std::memory_order_acquire) != 0 &&
          page_->sent.load(std::memory_order_acquire) == pieces_) {
        return HasLeft(0);
      }
      Futex(page_->sent, FUTEX_WAIT, pieces_, &longest);
    }
    const Slot& slot = SlotOf(pieces_);
    const int64_t left = slot.left;
    bytes.append(slot.bytes, size_t(std::min(left, kSlotBytes)));
    page_->PlaceOf(rank_).received.store(++pieces_, std::memory_order_release);
    if (left <= kSlotBytes) return bytes;
  }
}

// Each message that a sleeping rank has to notice costs it half a pause, so most are one.
absl::StatusOr<std::string> BroadcastChannel::ByCommunicator(std::string bytes) {
  std::string first(sizeof(int64_t) + kFirstBytes, '\0');
  int64_t size = int64_t(bytes.size());
  std::memcpy(first.data(), &size, sizeof(size));
  std::memcpy(first.data() + sizeof(size), bytes.data(), size_t(std::min(size, kFirstBytes)));
  CpuStream queue(/*inline_work=*/false);
  const Stream s{&queue, nullptr};
  others_->Broadcast(s, Tensor(DType::kU8, {int64_t(first.size())}, first.data()), 0);
  DriveWithSleeps(queue);
  TOROID_RETURN_IF_ERROR(others_->Health());
  std::memcpy(&size, first.data(), sizeof(size));
  if (rank_ != 0) bytes.assign(first, sizeof(size), size_t(std::min(size, kFirstBytes)));
  if (size > kFirstBytes) {
    bytes.resize(size_t(size));
    others_->Broadcast(s, Tensor(DType::kU8, {size - kFirstBytes}, bytes.data() + kFirstBytes), 0);
    DriveWithSleeps(queue);
    TOROID_RETURN_IF_ERROR(others_->Health());
  }
  return bytes;
}

absl::StatusOr<std::string> BroadcastChannel::Broadcast(std::string bytes) {
  if (rank_ != 0 && page_ != nullptr) return ReceiveOnHost();
  if (!sharers_.empty()) TOROID_RETURN_IF_ERROR(SendToHost(bytes));
  if (others_->size() == 1) return bytes;
  return ByCommunicator(std::move(bytes));
}

}  // namespace toroid
