#include "parallel/faulty_communicator.h"

#include <utility>

#include "parallel/mesh.h"

namespace toroid {
namespace {

class FaultyCommunicator final : public Communicator {
 public:
  FaultyCommunicator(std::unique_ptr<Communicator> sound, Axis axis,
                     std::shared_ptr<const FaultyVerbs> faults)
      : Communicator(sound->rank(), sound->size()),
        sound_(std::move(sound)),
        axis_(axis),
        faults_(std::move(faults)) {}

  absl::Status Health() const override { return sound_->Health(); }
  int64_t communicator_bytes() const override { return sound_->communicator_bytes(); }
  using Communicator::Split;
  // A Mesh splits its world into data, ring, tensor and shard, in the order of Axis.
  std::unique_ptr<Communicator> Split(const RankFunction& color, const RankFunction& key) override {
    TOROID_CHECK(axis_ == Axis::kWorld && splits_ < int(Axis::kWorld));
    return std::make_unique<FaultyCommunicator>(sound_->Split(color, key), Axis(splits_++),
                                                faults_);
  }

 protected:
  void DoAllReduce(Stream s, void* x, int64_t count, DType type, ReduceOp op) override {
    const Tensor tensor(type, {count}, x);
    if (axis_ == Axis::kTensor && faults_->tensor_all_reduce != nullptr) {
      return faults_->tensor_all_reduce(*sound_, s, tensor, op);
    }
    if (axis_ == Axis::kWorld && faults_->world_all_reduce != nullptr) {
      return faults_->world_all_reduce(*sound_, s, tensor, op);
    }
    sound_->AllReduce(s, Partial(tensor), op);
  }
  void DoReduceScatter(Stream s, const void* x, void* out, int64_t each, DType type) override {
    const Tensor from(type, {each * size()}, const_cast<void*>(x)), to(type, {each}, out);
    if (axis_ == Axis::kTensor && faults_->tensor_reduce_scatter != nullptr) {
      return faults_->tensor_reduce_scatter(*sound_, s, from, to);
    }
    sound_->ReduceScatter(s, Partial(from), to);
  }
  void DoAllGather(Stream s, const void* x, void* out, int64_t bytes) override {
    sound_->AllGather(s, Bytes(x, bytes), Bytes(out, bytes * size()));
  }
  void DoBroadcast(Stream s, void* x, int64_t bytes, int root) override {
    sound_->Broadcast(s, Bytes(x, bytes), root);
  }
  void DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                  int64_t recv_bytes, int from) override {
    const Tensor out = Bytes(send, send_bytes), in = Bytes(recv, recv_bytes);
    if (axis_ == Axis::kRing && faults_->ring_send_recv != nullptr) {
      return faults_->ring_send_recv(*sound_, s, out, to, in, from);
    }
    sound_->SendRecv(s, out, to, in, from);
  }
  void DoAllToAll(Stream s, const void* x, void* out, int64_t bytes) override {
    const auto blocks = [&](const void* data) {
      return Tensor(DType::kU8, {size(), bytes}, const_cast<void*>(data));
    };
    sound_->AllToAll(s, blocks(x), blocks(out));
  }
  void DoBarrier(Stream s) override { sound_->Barrier(s); }

 private:
  static Tensor Bytes(const void* data, int64_t bytes) {
    return Tensor(DType::kU8, {bytes}, const_cast<void*>(data));
  }

  const std::unique_ptr<Communicator> sound_;
  const Axis axis_;
  const std::shared_ptr<const FaultyVerbs> faults_;
  int splits_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> PlantFaults(std::unique_ptr<Communicator> world, FaultyVerbs faults) {
  return std::make_unique<FaultyCommunicator>(
      std::move(world), Axis::kWorld, std::make_shared<const FaultyVerbs>(std::move(faults)));
}

}  // namespace toroid
