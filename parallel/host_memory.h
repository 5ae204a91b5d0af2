// How much memory this process's host has free, for what is refused before it is begun.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace toroid {

// Bytes that can be taken without swapping (MemAvailable), at most what the limits of this
// process's control groups (versions 1 and 2) leave; pages of files that the kernel would give back
// count as free. Empty where the system does not say. root: stands before /proc and /sys, for
// tests.
std::optional<int64_t> FreeMemory(const std::string& root = "");

}  // namespace toroid
