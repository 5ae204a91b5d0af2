// What the exchange between pods must be equal to (spec A9, A10), on whatever link: one list of
// cases, run on the link between threads and on gRPC's. Each has its negative control.
#pragma once

#include <ostream>
#include <vector>

#include "tests/support/pod_link_conformance.h"

namespace toroid {

struct PodIdentityCase {
  const char* name;
  void (*run)(const NewPodLinkNetwork& network);
};
inline void PrintTo(const PodIdentityCase& c, std::ostream* out) { *out << c.name; }

// Of gradients, with a model: exact, delayed; delayed in a bowl. Of weights, in a bowl: diloco,
// streaming.
const std::vector<PodIdentityCase>& GradientIdentities();
const std::vector<PodIdentityCase>& DelayedIdentities();
const std::vector<PodIdentityCase>& OuterIdentities();

}  // namespace toroid
