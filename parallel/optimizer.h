// Optimizer: the update of one rank's stored ranges, AdamW or Adafactor as PaLM used it.
//
// AdamW works element by element, so that its bits do not depend on the mesh; Adafactor's step is
// scaled by the RMS of each whole parameter, a sum over ranks. Formulas: kernels/adamw.h,
// kernels/adafactor.h. One thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "core/train/clip.h"
#include "core/train/schedule.h"
#include "parallel/param_store.h"

namespace toroid {

struct OptimizerSpec {
  enum class Kind { kAdamW, kAdafactor };
  Kind kind = Kind::kAdamW;
  AdamWSpec adamw;
  AdafactorSpec adafactor;
  LearningRateSchedule rate;
  WeightDecay decay;
};

// InvalidArgument naming the number that is wrong. Pure.
absl::Status Validate(const OptimizerSpec& spec);

class Optimizer {
 public:
  // REQUIRES a valid spec. OutOfRange names the bytes of the steps' constants. The store outlives
  // the optimizer.
  static absl::StatusOr<std::unique_ptr<Optimizer>> Create(Backend& ops, Stream s,
                                                           ParamStore& store,
                                                           const OptimizerSpec& spec);
  ~Optimizer();

  // Bytes that an optimizer takes on the device, besides the store's moments.
  static int64_t ConstantBytes(const ParamStore& store, const OptimizerSpec& spec);

  // Where Adafactor takes the squared sums of all weights from: by default the store, which is
  // collective.
  void TakeSquaresFrom(std::function<std::vector<double>()> squares) {
    squares_ = std::move(squares);
  }

  // Applies the stored gradients, each times gradient_scale, at learning rate LearningRate(step).
  // `updates`: how many updates were made before, which is `step` less the steps that were skipped.
  // Collective with Adafactor.
  void Update(int64_t step, int64_t updates, double gradient_scale);

  // The rest of a step whose gradient is in the store: the clip and, if the gradient is finite, the
  // update, which `updates` then counts. squares: ParamStore::SquaredSums of the gradient. As
  // Update. Training and replay of it (weights_replay.h) both end here.
  struct Clipped {
    double squared_sum = 0;
    GradientClip clip;
    std::string skipped;  // the first parameter whose gradient is not finite
  };
  Clipped ClipAndUpdate(int64_t step, const std::vector<double>& squares, double max_norm,
                        int64_t& updates);

 private:
  Optimizer(Backend& ops, Stream s, ParamStore& store, const OptimizerSpec& spec)
      : ops_(ops), s_(s), store_(store), spec_(spec), squares_([&store] {
          return store.SquaredSums(ParamStore::Kind::kWeights);
        }) {}
  void UploadAdamW(int64_t step, int64_t updates, double gradient_scale);
  void UploadAdafactor(int64_t step, int64_t updates, double gradient_scale);

  Backend& ops_;
  Stream s_;
  ParamStore& store_;
  const OptimizerSpec spec_;
  static Tensor Constants(const ParamStore& store, const OptimizerSpec& spec);  // without memory

  std::function<std::vector<double>()> squares_;
  Tensor steps_;  // f64, the constants of each parameter: [parameters, 5 or 4]
};

}  // namespace toroid
