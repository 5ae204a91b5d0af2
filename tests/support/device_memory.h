// A communicator of host memory whose verbs run on a GPU: operands are brought to the device, the
// verb runs there on a device stream, results come back. The conformance suite thus runs on
// communicators of device memory. Device memory is poisoned first, so that what no verb writes is
// found.
#pragma once

#include <memory>
#include <utility>

#include "core/backend.h"
#include "core/communicator.h"

namespace toroid {

class DeviceMemoryCommunicator final : public Communicator {
 public:
  DeviceMemoryCommunicator(std::unique_ptr<Communicator> inner, Backend& ops, Stream device)
      : Communicator(inner->rank(), inner->size()),
        ops_(ops),
        device_(device),
        inner_(std::move(inner)) {}

  absl::Status Health() const override { return inner_->Health(); }
  std::unique_ptr<Communicator> Split(const RankFunction& color, const RankFunction& key) override {
    return std::make_unique<DeviceMemoryCommunicator>(inner_->Split(color, key), ops_, device_);
  }

 protected:
  void DoAllReduce(Stream s, void* x, int64_t count, DType type, ReduceOp op) override {
    s.cpu->Enqueue([=, this] {
      Tensor all = Put(Tensor(type, {count}, x));
      inner_->AllReduce(device_, Partial(all), op);
      return Take(all, x);
    });
  }
  void DoReduceScatter(Stream s, const void* x, void* out, int64_t count_each,
                       DType type) override {
    s.cpu->Enqueue([=, this] {
      Tensor all = Put(Tensor(type, {size() * count_each}, const_cast<void*>(x)));
      const bool in_place =
          out == static_cast<const char*>(x) + RowBytes(type, rank() * count_each);
      Tensor mine = in_place ? all.Rows(rank() * count_each, count_each)
                             : Poisoned(Tensor(type, {count_each}, out));
      inner_->ReduceScatter(device_, Partial(all), mine);
      ops_.Download(device_, mine, out);
      if (!in_place) {
        ops_.Download(device_, all, const_cast<void*>(x));  // must be as it was
        Free(mine);
      }
      return Free(all);
    });
  }
  void DoAllGather(Stream s, const void* x, void* out, int64_t bytes_each) override {
    s.cpu->Enqueue([=, this] {
      Tensor own = Put(Bytes(x, bytes_each)), all = Poisoned(Bytes(out, size() * bytes_each));
      const bool in_place = x == static_cast<char*>(out) + rank() * bytes_each;
      const Tensor place = all.Rows(rank() * bytes_each, bytes_each);
      if (in_place) ops_.Copy(device_, own, place);
      inner_->AllGather(device_, in_place ? place : own, all);
      Free(own);
      return Take(all, out);
    });
  }
  void DoBroadcast(Stream s, void* x, int64_t bytes, int root) override {
    s.cpu->Enqueue([=, this] {
      Tensor all = Put(Bytes(x, bytes));
      inner_->Broadcast(device_, all, root);
      return Take(all, x);
    });
  }
  void DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                  int64_t recv_bytes, int from) override {
    s.cpu->Enqueue([=, this] {
      Tensor out = Put(Bytes(send, send_bytes)), in = Poisoned(Bytes(recv, recv_bytes));
      inner_->SendRecv(device_, out, to, in, from);
      const bool done = Take(in, recv);
      return Free(out) && done;
    });
  }
  void DoAllToAll(Stream s, const void* x, void* out, int64_t bytes_each) override {
    s.cpu->Enqueue([=, this] {
      Tensor sent = Put(Bytes(x, size() * bytes_each));
      Tensor received = Poisoned(Bytes(out, size() * bytes_each));
      inner_->AllToAll(device_, sent, received);
      Free(sent);
      return Take(received, out);
    });
  }
  void DoBarrier(Stream s) override {
    s.cpu->Enqueue([this] {
      inner_->Barrier(device_);
      ops_.Synchronize(device_);
      return true;
    });
  }

 private:
  static Tensor Bytes(const void* data, int64_t bytes) {
    return Tensor(DType::kU8, {bytes}, const_cast<void*>(data));
  }
  // Of host's shape, on the device.
  Tensor Poisoned(Tensor host) {
    host.data = *ops_.Allocate(host.bytes());
    const std::vector<uint8_t> poison(size_t(host.bytes()), 0xff);
    ops_.Upload(device_, poison.data(), Bytes(host.data, host.bytes()));
    return host;
  }
  Tensor Put(const Tensor& host) {
    const Tensor x = Poisoned(host);
    ops_.Upload(device_, host.data, x);
    return x;
  }
  bool Take(const Tensor& x, void* host) {
    ops_.Download(device_, x, host);
    return Free(x);
  }
  bool Free(const Tensor& x) {
    ops_.Synchronize(device_);
    ops_.Free(x.data, x.bytes());
    return true;
  }

  Backend& ops_;
  const Stream device_;
  const std::unique_ptr<Communicator> inner_;
};

}  // namespace toroid
