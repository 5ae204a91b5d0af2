// Communicator: the collective verbs among the ranks of one axis, ordered on a Stream.
//
// All ranks of an axis call the same verbs in the same order from one thread; over all axes of a
// mesh there is one host order. Verbs return void: a communicator keeps its first error (Health),
// and the step loop asks once a step; after an error its verbs do nothing, so that a rank reaches
// that question. AllGather and ReduceScatter take equal counts, as NCCL does. Counts are int64;
// implementations cut messages at 1 GiB. Buffers are contiguous and stay untouched by the caller
// until the stream is joined.
//
// Sums are taken element by element in rank order, rank 0 + rank 1 + ..., in the element's own type
// (bf16 in f32, rounded once): the same bits on all ranks, in all runs, on all implementations but
// one: NCCL adds more than two ranks in an order of its own.
//
// Implementations: SelfCommunicator (size 1, below), and in parallel/ thread, MPI, counting, and
// for memory of GPUs NCCL and staged, which a device communicator joins with one of the host's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace toroid {

enum class ReduceOp { kSum, kMax };

// What this rank sent, by the ring algorithms' arithmetic (n ranks, M bytes of the whole result):
// AllGather and ReduceScatter (n - 1) M / n, AllReduce twice that (rounded down), Broadcast M on
// the root, SendRecv and AllToAll the bytes handed over to other ranks. Nothing for n = 1.
struct CommCounters {
  int64_t bytes_sent = 0;
  int64_t calls = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  int rank() const { return rank_; }
  int size() const { return size_; }

  // The sum (or maximum; NaN wins) over ranks, on every rank, in place.
  Tensor AllReduce(Stream s, Partial x, ReduceOp op = ReduceOp::kSum);
  // x: [size c, ..]. out: [c, ..], the sum of block `rank` of x over ranks. out may be that block.
  Tensor ReduceScatter(Stream s, Partial x, Tensor out);
  // x: [c, ..]. out: [size c, ..], x of all ranks in rank order. x may be its own place in out.
  Tensor AllGather(Stream s, Tensor x, Tensor out);
  void Broadcast(Stream s, Tensor x, int root);
  // Sends to `to` and receives from `from` in one verb, so a ring step cannot deadlock. A side of
  // zero bytes makes no call; both ends of a message agree on its size.
  void SendRecv(Stream s, Tensor send, int to, Tensor recv, int from);
  // x: [size c, ..] block j goes to rank j; out: [size c, ..] block j came from rank j.
  void AllToAll(Stream s, Tensor x, Tensor out);
  void Barrier(Stream s);

  // The first error of any verb; sticky.
  virtual absl::Status Health() const = 0;
  // Ranks of equal color form a new communicator, ordered by key, then by rank. Color and key are
  // pure functions of a rank here, the same on all ranks, so that a communicator that only counts
  // knows the other ranks' too. A color is not negative. Collective, may block.
  using RankFunction = std::function<int(int rank)>;
  virtual std::unique_ptr<Communicator> Split(const RankFunction& color,
                                              const RankFunction& key) = 0;
  // In the order of rank.
  std::unique_ptr<Communicator> Split(const RankFunction& color) {
    return Split(color, [](int rank) { return rank; });
  }

  const CommCounters& counters() const { return counters_; }
  // Bytes of its own buffers (scratch of reductions) held now; bounded, steady after the first use
  // of each size, and equal on an implementation that only counts.
  virtual int64_t communicator_bytes() const { return 0; }

 protected:
  Communicator(int rank, int size) : rank_(rank), size_(size) {}

  // Never called for size 1 (AllGather and ReduceScatter copy then), nor for zero bytes (both sides
  // of SendRecv). Counts are elements; dtype is f32, f64, bf16, f16, i32, i64 or u8 (reductions:
  // f32, f64, i32, i64; bf16 through f32).
  virtual void DoAllReduce(Stream s, void* x, int64_t count, DType type, ReduceOp op) = 0;
  virtual void DoReduceScatter(Stream s, const void* x, void* out, int64_t count_each,
                               DType type) = 0;
  virtual void DoAllGather(Stream s, const void* x, void* out, int64_t bytes_each) = 0;
  virtual void DoBroadcast(Stream s, void* x, int64_t bytes, int root) = 0;
  virtual void DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                          int64_t recv_bytes, int from) = 0;
  virtual void DoAllToAll(Stream s, const void* x, void* out, int64_t bytes_each) = 0;
  virtual void DoBarrier(Stream s) = 0;
  // AllGather and ReduceScatter at size 1: bytes from x to out, ordered on s.
  virtual void DoLocalCopy(Stream s, const void* x, void* out, int64_t bytes);

 private:
  const int rank_, size_;
  CommCounters counters_;
};

// The axis of one rank: every verb is a copy or nothing. It lets a mesh of 1x1x1 run the same
// lines.
class SelfCommunicator final : public Communicator {
 public:
  SelfCommunicator() : Communicator(0, 1) {}
  absl::Status Health() const override { return absl::OkStatus(); }
  using Communicator::Split;
  std::unique_ptr<Communicator> Split(const RankFunction&, const RankFunction&) override {
    return std::make_unique<SelfCommunicator>();
  }

 protected:
  void DoAllReduce(Stream, void*, int64_t, DType, ReduceOp) override {}
  void DoReduceScatter(Stream, const void*, void*, int64_t, DType) override {}
  void DoAllGather(Stream, const void*, void*, int64_t) override {}
  void DoBroadcast(Stream, void*, int64_t, int) override {}
  void DoSendRecv(Stream, const void*, int64_t, int, void*, int64_t, int) override {}
  void DoAllToAll(Stream, const void*, void*, int64_t) override {}
  void DoBarrier(Stream) override {}
};

}  // namespace toroid
