// Small exchanges of host memory among ranks, blocking: reports, checks, control. Not for tensors
// of a device. REQUIRES a communicator that takes host memory (self, threads, MPI, counting).
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "core/backend.h"
#include "core/communicator.h"

namespace toroid {

// One plain struct of every rank, in rank order, on every rank.
template <typename Card>
std::vector<Card> GatherHost(Communicator& world, const Card& own) {
  static_assert(std::is_trivially_copyable_v<Card>);
  CpuStream queue(/*inline_work=*/true);
  const Stream s{&queue, nullptr};
  std::vector<Card> cards(world.size(), own);
  Tensor all(DType::kU8, {world.size(), int64_t{sizeof(Card)}}, cards.data());
  world.AllGather(s, all.Rows(world.rank(), 1), all);
  return cards;
}

// Rank 0's text on every rank; after an error of the world (Health) the caller's own.
std::string BroadcastText(Communicator& world, const std::string& text);

// A tensor's values, of float32 or float64, as they are now.
std::vector<double> OnHost(Backend& ops, Stream s, Tensor x);

// Rank 0's values on every rank; as many on all.
void BroadcastHost(Communicator& world, std::vector<double>& values);

// Element-wise largest values over the world, in place, on every rank.
void MaxHost(Communicator& world, std::vector<double>& values);

// Element-wise sums over the world, in place, on every rank.
void SumHost(Communicator& world, std::vector<double>& values);

// The same answer on all ranks: OK if all are OK, else the error of the lowest rank that has one,
// naming its host where it is another than rank 0's. That rank's own has its payloads too.
absl::Status ShareStatus(Communicator& world, const absl::Status& status);

}  // namespace toroid
