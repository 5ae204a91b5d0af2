#include "parallel/device_communicator.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

namespace toroid {
namespace {

class DeviceCommunicator final : public Communicator {
 public:
  // members: the world rank of each rank.
  DeviceCommunicator(std::unique_ptr<Communicator> host, std::unique_ptr<Communicator> device,
                     std::shared_ptr<const DeviceLink> link, std::vector<int> members, bool world)
      : Communicator(host->rank(), host->size()),
        link_(std::move(link)),
        members_(std::move(members)),
        world_(world),
        host_(std::move(host)),
        device_(std::move(device)) {
    TOROID_CHECK_EQ(host_->rank(), device_->rank());
    TOROID_CHECK_EQ(host_->size(), device_->size());
  }

  absl::Status Health() const override {
    const absl::Status health = host_->Health();
    return health.ok() ? device_->Health() : health;
  }

  std::unique_ptr<Communicator> Split(const RankFunction& color, const RankFunction& key) override {
    std::vector<int> ranks;  // of the part, in its order
    for (int r = 0; r < size(); ++r) {
      if (color(r) == color(rank())) ranks.push_back(r);
    }
    std::stable_sort(ranks.begin(), ranks.end(), [&](int a, int b) { return key(a) < key(b); });
    for (int& r : ranks) r = members_[size_t(r)];
    std::unique_ptr<Communicator> host = host_->Split(color, key);
    std::unique_ptr<Communicator> device = device_->Split(color, key);
    return std::make_unique<DeviceCommunicator>(std::move(host), std::move(device), link_,
                                                std::move(ranks), /*world=*/false);
  }

  // The link is counted once, by the world.
  int64_t communicator_bytes() const override {
    return device_->communicator_bytes() + (world_ ? link_->bytes : 0);
  }

 protected:
  void DoAllReduce(Stream s, void* x, int64_t count, DType type, ReduceOp op) override {
    Of(s).AllReduce(s, Partial(Tensor(type, {count}, x)), op);
  }
  void DoReduceScatter(Stream s, const void* x, void* out, int64_t count_each,
                       DType type) override {
    Of(s).ReduceScatter(s, Partial(Tensor(type, {size() * count_each}, const_cast<void*>(x))),
                        Tensor(type, {count_each}, out));
  }
  void DoAllGather(Stream s, const void* x, void* out, int64_t bytes_each) override {
    Of(s).AllGather(s, Bytes(x, bytes_each), Bytes(out, size() * bytes_each));
  }
  void DoBroadcast(Stream s, void* x, int64_t bytes, int root) override {
    Of(s).Broadcast(s, Bytes(x, bytes), root);
  }
  void DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                  int64_t recv_bytes, int from) override {
    if (s.native != nullptr) {
      const int64_t linked_out = send_bytes > 0 && Reaches(to) ? send_bytes : 0;
      const int64_t linked_in = recv_bytes > 0 && Reaches(from) ? recv_bytes : 0;
      if (linked_out > 0 || linked_in > 0) {
        link_->exchange(s, send, linked_out, linked_out > 0 ? members_[size_t(to)] : -1, recv,
                        linked_in, linked_in > 0 ? members_[size_t(from)] : -1);
      }
      if (linked_out > 0) send_bytes = 0;
      if (linked_in > 0) recv_bytes = 0;
    }
    Of(s).SendRecv(s, Bytes(send, send_bytes), to, Bytes(recv, recv_bytes), from);
  }
  void DoAllToAll(Stream s, const void* x, void* out, int64_t bytes_each) override {
    Of(s).AllToAll(s, Bytes(x, size() * bytes_each), Bytes(out, size() * bytes_each));
  }
  void DoBarrier(Stream s) override { Of(s).Barrier(s); }

 private:
  Communicator& Of(Stream s) { return s.native != nullptr ? *device_ : *host_; }
  bool Reaches(int rank) const {
    return link_->reaches != nullptr && link_->reaches(members_[size_t(rank)]);
  }
  static Tensor Bytes(const void* data, int64_t bytes) {
    return Tensor(DType::kU8, {bytes}, const_cast<void*>(data));
  }

  const std::shared_ptr<const DeviceLink> link_;
  const std::vector<int> members_;
  const bool world_;
  const std::unique_ptr<Communicator> host_;
  const std::unique_ptr<Communicator> device_;
};

}  // namespace

std::unique_ptr<Communicator> NewDeviceWorld(std::unique_ptr<Communicator> host,
                                             std::unique_ptr<Communicator> device,
                                             DeviceLink link) {
  std::vector<int> members(size_t(host->size()));
  std::iota(members.begin(), members.end(), 0);
  return std::make_unique<DeviceCommunicator>(std::move(host), std::move(device),
                                              std::make_shared<const DeviceLink>(std::move(link)),
                                              std::move(members), /*world=*/true);
}

}  // namespace toroid
