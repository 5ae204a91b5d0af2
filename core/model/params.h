// One table row per parameter, and which part of each a rank stores.
//
// A parameter is a matrix [rows, cols] stored as y = x W^T is stored everywhere (rows = outputs),
// or a vector (rows = 1). Names are Hugging Face's for the Llama family, whatever file they came
// from and whatever the architecture; "model.embed_positions.weight" are learned positions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/model/head_layout.h"
#include "core/model/model_config.h"

namespace toroid {

// How a parameter is divided over the mesh axis `tensor`.
enum class Split {
  kReplicated,    // every rank holds all of it (norms, biases added after the reduction)
  kQueryHeads,    // rows by query head: HeadLayout's range times K
  kKvHeads,       // rows by KV head: every KV head that this rank's query heads read
  kFfnRows,       // rows by range of F, in granules
  kVocabRows,     // rows by range of V: rank i holds [i c, min(V, (i + 1) c)), c = ceil(V / n)
  kPositionRows,  // rows by range of learned positions, as kVocabRows
  kQueryCols,     // columns by query head: the product over them is a Partial
  kFfnCols,       // columns by range of F: the product over them is a Partial
};

struct ParamSpec {
  std::string name;  // "model.layers.3.self_attn.q_proj.weight"
  int64_t rows = 0;  // 1 for a vector
  int64_t cols = 0;
  Split split = Split::kReplicated;
  int64_t layer = -1;         // -1: not of a layer
  std::string group;          // "embedding", "norm", "attention", "mlp", "bias", "head"
  std::string alias;          // tied to this other parameter: stored there, never here
  double init_deviation = 0;  // normal(0, this); 0 = ones for a gain, zeros for a bias
};

// The table of a model, in the order in which Forward reads it. A tied output head has an alias
// row.
std::vector<ParamSpec> ParamTable(const ModelConfig& config);

// A rectangle of a logical parameter.
struct ParamSlice {
  int64_t row_begin = 0, row_count = 0;
  int64_t col_begin = 0, col_count = 0;
  bool operator==(const ParamSlice&) const = default;
};

// [begin, end)
struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// Which range of each parameter tensor rank `rank` of `size` stores.
// Invariants: the ranges of all ranks cover each parameter; only kKvHeads ranges may overlap; a
// range of columns begins and ends at a multiple of the granule, so that a quantisation block is
// never cut.
class ParamLayout {
 public:
  // F is cut in granules of 32 where 32 divides it, else of 1: rank i holds granules
  // floor(i n_g / size) .. floor((i + 1) n_g / size) - 1, possibly none.
  ParamLayout(const ModelConfig& config, int64_t rank, int64_t size);

  ParamSlice Slice(const ParamSpec& spec) const;
  const HeadLayout& heads() const { return heads_; }
  Range ffn() const { return ffn_; }                      // this rank's f
  Range vocab() const { return vocab_; }                  // this rank's v, unpadded; may be empty
  int64_t vocab_padded() const { return vocab_padded_; }  // c = ceil(V / size)
  Range positions() const { return positions_; }  // this rank's learned positions; may be empty

 private:
  int64_t head_dim_;
  HeadLayout heads_;
  Range ffn_, vocab_, positions_;
  int64_t vocab_padded_;
};

// InvalidArgument if `tensor` ranks are more than the model's query heads. `other`: the axis that
// the ranks which are too many belong on.
absl::Status CheckTensorAxis(const ModelConfig& config, int64_t tensor, const char* other);

}  // namespace toroid
