#include "parallel/same_model.h"

#include <unistd.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "core/io/crc32c.h"
#include "core/io/mapped_file.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

// Tells builds apart: size and contents of the running executable. Every rank reads all of it when
// it starts, which must take no time: one with debug information has some 200 MB.
uint64_t BuildFingerprint() {
  static const uint64_t print = [] {
    const absl::StatusOr<MappedFile> file = MappedFile::Open("/proc/self/exe");
    if (!file.ok()) return uint64_t{0};
    return (uint64_t(file->bytes().size()) << 32) | Crc32c(file->bytes());
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
