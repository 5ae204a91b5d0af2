#include "kernels/isa.h"

#include <atomic>
#include <cstdlib>

namespace toroid {

namespace {

std::string ParseIsa(const std::string& name, Isa* isa) {
  *isa = BestIsa();
  if (name.empty() || name == "auto") return "";
  std::string possible;
  for (Isa candidate : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (!IsaSupported(candidate)) continue;
    if (name == IsaName(candidate)) {
      *isa = candidate;
      return "";
    }
    possible += possible.empty() ? "" : ", ";
    possible += IsaName(candidate);
  }
  return "TOROID_ISA=" + name + " is not possible on this processor; use one of: " + possible;
}

std::atomic<Isa>& Current() {
  static std::atomic<Isa> current = [] {
    const char* name = std::getenv("TOROID_ISA");
    Isa isa;
    ParseIsa(name == nullptr ? "" : name, &isa);
    return isa;
  }();
  return current;
}

}  // namespace

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

bool IsaSupported(Isa isa) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  switch (isa) {
    case Isa::kScalar:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
  return false;
}

Isa BestIsa() {
  if (IsaSupported(Isa::kAvx512)) return Isa::kAvx512;
  return IsaSupported(Isa::kAvx2) ? Isa::kAvx2 : Isa::kScalar;
}

Isa CurrentIsa() { return Current().load(std::memory_order_relaxed); }

std::string IsaError() {
  const char* name = std::getenv("TOROID_ISA");
  Isa isa;
  return ParseIsa(name == nullptr ? "" : name, &isa);
}

std::string SelectIsa(const std::string& name) {
  Isa isa;
  const std::string error = ParseIsa(name, &isa);
  if (error.empty()) Current().store(isa);
  return error;
}

}  // namespace toroid
