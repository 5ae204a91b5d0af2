// The version that processes compare when they meet, and that checkpoints name.
#pragma once

namespace toroid {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace toroid
