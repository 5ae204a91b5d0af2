#include "parallel/staged_communicator.h"

#include <utility>
#include <vector>

namespace toroid {
namespace {

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> host, Backend& ops)
      : Communicator(host->rank(), host->size()), host_(std::move(host)), ops_(ops) {}
  absl::Status Health() const override { return host_->Health(); }
  std::unique_ptr<Communicator> Split(const RankFunction& color, const RankFunction& key) override {
    return NewStagedCommunicator(host_->Split(color, key), ops_);
  }

 protected:
  void DoAllReduce(Stream s, void* x, int64_t count, DType type, ReduceOp op) override {
    const Tensor all(type, {count}, x);
    std::vector<char> host = Fetch(s, all);
    host_->AllReduce(Queue(), Partial(Tensor(type, {count}, host.data())), op);
    Store(s, host, all);
  }
  void DoReduceScatter(Stream s, const void* x, void* out, int64_t count_each,
                       DType type) override {
    const Tensor all(type, {size() * count_each}, const_cast<void*>(x));
    const Tensor mine(type, {count_each}, out);
    std::vector<char> host = Fetch(s, all), sum(size_t(mine.bytes()));
    host_->ReduceScatter(Queue(), Partial(Tensor(type, {all.size()}, host.data())),
                         Tensor(type, {count_each}, sum.data()));
    Store(s, sum, mine);
  }
  void DoAllGather(Stream s, const void* x, void* out, int64_t bytes_each) override {
    const Tensor all = Bytes(out, size() * bytes_each);
    std::vector<char> host = Fetch(s, Bytes(x, bytes_each)), gathered(size_t(all.bytes()));
    host_->AllGather(Queue(), Bytes(host.data(), bytes_each), Bytes(gathered.data(), all.bytes()));
    Store(s, gathered, all);
  }
  void DoBroadcast(Stream s, void* x, int64_t bytes, int root) override {
    std::vector<char> host = Fetch(s, Bytes(x, bytes));
    host_->Broadcast(Queue(), Bytes(host.data(), bytes), root);
    Store(s, host, Bytes(x, bytes));
  }
  void DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                  int64_t recv_bytes, int from) override {
    std::vector<char> out = Fetch(s, Bytes(send, send_bytes)), in(size_t(recv_bytes), 0);
    host_->SendRecv(Queue(), Bytes(out.data(), send_bytes), to, Bytes(in.data(), recv_bytes), from);
    Store(s, in, Bytes(recv, recv_bytes));
  }
  void DoAllToAll(Stream s, const void* x, void* out, int64_t bytes_each) override {
    const int64_t bytes = size() * bytes_each;
    std::vector<char> sent = Fetch(s, Bytes(x, bytes)), received(size_t(bytes), 0);
    host_->AllToAll(Queue(), Bytes(sent.data(), bytes), Bytes(received.data(), bytes));
    Store(s, received, Bytes(out, bytes));
  }
  void DoBarrier(Stream s) override {
    ops_.Synchronize(s);  // what came before is done on this rank
    host_->Barrier(Queue());
  }

 private:
  Stream Queue() { return {&queue_, nullptr}; }
  static Tensor Bytes(const void* data, int64_t bytes) {
    return Tensor(DType::kU8, {bytes}, const_cast<void*>(data));
  }
  std::vector<char> Fetch(Stream s, const Tensor& x) {
    std::vector<char> host(size_t(x.bytes()));
    ops_.Download(s, x, host.data());
    return host;
  }
  // A verb that failed changes nothing.
  void Store(Stream s, const std::vector<char>& host, const Tensor& out) {
    if (host_->Health().ok()) ops_.Upload(s, host.data(), out);
  }

  const std::unique_ptr<Communicator> host_;
  Backend& ops_;
  CpuStream queue_{/*inline_work=*/true};
};

}  // namespace

std::unique_ptr<Communicator> NewStagedCommunicator(std::unique_ptr<Communicator> host,
                                                    Backend& ops) {
  return std::make_unique<StagedCommunicator>(std::move(host), ops);
}

}  // namespace toroid
