// Leases: who has been heard of lately. Plain logic; the caller brings the time.
//
// A name holds a lease from its first Renew until it is forgotten or its lease has run out. Not
// thread-safe.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace toroid {

class FailureDetector {
 public:
  explicit FailureDetector(absl::Duration lease) : lease_(lease) {}

  void Renew(const std::string& name, absl::Time now) { deadlines_[name] = now + lease_; }
  void Forget(const std::string& name) { deadlines_.erase(name); }
  // When the lease runs out; InfinitePast for a name that holds none.
  absl::Time Deadline(const std::string& name) const {
    const auto it = deadlines_.find(name);
    return it == deadlines_.end() ? absl::InfinitePast() : it->second;
  }
  // Names whose lease has run out, each told once.
  std::vector<std::string> TakeExpired(absl::Time now) {
    std::vector<std::string> expired;
    for (auto it = deadlines_.begin(); it != deadlines_.end();) {
      if (it->second <= now) {
        expired.push_back(it->first);
        it = deadlines_.erase(it);
      } else {
        ++it;
      }
    }
    return expired;
  }
  absl::Duration lease() const { return lease_; }

 private:
  absl::Duration lease_;
  std::map<std::string, absl::Time> deadlines_;
};

}  // namespace toroid
