// Sampler: turns one row of logits into the next token of one sequence. Plain host code of rank 0.
//
// The order, as in Hugging Face's generate: penalties on the logit l of an id, as vLLM and OpenAI
// define them:
//   repetition r   l = l > 0 ? l / r : l r     ids of the prompt or of the output
//   frequency f    l -= f * (times the id is in the output)
//   presence p     l -= p                      ids of the output
// then temperature, top_k, top_p, min_p and the draw of kernels/sample.h, which a device can do
// without the host where there are no penalties (Row). All arithmetic is double: the same logits
// give the same token on every mesh. The draw runs in ascending id, not in falling probability,
// because then logits that differ by rounding move every edge by rounding.
//
// Not thread-safe; one object per sequence. Nothing is allocated after the first token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/sample.h"

namespace toroid {

struct SamplingParams {
  double temperature = 0;         // >= 0; 0 = greedy
  double top_p = 1;               // in (0, 1]; 1 = off
  int64_t top_k = 0;              // >= 0; 0 = off
  double min_p = 0;               // in [0, 1]; 0 = off
  double repetition_penalty = 1;  // in [0.01, 100]; 1 = off
  double presence_penalty = 0;    // in [-2, 2]
  double frequency_penalty = 0;   // in [-2, 2]
  uint64_t seed = 0;

  // InvalidArgument naming the field, its value and its range.
  absl::Status Validate() const;
  bool penalises() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
};

struct Sampled {
  int32_t id = 0;
  double log_p = 0;   // of the chosen id under the softmax of the unmodified logits
  double margin = 0;  // how far the choice was from another one, after penalties (kernels/sample.h)
};

class Sampler {
 public:
  // `sequence` numbers the sequences that share a seed. `prompt` is read for repetition_penalty
  // only. Errors: params out of range; an id of the prompt outside [0, vocab).
  static absl::StatusOr<Sampler> Create(const SamplingParams& params, int64_t vocab,
                                        uint64_t sequence, std::span<const int32_t> prompt);

  // The token at `position` of the sequence. logits [V]. Does not Append it.
  // Errors: Internal, if a logit is not finite (the model's numbers broke), naming id and position.
  absl::StatusOr<Sampled> Sample(std::span<const float> logits, int64_t position);
  absl::StatusOr<Sampled> Sample(std::span<const double> logits, int64_t position);
  // `id` is now part of the output. REQUIRES 0 <= id < vocab.
  void Append(int32_t id);

  // What the op Sample is to do in this one's place at `position`. REQUIRES: no penalties.
  SampleRow Row(int64_t position) const;
  // What the op has drawn. Errors: as Sample's.
  static absl::StatusOr<Sampled> Checked(const SampledRow& drawn, int64_t position);

 private:
  Sampler(const SamplingParams& params, int64_t vocab, uint64_t sequence)
      : params_(params), vocab_(vocab), sequence_(sequence) {}
  void See(int32_t id);
  template <typename T>
  absl::StatusOr<Sampled> SampleOne(std::span<const T> logits, int64_t position);
  void Penalise();

  SamplingParams params_;
  int64_t vocab_;
  uint64_t sequence_;
  SampleRoom room_;
  // Ids of prompt and output, each once, and how often each id is in the output (-1: in neither);
  // kept only under a penalty.
  std::vector<int32_t> seen_;
  std::vector<int64_t> output_count_;  // [V]
};

}  // namespace toroid
