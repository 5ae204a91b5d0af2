// What every communicator must do, on any number of ranks: one list of cases, run on self, on
// threads and under mpirun. Each case is called by all ranks of `world` together and checks what
// this rank sees. Inputs differ in every byte from rank to rank and place to place.
#pragma once

#include <ostream>
#include <vector>

#include "core/communicator.h"

namespace toroid {

struct ConformanceCase {
  const char* name;
  void (*run)(Communicator& world);
};
inline void PrintTo(const ConformanceCase& c, std::ostream* out) { *out << c.name; }

const std::vector<ConformanceCase>& ConformanceCases();

// Ends with a communicator that has failed: run it last. REQUIRES: size > 1.
void ExpectHealthIsSticky(Communicator& world);

}  // namespace toroid
