// VerifyTraining: proof that this mesh trains the model. The first step of a run is made on the
// mesh and, on rank 0, on one rank in float64; every parameter's gradient and what the update makes
// of it are compared.
//
//   loss              of the batch
//   gradient of W     on every rank that stores a copy of an element, replicas too
//   gradient norm     before the clip }  against float64's update by *the mesh's* gradient: AdamW's
//   updated W         after the step  }  first step is nearly the sign of the gradient, so that a
//                                        rounding of a gradient near zero would move a weight by
//                                        the learning rate; the gradient itself is judged above
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "parallel/request.h"
#include "parallel/trainer.h"

namespace toroid {

// error = max |x - reference| / max(max |reference|, 1e-6 x the largest max |reference| of all
// tensors of the kind). bound: 1e-9 in float64; else, of the loss and of gradients, 4 times the
// error of one rank at this compute against float64, and at least 1e-6; of the rest 1e-6.
// `batch` is that of step 0, options.layers and FirstTokens cut what is compared. Rank 0 reads the
// whole batch and holds 32 bytes for each parameter (weights, gradient and moments in float64), and
// for a while 16 more (the same in float32) before its part of the mesh is made.
// Collective; the result is whole on rank 0. rounds: Trainer::Create's, of the mesh. Errors are
// those of Trainer::Create and Step.
absl::StatusOr<VerifyResult> VerifyTraining(
    std::unique_ptr<Communicator> world, std::shared_ptr<const ModelSource> source,
    const TrainOptions& options, const TrainBatch& batch, ProgressBoard* board,
    const std::function<void(const Progress&)>& on_progress = [](const Progress&) {},
    const RoundsRule& rounds = Rounds);

// The first packs of a batch, each cut to its first tokens: `packs` and, of them together, about
// `tokens`, two to a pack at least. 0: all.
TrainBatch FirstTokens(const TrainBatch& batch, int64_t packs, int64_t tokens);

}  // namespace toroid
