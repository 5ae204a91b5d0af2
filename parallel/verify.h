// Verify: proof that this mesh computes the model. The text runs through the mesh and, on rank 0,
// through one rank in float64 and one rank at the mesh's own compute; every tap of every layer is
// compared.
#pragma once

#include "parallel/engine.h"

namespace toroid {

// error = max |x - reference| / max |reference| of a tap's whole tensor. bound: 1e-9 in float64;
// else 4 times the error of one rank at this compute, at least 1e-6. `world` is the engine's
// parent, for an engine of fewer layers. Collective; the result is whole on rank 0.
absl::StatusOr<VerifyResult> Verify(Engine& engine, Communicator& world,
                                    const VerifyRequest& request, ProgressBoard* board,
                                    const EngineEvents& events);

}  // namespace toroid
