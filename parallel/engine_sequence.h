// What one rank holds of a request: the text that a pass reads, and the answers that are made
// together. Private to engine*.cc, generate.cc, decode_batch.cc, score.cc.
#pragma once

#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "core/model/rope.h"
#include "parallel/engine.h"
#include "parallel/token_source.h"

namespace toroid {

// What positions are multiplied by.
struct Engine::Rotation {
  RopeFrequencies rope;
  Tensor inv_freq;  // f64 [K/2] on the device
};

// A text as this rank holds it while it is read.
struct Engine::Sequence {
  std::vector<int32_t> ids;  // the prompt, whole on every rank
  int64_t limit = 0;         // prompt + most new tokens
  TokenLayout layout;        // of the prompt
  const char* phase;         // "prefill", "score", "verify"
  const EngineEvents& events;
  int64_t cached = -1;  // its number in the cache; -1: K and V are not kept
  const Observer* observer = nullptr;
  Rotation rotation;
  std::unique_ptr<RingAttention> ring;

  Sequence(std::vector<int32_t> prompt, int64_t most, const LoadRequest& load,
           const char* phase_name, const EngineEvents& sink)
      : ids(std::move(prompt)),
        limit(most),
        layout(load.layout, {int64_t(ids.size())}, load.mesh.data, load.mesh.ring),
        phase(phase_name),
        events(sink) {}
};

// What was sent, by axis in the order of kAxisNames.
struct Engine::Traffic {
  struct Axis {
    int64_t sent = 0, prefill_sent = 0, calls = 0;
  };
  std::array<Axis, 5> axes;
};

// One token of each row of a batch.
struct Engine::StepRows {
  std::vector<int64_t> slots;                    // cache row that it is written to; -1: not here
  std::vector<int32_t> ids, positions, lengths;  // lengths: of the row's local keys, it included
};

// An answer while it is made.
struct Engine::Answer {
  GenerateResult result;
  Traffic traffic;
  TokenSource source;
  absl::Status failure;  // of the source
  int64_t cached = -1;   // its number in the cache
  int64_t length = 0;    // tokens so far, prompt and new
  int64_t made = 0;      // new ones
  int32_t id = 0;        // the last of them
  bool ended = false;    // it was its last
  // Behind its last token, on rank 0: logits [V]; empty: what the device has drawn of them.
  std::vector<double> logits;
  SampledRow drawn;
};

// A request's answers. Those in `rows` are made together, a token of each at a time; one that ends
// leaves its row to the last, and the next in order takes a free one.
struct Engine::Batch {
  const GenerateRequest& request;
  const EngineEvents& events;
  const int64_t most_rows;
  Rotation rotation;  // of all rows
  int64_t next = 0;   // answers before it have begun: prompt next / n, index next % n
  std::vector<std::unique_ptr<Answer>> rows;
  std::vector<std::unique_ptr<Answer>> done;
  // The prompt whose answers are beginning: its number in the cache, and what all of them start
  // with.
  int64_t prompt = -1;
  std::vector<std::pair<int64_t, double>> prompt_logprobs;
  std::vector<double> logits;
};

}  // namespace toroid
