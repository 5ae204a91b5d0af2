// Sampler: turns one row of logits into the next token of one sequence. Plain host code of rank 0.
//
// The order, as in Hugging Face's generate:
//   1. penalties on the logit l of an id, as vLLM and OpenAI define them:
//        repetition r   l = l > 0 ? l / r : l r     ids of the prompt or of the output
//        frequency f    l -= f * (times the id is in the output)
//        presence p     l -= p                      ids of the output
//   2. temperature      0 = greedy: the largest l and nothing below; else z = l / temperature
//   3. top_k            the k ids of largest z
//   4. top_p            of softmax(z) over what is left, in falling order: an id stays if the mass
//                       before it is < top_p, so the id that crosses top_p stays
//   5. min_p            ids whose probability is >= min_p times the largest
//   6. draw             the ids left share [0, 1) in ascending id, each as long as its softmax(z);
//                       the id whose interval holds the drawn number u
// Ties go to the lowest id everywhere, all arithmetic is double, and u is one Philox number of
// (seed, sequence, position): the same logits give the same token on every mesh. Ascending id, not
// falling probability, because then logits that differ by rounding move every edge by rounding.
//
// Not thread-safe; one object per sequence. Nothing is allocated after the first token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

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
};

struct Sampled {
  int32_t id = 0;
  double log_p = 0;  // of the chosen id under the softmax of the unmodified logits
  // How far the choice was from another one. Greedy: the gap between the two largest logits after
  // penalties. Else: from u to the nearer inner edge of its interval (0 and 1 are no edges: nothing
  // lies beyond them). Infinity where there was nothing else to choose. Not measured: how near an
  // id came to a cutoff of top_k, top_p or min_p.
  double margin = 0;
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

 private:
  struct Candidate {
    int32_t id;
    double z;       // (l - largest l) / temperature
    double weight;  // e^z
  };
  Sampler(const SamplingParams& params, int64_t vocab, uint64_t sequence)
      : params_(params), vocab_(vocab), sequence_(sequence) {}
  void See(int32_t id);
  template <typename T>
  absl::StatusOr<Sampled> SampleRow(std::span<const T> logits, int64_t position);
  void Penalise();
  Sampled Greedy() const;
  Sampled Draw(int64_t position);
  void KeepTopK();
  void KeepTopP();

  SamplingParams params_;
  int64_t vocab_;
  uint64_t sequence_;
  std::vector<double> logits_;         // [V], after penalties
  std::vector<Candidate> candidates_;  // ids still possible
  // Ids of prompt and output, each once, and how often each id is in the output (-1: in neither);
  // kept only under a penalty.
  std::vector<int32_t> seen_;
  std::vector<int64_t> output_count_;  // [V]
};

}  // namespace toroid
