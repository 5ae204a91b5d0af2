// Pods as threads of the test: a thread world for each, in-process links between them.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "parallel/in_process_pod_link.h"
#include "parallel/mesh.h"

namespace toroid {

// Runs `body` on each rank of each pod and waits for all, as RunOnRanks. meshes: by pod. `between`,
// unless null, is called with the network before any rank runs, to keep it for cuts.
void RunOnPods(const std::vector<MeshShape>& meshes,
               const std::function<void(int64_t pod, std::unique_ptr<Communicator> world,
                                        PodLink& link)>& body,
               std::chrono::milliseconds deadline = std::chrono::seconds(120),
               const std::function<void(InProcessPodNetwork&)>& between = nullptr);

}  // namespace toroid
