// What every PodLink must do: one list of cases, run on the link between threads and on gRPC's.
// Each case makes its own network and links and checks what they do.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <vector>

#include "parallel/pod_link.h"

namespace toroid {

// Links that reach each other, whatever carries them. Ranks: pods 0, 1 and 2 of two ranks each.
class PodLinkNetwork {
 public:
  virtual ~PodLinkNetwork() = default;  // after all links
  // The link of one launch. A launch of a rank that has been here before may come while the earlier
  // link still lives.
  virtual std::unique_ptr<PodLink> Attach(const PodIdentity& identity) = 0;
  // Breaks the line between two ranks that are here. It must be up again some time after Heal; it
  // may be before.
  virtual void Cut(PodRank a, PodRank b) = 0;
  virtual void Heal(PodRank a, PodRank b) = 0;
};

// A network whose Send waits while more than queue_bytes have not been taken.
using NewPodLinkNetwork = std::function<std::unique_ptr<PodLinkNetwork>(int64_t queue_bytes)>;

struct PodLinkCase {
  const char* name;
  void (*run)(const NewPodLinkNetwork& create);
};
inline void PrintTo(const PodLinkCase& c, std::ostream* out) { *out << c.name; }

const std::vector<PodLinkCase>& PodLinkCases();

}  // namespace toroid
