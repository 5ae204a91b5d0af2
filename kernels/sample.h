// The next token of each row of logits l over a vocabulary of V ids.
//
//   temperature 0   the largest l
//   else, with z = (l - largest l) / temperature and w = e^z:
//   top_k           the k ids of largest z                                         0: off
//   top_p           of what is left, in falling z: an id stays if the w before it are < top_p times
//                   the sum of all left                                            1: off
//   min_p           ids whose w is >= min_p, the largest w being 1                 0: off
//   draw            the ids left share [0, 1) in ascending id, each as long as its w; the id whose
//                   interval holds u, one Philox number of (seed, position, sequence)
//
// Ties go to the lowest id everywhere. On a CPU all arithmetic is double. On a CUDA device z, log p
// and the greedy margin are too, and w are integers of 2^-(62 - log2 V) so that no order of adding
// them matters: the same logits give the CPU's token, unless u or a sum lies within
// V^2 2^-63 of an edge (V rounded up to a power of two: 2e-9 at 128k). What weighs less than that
// makes no edge for the margin there.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda_stream.h"

namespace toroid {

struct SampleRow {
  double temperature = 0, top_p = 1, min_p = 0;
  int64_t top_k = 0;
  uint64_t seed = 0, sequence = 0;
  int64_t position = 0;
};
inline constexpr int64_t kSampleRowWords = sizeof(SampleRow) / 8;

struct SampledRow {
  int64_t id = 0;    // -1 - i: logit i is the first that is not finite, and log_p is that logit
  double log_p = 0;  // of the chosen id under the softmax of l
  // How far the choice was from another one. Greedy: the gap between the two largest logits. Else:
  // from u to the nearer inner edge of its interval (0 and 1 are no edges: nothing lies beyond
  // them). Infinity where there was nothing else to choose. Not measured: how near an id came to a
  // cutoff of top_k, top_p or min_p.
  double margin = 0;
};
inline constexpr int64_t kSampledRowWords = sizeof(SampledRow) / 8;

// The most that any row of a call asks for.
enum class SampleWork { kGreedy, kDraw, kCut };  // cut: top_k or top_p
constexpr SampleWork WorkOf(const SampleRow& row, int64_t vocab) {
  if (row.temperature == 0) return SampleWork::kGreedy;
  const bool cuts = row.top_p < 1 || (row.top_k > 0 && row.top_k < vocab);
  return cuts ? SampleWork::kCut : SampleWork::kDraw;
}

// What the CPU works in; allocates at the first token alone.
struct SampleRoom {
  struct Candidate {
    int32_t id;
    double z, weight;
  };
  std::vector<double> logits;         // [V]
  std::vector<Candidate> candidates;  // ids still possible
};

// room.logits = logits. The first id whose logit is not finite, else -1; *log_z = ln sum e^l.
template <typename T>
int64_t ReadLogits(const T* logits, int64_t vocab, SampleRoom& room, double* log_z);
// Chooses by room.logits, which a caller may have penalised. log_p is left 0.
SampledRow Choose(const SampleRow& row, SampleRoom& room);

// out[i] of logits row i, `stride` elements apart.
template <typename T>
void Sample(const T* logits, int64_t stride, int64_t rows, int64_t vocab, const SampleRow* params,
            SampleRoom& room, SampledRow* out);

// On a CUDA device: vocab < 2^31. workspace: 64-byte aligned, SampleWorkspaceBytes(vocab) or more,
// that no other work uses meanwhile.
int64_t SampleWorkspaceBytes(int64_t vocab);
void Sample(CudaStream s, const float* logits, int64_t stride, int64_t rows, int64_t vocab,
            SampleWork most, const SampleRow* params, SampledRow* out, void* workspace,
            int64_t workspace_bytes);

}  // namespace toroid
