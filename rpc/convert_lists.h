// Repeated fields of messages <-> vectors. Included by convert_*.cc only.
#pragma once

#include <vector>

namespace toroid {

template <typename From, typename To>
void CopyAll(const From& from, To* to) {
  to->Assign(from.begin(), from.end());
}
template <typename T, typename From>
std::vector<T> ToVector(const From& from) {
  return std::vector<T>(from.begin(), from.end());
}

}  // namespace toroid
