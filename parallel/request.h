// What a world is asked and what it answers: plain structs, the same in direct mode and under an
// agent.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/model/sampler.h"
#include "core/model/token_layout.h"
#include "parallel/mesh.h"

namespace toroid {

enum class Compute { kF32, kF64, kBF16 };
// kAuto: a GPU where the build, the machine and the request allow it.
enum class Device { kAuto, kCpu, kCuda };

// How a model is placed on a world; fixed for as long as it is loaded.
struct LoadRequest {
  std::string model;      // directory, GGUF file, random:NAME or preset:NAME
  std::string tokenizer;  // a model whose tokenizer takes the place of its own; empty: none
  MeshShape mesh;         // product = world size
  LayoutRule layout{LayoutRule::Kind::kStriped, 16};
  Compute compute = Compute::kF32;
  Device device = Device::kCpu;
  bool share_gpus = false;      // ranks may share a GPU
  int64_t context = 0;          // longest prompt + output, tokens; 0: the model's own
  int64_t page_tokens = 16;     // tokens of a cache page
  int threads = 0;              // per rank; 0: the host's cores split evenly over its ranks
  uint64_t seed = 0;            // of random: weights
  bool verify_weights = false;  // compare all bytes of the model among ranks, not samples

  bool operator==(const LoadRequest&) const = default;
};

struct GenerateRequest {
  std::vector<int32_t> prompt_ids;  // at least one
  // Prompts that are answered after it, in order: prompt_index 1, 2, ..; each has at least one id.
  std::vector<std::vector<int32_t>> more_prompt_ids;
  int64_t n = 1;      // answers to each prompt; CheckAnswers
  int64_t batch = 0;  // answers that are made together at most; 0: kUsualBatch
  int64_t max_tokens = 256;
  SamplingParams sampling;
  std::vector<std::string> stop;  // stop strings; the text ends before them
  std::vector<int32_t> stop_ids;  // besides the model's end-of-sequence ids
  bool ignore_eos = false;
  bool logprobs = false;        // of the tokens made
  int64_t prompt_logprobs = 0;  // of this many evenly spaced prompt positions
};

// Answers of one request at most: they are kept until its end and travel in one message.
inline constexpr int64_t kMostAnswers = 1024;
inline constexpr int64_t kUsualBatch = 64;
// Answers of a request that are made together, where memory lasts.
int64_t MostRows(const GenerateRequest& request);
// Of prompt_index 0, 1, ..
inline const std::vector<int32_t>& PromptAt(const GenerateRequest& request, int64_t prompt_index) {
  return prompt_index == 0 ? request.prompt_ids : request.more_prompt_ids[prompt_index - 1];
}
// InvalidArgument, if `n` answers to each of `prompts` prompts are none, or more than that.
absl::Status CheckAnswers(int64_t prompts, int64_t n);

struct ScoreRequest {
  std::vector<int32_t> ids;  // at least one
  int64_t top = 0;           // of the last position's logits
  bool logprobs = false;     // of every position
};

struct VerifyRequest {
  std::vector<int32_t> ids;
  int64_t layers = 0;  // the first so many; 0: all
  int64_t tokens = 0;  // of the first batch, where a training step is verified; 0: all
};

// A token as it is made. `text` is what the tokenizer can show so far: whole UTF-8 characters only,
// so it may be empty and may hold characters of earlier tokens.
struct TokenEvent {
  int32_t id = 0;
  std::string text;
  double log_p = 0;
  int64_t prompt_index = 0, index = 0;  // of its answer (GenerateResult)
  bool last = false;                    // of that answer
};

struct Progress {
  const char* phase = "";       // "load", "prefill", "decode", "score", "verify"
  int64_t done = 0, total = 0;  // in tokens (load: bytes)
};

// --- answers: vectors "per rank" have one entry for each world rank, in rank order
// ----------------------
struct Timing {
  double load_s = 0, prefill_s = 0, decode_s = 0;
  double prefill_tokens_per_s = 0, decode_tokens_per_s = 0;
};

struct MemoryReport {              // bytes, per rank
  std::vector<int64_t> peak;       // accounted: weights, cache, both arenas, communicator
  std::vector<int64_t> predicted;  // the same, foreseen by the counting backend before the run
  std::vector<int64_t> weights, kv;
  std::vector<int64_t> scratch;        // peak of the scratch arena
  std::vector<int64_t> block_scratch;  // scratch less one layer's token-long tensors (core/arena.h)
  std::vector<int64_t> resident;       // of the process, by the operating system
};

struct AxisReport {  // per rank
  std::string axis;
  std::vector<int64_t> bytes_sent, prefill_bytes_sent, calls;
};

struct RunReport {
  MeshShape mesh;
  Timing timing;
  MemoryReport memory;
  std::vector<AxisReport> comm;  // axes of size > 1
};

enum class FinishReason { kStop, kLength, kCancelled };

struct GenerateResult {
  int64_t prompt_tokens = 0;
  std::vector<int32_t> ids;
  std::string text;
  FinishReason finish = FinishReason::kLength;
  std::vector<double> logprobs;                             // if asked
  std::vector<std::pair<int64_t, double>> prompt_logprobs;  // (position, log p of the token there)
  double min_margin = 0;                                    // smallest gap over the tokens made
  // Timing and traffic are this answer's share of the steps that it was in, so that those of a
  // request add up; a prompt is prefilled once, for its first answer. Memory is the request's.
  RunReport report;
  int64_t prompt_index = 0;  // 0 .. prompts - 1
  int64_t index = 0;         // 0 .. n - 1 among that prompt's answers
  int64_t batch = 1;         // answers of the request that were made together, at most
  // The request's other answers by (prompt_index, index), theirs is empty. Of a cancelled request
  // those that had not begun are not there.
  std::vector<GenerateResult> more;
};

struct ScoreResult {
  int64_t tokens = 0;  // predictions scored: ids - 1
  double mean_nll = 0, perplexity = 0;
  std::vector<double> logprobs;  // if asked; [i] is of ids[i + 1]
  double last_logsumexp = 0;
  std::vector<std::pair<int32_t, double>> last_top;
  RunReport report;
};

struct TensorError {
  std::string tensor;  // a tap's name, or "logits"
  int64_t layer = -1;  // -1: not of a layer
  double error = 0;    // max |x - reference| / max |reference|
  double bound = 0;
};

struct VerifyResult {
  bool pass = false;
  TensorError worst;
  std::vector<TensorError> tensors;
  RunReport report;
};

}  // namespace toroid
