// Pods as threads of the test: a thread world for each, and links between them.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "parallel/in_process_pod_link.h"
#include "parallel/mesh.h"
#include "tests/support/pod_link_conformance.h"

namespace toroid {

using PodBody =
    std::function<void(int64_t pod, std::unique_ptr<Communicator> world, PodLink& link)>;

// Runs `body` on each rank of each pod and waits for all, as RunOnRanks, with in-process links.
// meshes: by pod. `between`, unless null, is called with the network before any rank runs, to keep
// it for cuts.
void RunOnPods(const std::vector<MeshShape>& meshes, const PodBody& body,
               std::chrono::milliseconds deadline = std::chrono::seconds(120),
               const std::function<void(InProcessPodNetwork&)>& between = nullptr);

// The same with the links of a network that `create` makes: three pods of four ranks at most.
void RunOnPods(const NewPodLinkNetwork& create, const std::vector<MeshShape>& meshes,
               const PodBody& body, std::chrono::milliseconds deadline = std::chrono::seconds(120));

// A network between threads, as large as that.
std::unique_ptr<PodLinkNetwork> NewInProcessNetwork(int64_t queue_bytes);

}  // namespace toroid
