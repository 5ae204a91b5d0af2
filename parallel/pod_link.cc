#include "parallel/pod_link.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace toroid {

std::string ToString(PodRank rank) { return absl::StrCat("pod ", rank.pod, " rank ", rank.rank); }

absl::Status CompareTerms(const PodIdentity& own, const PodIdentity& peer) {
  const auto differs = [&](absl::string_view ours, absl::string_view theirs) {
    return absl::FailedPreconditionError(
        absl::StrCat(ToString(peer.self), " has \"", theirs, "\", this ", ToString(own.self), " \"",
                     ours, "\": start all pods with the same job, model, data and version"));
  };
  if (own.job != peer.job) {
    return differs(absl::StrCat("job: ", own.job), absl::StrCat("job: ", peer.job));
  }
  const auto term = [](const PodIdentity& identity, size_t i) {
    return i < identity.terms.size() ? absl::string_view(identity.terms[i]) : "nothing";
  };
  for (size_t i = 0; i < std::max(own.terms.size(), peer.terms.size()); ++i) {
    if (term(own, i) != term(peer, i)) return differs(term(own, i), term(peer, i));
  }
  return absl::OkStatus();
}

}  // namespace toroid
