// Ranks as threads of the test: RunOnRanks(4, [](std::unique_ptr<Communicator> world) { ... }).
#pragma once

#include <chrono>
#include <functional>
#include <memory>

#include "core/communicator.h"
#include "parallel/mesh.h"

namespace toroid {

// Runs `body` on `size` threads, each with its rank's communicator of one thread world, and waits
// for all. A rank that has not returned by the deadline fails the test by name, with the verb that
// it is in; verbs then fail everywhere so that the other ranks return. A rank that does not return
// even then ends the process. EXPECT_* work inside; a fatal ASSERT_* leaves that rank only, and the
// ranks that wait for it get an error in Health().
void RunOnRanks(int size, const std::function<void(std::unique_ptr<Communicator> world)>& body,
                std::chrono::milliseconds deadline = std::chrono::seconds(120));

// The same with a mesh made on each rank.
void RunOnMesh(MeshShape shape, const std::function<void(Mesh& mesh)>& body,
               std::chrono::milliseconds deadline = std::chrono::seconds(120));

}  // namespace toroid
