// Who runs next, and where: a pure function of pods and of what waits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "rpc/job.h"

namespace toroid {

struct PodView {
  enum class State {
    kFree,
    kIdleKept,  // runs a world that nobody uses: it yields
    kEnding,    // its world is about to end: free soon
    kBusy,
    kClosed,  // lost or draining
  };
  std::string name;
  int slots = 0;
  State state = State::kFree;
  absl::Time idle_since;  // of a kept world
};

struct Waiting {
  uint64_t key = 0;  // the caller's
  MeshWish mesh;
  std::string pod;  // empty: any
  int64_t priority = 0;
  uint64_t order = 0;         // of arrival
  int64_t pods = 1;           // so many, or none
  PodMeshes pod_meshes = {};  // these pods take part in any case, each with a mesh of its own
  bool any_pod = false;       // even so: none of them has to
  std::string prefers = {};   // this one, be it that a kept world ends for it
  int64_t least = 0;          // begins with so many of its pods, if no more are free; 0: with all
  std::vector<std::string> must = {};   // these take part in any case, as pod_meshes'
  std::vector<std::string> among = {};  // none but these; empty: any
};

struct Assignment {
  uint64_t key = 0;
  std::string pod;
  enum class Action {
    kStart,  // the pod is free
    kEvict,  // end the pod's kept world; ask again when the pod is free
    kWait,   // the pod is ending a world for this one
  } action = Action::kStart;
};

// At most one assignment a pod and, for each of its pods, a waiting item, in order of priority,
// then of arrival. After those that it names, or prefers, a free pod is preferred to an ending one,
// that to the kept world idle for longest; among free pods the one with the fewest slots that are
// enough. One whose pod, or pods that take part in any case, are busy waits for these alone. What
// waits for several pods starts once all are free, and keeps those that are (kWait) if there are
// others that may become so; what begins with fewer starts on those that are free, and the others
// are made free.
std::vector<Assignment> Schedule(const std::vector<PodView>& pods, std::vector<Waiting> waiting);

}  // namespace toroid
