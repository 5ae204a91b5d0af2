// Engine::Sequence: one request's text as one rank holds it. Private to engine*.cc, generate.cc,
// score.cc.
#pragma once

#include <memory>
#include <vector>

#include "core/model/rope.h"
#include "parallel/engine.h"

namespace toroid {

struct Engine::Sequence {
  std::vector<int32_t> ids;  // the prompt, whole on every rank
  int64_t limit = 0;         // prompt + most new tokens
  bool cached = false;       // K and V are kept for decode
  TokenLayout layout;        // of the prompt
  const char* phase;         // "prefill", "score", "verify"
  const EngineEvents& events;
  const Observer* observer = nullptr;
  int64_t length = 0;  // tokens so far, prompt and new
  RopeFrequencies rope;
  Tensor inv_freq;  // f64 [K/2] on the device, for the request's life
  std::unique_ptr<RingAttention> ring;

  Sequence(std::vector<int32_t> prompt, int64_t most, bool keep, const LoadRequest& load,
           const char* phase_name, const EngineEvents& sink)
      : ids(std::move(prompt)),
        limit(most),
        cached(keep),
        layout(load.layout, {int64_t(ids.size())}, load.mesh.data, load.mesh.ring),
        phase(phase_name),
        events(sink) {}
};

}  // namespace toroid
