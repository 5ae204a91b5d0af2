// A rank's ParamStore whose every value is a function of (version, kind, parameter, element of the
// whole parameter), so that a test knows what any mesh must hold.
#pragma once

#include <cstdint>
#include <memory>

#include "core/backend.h"
#include "core/model/model_config.h"
#include "parallel/mesh.h"
#include "parallel/param_store.h"
#include "tests/support/small_models.h"

namespace toroid {

class TrainingStore {
 public:
  TrainingStore(Mesh& mesh, const ModelConfig& config, DType type = DType::kF32);

  ParamStore& operator*() { return *store_; }
  // Weights and moments of this version, pads zero.
  void Fill(uint64_t version);
  // Elements of weights and moments that are not of this version, bit for bit; pads that are not
  // zero are counted too.
  int64_t Differences(uint64_t version) const;

 private:
  template <typename Visit>
  void ForEach(uint64_t version, Visit visit) const;

  std::unique_ptr<Backend> ops_;
  std::unique_ptr<ParamStore> store_;
};

}  // namespace toroid
