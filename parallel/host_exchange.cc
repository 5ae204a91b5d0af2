#include "parallel/host_exchange.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"

namespace toroid {

std::string BroadcastText(Communicator& world, const std::string& text) {
  CpuStream queue(/*inline_work=*/true);
  const Stream s{&queue, nullptr};
  const int64_t size = GatherHost(world, int64_t(text.size()))[0];
  std::string out = text;
  out.resize(size_t(size));
  world.Broadcast(s, Tensor(DType::kU8, {size}, out.data()), 0);
  return world.Health().ok() ? out : text;
}

std::vector<double> OnHost(Backend& ops, Stream s, Tensor x) {
  std::vector<double> values(x.size());
  if (x.dtype == DType::kF64) {
    ops.Download(s, x, values.data());
  } else if (x.dtype == DType::kBF16) {
    std::vector<uint16_t> narrow(x.size());
    ops.Download(s, x, narrow.data());
    std::transform(narrow.begin(), narrow.end(), values.begin(), FromBf16);
  } else {
    std::vector<float> narrow(x.size());
    ops.Download(s, x, narrow.data());
    std::copy(narrow.begin(), narrow.end(), values.begin());
  }
  return values;
}

void BroadcastHost(Communicator& world, std::vector<double>& values) {
  CpuStream queue(/*inline_work=*/true);
  world.Broadcast({&queue, nullptr}, Tensor(DType::kF64, {int64_t(values.size())}, values.data()),
                  0);
}

void MaxHost(Communicator& world, std::vector<double>& values) {
  CpuStream queue(/*inline_work=*/true);
  world.AllReduce({&queue, nullptr},
                  Partial(Tensor(DType::kF64, {int64_t(values.size())}, values.data())),
                  ReduceOp::kMax);
}

void SumHost(Communicator& world, std::vector<double>& values) {
  constexpr int64_t kBlock = int64_t{1} << 16;  // values at a time: bounds the reduction's buffers
  CpuStream queue(/*inline_work=*/true);
  const Stream s{&queue, nullptr};
  for (int64_t begin = 0; begin < int64_t(values.size()); begin += kBlock) {
    const int64_t n = std::min(kBlock, int64_t(values.size()) - begin);
    world.AllReduce(s, Partial(Tensor(DType::kF64, {n}, values.data() + begin)));
  }
}

absl::Status ShareStatus(Communicator& world, const absl::Status& status) {
  struct Card {
    int32_t code;
    char message[1000];
    char host[64];
  } own = {int32_t(status.code()), {}, {}};
  std::strncpy(own.message, std::string(status.message()).c_str(), sizeof(own.message) - 1);
  gethostname(own.host, sizeof(own.host) - 1);
  const std::vector<Card> cards = GatherHost(world, own);
  if (!world.Health().ok()) return world.Health();
  for (size_t rank = 0; rank < cards.size(); ++rank) {
    const Card& card = cards[rank];
    if (card.code == 0) continue;
    std::string message = card.message;
    if (std::strcmp(card.host, cards[0].host) != 0) {
      message = absl::StrCat("on host ", card.host, ": ", message);
    }
    absl::Status shared(static_cast<absl::StatusCode>(card.code), message);
    if (static_cast<int64_t>(rank) == world.rank()) {
      status.ForEachPayload([&shared](absl::string_view type, const absl::Cord& payload) {
        shared.SetPayload(type, payload);
      });
    }
    return shared;
  }
  return absl::OkStatus();
}

}  // namespace toroid
