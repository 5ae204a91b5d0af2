// A communicator that passes every verb on to another one: what tests derive from to spoil one.
#pragma once

#include <memory>
#include <utility>

#include "core/communicator.h"

namespace toroid {

class PassingCommunicator : public Communicator {
 public:
  absl::Status Health() const override { return inner_->Health(); }
  int64_t communicator_bytes() const override { return inner_->communicator_bytes(); }

 protected:
  explicit PassingCommunicator(std::unique_ptr<Communicator> inner)
      : Communicator(inner->rank(), inner->size()), inner_(std::move(inner)) {}
  Communicator& inner() { return *inner_; }

  void DoAllReduce(Stream s, void* x, int64_t count, DType type, ReduceOp op) override {
    inner_->AllReduce(s, Partial(Tensor(type, {count}, x)), op);
  }
  void DoReduceScatter(Stream s, const void* x, void* out, int64_t count_each,
                       DType type) override {
    inner_->ReduceScatter(s, Partial(Tensor(type, {size() * count_each}, const_cast<void*>(x))),
                          Tensor(type, {count_each}, out));
  }
  void DoAllGather(Stream s, const void* x, void* out, int64_t bytes_each) override {
    inner_->AllGather(s, Bytes(x, bytes_each), Bytes(out, size() * bytes_each));
  }
  void DoBroadcast(Stream s, void* x, int64_t bytes, int root) override {
    inner_->Broadcast(s, Bytes(x, bytes), root);
  }
  void DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                  int64_t recv_bytes, int from) override {
    inner_->SendRecv(s, Bytes(send, send_bytes), to, Bytes(recv, recv_bytes), from);
  }
  void DoAllToAll(Stream s, const void* x, void* out, int64_t bytes_each) override {
    inner_->AllToAll(s, Bytes(x, size() * bytes_each), Bytes(out, size() * bytes_each));
  }
  void DoBarrier(Stream s) override { inner_->Barrier(s); }

 private:
  static Tensor Bytes(const void* data, int64_t bytes) {
    return Tensor(DType::kU8, {bytes}, const_cast<void*>(data));
  }
  const std::unique_ptr<Communicator> inner_;
};

}  // namespace toroid
