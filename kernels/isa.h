// Which instruction set the vector kernels use: chosen once at run time, since one binary runs on
// many processors. The environment variable TOROID_ISA (scalar, avx2, avx512) forces one. Every op
// asks CurrentIsa() at each call, so tests can compare all that the machine has. Thread-safe.
#pragma once

#include <string>

namespace toroid {

enum class Isa { kScalar, kAvx2, kAvx512 };

const char* IsaName(Isa isa);
// True if this processor can run the kernels of `isa`.
bool IsaSupported(Isa isa);
Isa BestIsa();
// What the ops use now: TOROID_ISA if it is possible, else the best.
Isa CurrentIsa();
// What is wrong with TOROID_ISA, in one line with the remedy; empty if nothing is.
std::string IsaError();
// As if TOROID_ISA were `name`; empty or "auto" is the best. Returns an error in the same form.
std::string SelectIsa(const std::string& name);

}  // namespace toroid
