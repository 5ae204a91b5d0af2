// MembershipView: which pods of a job take part from now on. Without a controller all pods, in one
// view; with one it is the controller's word, and each change is a view of a higher number.
//
// Policy `continue`, by which the others go on when a pod is lost: a merge is made of the shares of
// a set of pods, and all that make it must take the same set although each learns of a loss at
// another time and one may have got shares of the lost pod that another lacks. So a merge has two
// halves. A pod that has the shares of all members of its view tells all of them whose shares it
// has whole (a *have card*, of this merge and view), and merges once it has such a card of each:
// the shares that all of them have. When the view changes while it waits, it does the same for the
// new one. What it merged last it tells again in a new view, as it was: for those that are not that
// far.
//
// Why all take the same set. Let A be the first to merge, the set P in view v. Each member of v had
// told that it has P's shares, and keeps them. Any later view has fewer members: a later merger B
// intersects A's card, which says P, with cards of pods that have at least P; or A is no member any
// more, and what it made counts for nobody. That A made P with a card of B from v, although B told
// another one in v + 1, does no harm: B's later card has at least what its earlier one had.
//
// A lost pod that was launched again is in a later view under its new launch, and trains again when
// it was *taken in*. That needs one point in the order of merges: the card of each share tells
// which launches its pod has heard of, all that make a merge read the same cards, and so all take
// in the same launches behind it, before the next step. Who makes a merge are the pods that have
// been taken in and whose launch the newest view has: while one merge is made they only become
// fewer, as above. Each that took it in tells the newcomer so (an *admission*: behind which step,
// who trains, who of them gives it the state, state_copy.h), and it believes what all that train by
// its newest view have told alike: a pod that merged what the others did not is in no newer view.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace toroid {

struct MembershipView {
  uint64_t number = 1;
  std::vector<int64_t> members;  // ascending
  // Of each member the epoch of its present launch, which tells it from the one that was lost;
  // empty: there is only one launch of each.
  std::vector<uint64_t> launches;
  bool Has(int64_t pod) const { return std::binary_search(members.begin(), members.end(), pod); }
  uint64_t LaunchOf(int64_t pod) const {  // 0: it is no member, or there is only one
    const auto at = std::lower_bound(members.begin(), members.end(), pod);
    return launches.empty() || at == members.end() || *at != pod
               ? 0
               : launches[size_t(at - members.begin())];
  }
};

}  // namespace toroid
