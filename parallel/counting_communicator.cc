#include "parallel/counting_communicator.h"

#include <algorithm>

#include "parallel/reduction.h"

namespace toroid {
namespace {

class CountingCommunicator final : public Communicator {
 public:
  // slot_limit 0: reductions need no scratch. held_bytes: from the beginning, not by its parts.
  CountingCommunicator(int rank, int size, int64_t slot_limit, int64_t held_bytes = 0)
      : Communicator(rank, size), slot_limit_(slot_limit), held_bytes_(held_bytes) {}
  absl::Status Health() const override { return absl::OkStatus(); }

  std::unique_ptr<Communicator> Split(const RankFunction& color, const RankFunction& key) override {
    int place = 0, members = 0;
    for (int r = 0; r < size(); ++r) {
      if (color(r) != color(rank())) continue;
      ++members;
      if (key(r) < key(rank()) || (key(r) == key(rank()) && r < rank())) ++place;
    }
    if (members == 1) return std::make_unique<SelfCommunicator>();
    return std::make_unique<CountingCommunicator>(place, members, slot_limit_);
  }
  int64_t communicator_bytes() const override {
    return held_bytes_ + (slot_bytes_ == 0 ? 0 : ReductionScratchBytes(size(), slot_bytes_));
  }

 protected:
  void DoAllReduce(Stream, void*, int64_t count, DType type, ReduceOp) override {
    NeedSlots(AllReduceMessageBytes(size(), count, type));
  }
  void DoReduceScatter(Stream, const void*, void*, int64_t count_each, DType type) override {
    NeedSlots(RowBytes(type, count_each));
  }
  void DoAllGather(Stream, const void*, void*, int64_t) override {}
  void DoBroadcast(Stream, void*, int64_t, int) override {}
  void DoSendRecv(Stream, const void*, int64_t, int, void*, int64_t, int) override {}
  void DoAllToAll(Stream, const void*, void*, int64_t) override {}
  void DoBarrier(Stream) override {}
  void DoLocalCopy(Stream, const void*, void*, int64_t) override {}

 private:
  void NeedSlots(int64_t message) {
    if (slot_limit_ == 0) return;
    slot_bytes_ = std::max(slot_bytes_, ReductionSlotBytes(size(), message, slot_limit_));
  }
  const int64_t slot_limit_, held_bytes_;
  int64_t slot_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> NewCountingTwin(const Communicator& world, Stream s) {
  if (s.native == nullptr) return NewCountingWorld(world.rank(), world.size());
  return std::make_unique<CountingCommunicator>(world.rank(), world.size(), /*slot_limit=*/0,
                                                world.communicator_bytes());
}

std::unique_ptr<Communicator> NewCountingRank(int rank, int size, bool on_gpu) {
  return on_gpu ? NewCountingWorld(rank, size, /*slot_limit=*/0) : NewCountingWorld(rank, size);
}

std::unique_ptr<Communicator> NewCountingWorld(int rank, int size, int64_t slot_limit) {
  TOROID_CHECK(rank >= 0 && rank < size);
  return std::make_unique<CountingCommunicator>(rank, size, slot_limit);
}

}  // namespace toroid
