// The version that our own processes compare when they meet.
#pragma once

namespace toroid {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace toroid
