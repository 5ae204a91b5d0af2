#include "core/communicator.h"

#include <cstring>

namespace toroid {

Tensor Communicator::AllReduce(Stream s, Partial x, ReduceOp op) {
  Tensor& owed = x.owed_;
  TOROID_CHECK(owed.contiguous());
  if (size_ > 1 && !owed.empty()) {
    counters_.calls += 1;
    counters_.bytes_sent += 2 * (size_ - 1) * owed.bytes() / size_;
    DoAllReduce(s, owed.data, owed.size(), owed.dtype, op);
  }
  return owed;
}

Tensor Communicator::ReduceScatter(Stream s, Partial x, Tensor out) {
  const Tensor& owed = x.owed_;
  TOROID_CHECK(owed.contiguous() && out.contiguous());
  TOROID_CHECK_EQ(owed.size(), out.size() * size_);
  TOROID_CHECK(owed.dtype == out.dtype);
  if (out.empty()) return out;
  if (size_ == 1) {
    DoLocalCopy(s, owed.data, out.data, out.bytes());
    return out;
  }
  counters_.calls += 1;
  counters_.bytes_sent += (size_ - 1) * out.bytes();
  DoReduceScatter(s, owed.data, out.data, out.size(), out.dtype);
  return out;
}

Tensor Communicator::AllGather(Stream s, Tensor x, Tensor out) {
  TOROID_CHECK(x.contiguous() && out.contiguous());
  TOROID_CHECK_EQ(out.bytes(), x.bytes() * size_);
  if (x.empty()) return out;
  if (size_ == 1) {
    DoLocalCopy(s, x.data, out.data, x.bytes());
    return out;
  }
  counters_.calls += 1;
  counters_.bytes_sent += (size_ - 1) * x.bytes();
  DoAllGather(s, x.data, out.data, x.bytes());
  return out;
}

void Communicator::Broadcast(Stream s, Tensor x, int root) {
  TOROID_CHECK(x.contiguous() && root >= 0 && root < size_);
  if (size_ == 1 || x.empty()) return;
  counters_.calls += 1;
  if (rank_ == root) counters_.bytes_sent += x.bytes();
  DoBroadcast(s, x.data, x.bytes(), root);
}

void Communicator::SendRecv(Stream s, Tensor send, int to, Tensor recv, int from) {
  TOROID_CHECK(send.contiguous() && recv.contiguous());
  if (send.empty() && recv.empty()) return;
  if (to == rank_ && from == rank_) {
    TOROID_CHECK_EQ(send.bytes(), recv.bytes());
    DoLocalCopy(s, send.data, recv.data, send.bytes());
    return;
  }
  TOROID_CHECK(send.empty() || (to != rank_ && to >= 0 && to < size_));
  TOROID_CHECK(recv.empty() || (from != rank_ && from >= 0 && from < size_));
  counters_.calls += 1;
  counters_.bytes_sent += send.bytes();
  DoSendRecv(s, send.data, send.bytes(), to, recv.data, recv.bytes(), from);
}

void Communicator::AllToAll(Stream s, Tensor x, Tensor out) {
  TOROID_CHECK(x.contiguous() && out.contiguous());
  TOROID_CHECK_EQ(x.bytes(), out.bytes());
  TOROID_CHECK_EQ(x.rows() % size_, 0);
  if (x.empty()) return;
  if (size_ == 1) {
    DoLocalCopy(s, x.data, out.data, x.bytes());
    return;
  }
  counters_.calls += 1;
  counters_.bytes_sent += x.bytes() / size_ * (size_ - 1);
  DoAllToAll(s, x.data, out.data, x.bytes() / size_);
}

void Communicator::Barrier(Stream s) {
  if (size_ == 1) return;
  counters_.calls += 1;
  DoBarrier(s);
}

void Communicator::DoLocalCopy(Stream s, const void* x, void* out, int64_t bytes) {
  if (x == out || bytes == 0) return;
  if (s.native != nullptr) return CopyOnDevice(s, x, out, bytes);
  if (s.cpu == nullptr) return;  // a backend that only counts
  s.cpu->Enqueue([=] {
    std::memmove(out, x, static_cast<size_t>(bytes));
    return true;
  });
}

}  // namespace toroid
