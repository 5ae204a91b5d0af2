// StateCopy: what a pod that joins a run takes from one that trains, over the links between them:
// values of every element that its ranks store, exactly, and a text. Pods may have unlike meshes
// (exchange_layout.h). The giver reads all of it at once, between two steps, and trains on while
// it travels: until then its host holds a copy (GivenBytes).
//
// SPMD over each pod's world.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/param_store.h"
#include "parallel/pod_swap.h"

namespace toroid {

struct CopiedState {
  std::vector<ParamStore::Kind> kinds;  // of the store
  std::vector<void*> host;              // of the store's stored ranges, one behind the other
};

// Of `steps` steps, to pod `to`, which was taken in. text: rank 0's.
void GiveState(PodSwap& swap, int64_t to, int64_t steps, const CopiedState& state,
               const std::string& text);
// Of swap.giver(). Fills what `state` names and returns the text, on all ranks. Collective; errors
// are PodMail::Await's; Unavailable: the giver is lost; InvalidArgument: a share of a wrong size.
absl::StatusOr<std::string> TakeState(PodSwap& swap, const CopiedState& state);

// Of all values of the state: the same on giver and taker, whatever their meshes. Collective.
uint64_t StateHash(const ParamStore& store, const CopiedState& state);

// That each rank of the giver holds for a pod of the same mesh.
int64_t GivenBytes(const ParamStore& store, int64_t kinds);

}  // namespace toroid
