#include "parallel/same_model.h"

#include <unistd.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/random.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

// Tells builds apart: size and contents of the running executable.
uint64_t BuildFingerprint() {
  static const uint64_t print = [] {
    std::ifstream file("/proc/self/exe", std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    return HashName(bytes.data(), bytes.size());
  }();
  return print;
}

}  // namespace

absl::Status CheckSameModel(Communicator& world, const ModelSource& source, bool whole) {
  struct Card {
    uint64_t model, build;
    char host[64];
  } own = {source.Fingerprint(whole), BuildFingerprint(), {}};
  gethostname(own.host, sizeof(own.host) - 1);
  const std::vector<Card> cards = GatherHost(world, own);
  if (!world.Health().ok()) return world.Health();
  for (size_t i = 1; i < cards.size(); ++i) {
    const bool model_differs = cards[i].model != cards[0].model;
    if (!model_differs && cards[i].build == cards[0].build) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "ranks disagree about the ", model_differs ? "model" : "build of toroid", ": rank ", i,
        " on host ", cards[i].host, " has another ",
        model_differs ? absl::StrCat("copy of ", source.path) : std::string("executable"),
        " than rank 0 on host ", cards[0].host, ": copy ",
        model_differs ? "the model" : "the executable", " anew to ", cards[i].host));
  }
  return absl::OkStatus();
}

}  // namespace toroid
