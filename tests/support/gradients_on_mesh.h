// Loss and gradients of a small model on a mesh, by the functions that training is made of and
// nothing else: embed, layers with saving, loss, layers backward, embedding backward, the sums owed
// over `tensor`; the sum over `shard` is made here.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/model/bind.h"
#include "core/model/token_layout.h"
#include "parallel/mesh.h"
#include "parallel/ring_attention.h"
#include "tests/reference/model_backward.h"

namespace toroid {

struct GradientCase {
  ModelConfig config;
  MeshShape mesh;
  LayoutRule layout{LayoutRule::Kind::kZigzag, 1};
  Remat remat = Remat::kNone;
  std::vector<std::vector<int64_t>> packs = {{33}};  // lengths of documents
  double zeta = 0.01;
  double dropout = 0;
  int64_t step = 3;  // of dropout's key
  DType type = DType::kF64;
  DType kv_dtype = DType::kF64;  // kF64: as type
  int64_t token_block = 512;
  // Faults, for negative controls.
  bool pay_owed = true;
  std::function<void(Pass&)> break_pass;
  std::function<void(Backend&, Stream, Block::Saved&)> break_saved;
};

// D 24, F 40, 6 query heads of 8, 2 KV heads, vocabulary 37, 2 layers.
ModelConfig TinyConfig();
// The same size as PaLM (MQA, parallel blocks, tied) and as GPT (LayerNorm, GELU, biases, 40
// learned positions, a window in every other layer, tied).
ModelConfig TinyPalm();
ModelConfig TinyGpt();
std::string ToString(const GradientCase& c);

// Every parameter of a model, the same in every run.
ReferenceParams RandomParams(const ModelConfig& config);

// One document: its ids and what they are scored by.
struct Document {
  std::vector<int32_t> ids;
  ReferenceLoss loss;
};
std::vector<Document> DocumentsOf(const GradientCase& c);

// One rank. Works on the counting backend too, where params may be null.
class GradientRank {
 public:
  // Called after each step: "embed", "forward" and "backward" of each layer, "loss", "owed" of each
  // layer, "ends".
  using After = std::function<void(const std::string& step, int64_t layer)>;

  GradientRank(const GradientCase& c, const ReferenceParams* params, Backend& ops, Mesh& mesh);
  ~GradientRank();
  void Run(const After& after = [](const std::string&, int64_t) {});

  double loss() const { return loss_; }  // of this rank's tokens
  // This rank's slice of a gradient.
  std::vector<double> Gradient(const std::string& name) const;
  const std::vector<ParamSpec>& table() const { return table_; }
  const ParamLayout& layout() const { return layout_; }
  const TokenLayout& tokens() const { return tokens_; }
  const Arena& saved() const { return saved_; }
  const Arena& scratch() const { return scratch_; }

 private:
  Tensor NewTensor(const ParamSpec& spec);
  Tensor Uploaded(DType type, int64_t size, const void* host);

  const GradientCase& c_;
  Backend& ops_;
  Mesh& mesh_;
  const Stream s_, comm_s_;
  const TokenLayout tokens_;
  const ParamLayout layout_;
  std::vector<ParamSpec> table_;
  Arena weights_, saved_, scratch_;
  std::map<std::string, Tensor> w_, d_;
  double loss_ = 0;
};

struct MeshGradients {
  double loss = 0;
  ReferenceParams d;
  // The largest relative difference between what several ranks of `tensor` hold of one gradient.
  double replica_error = 0;
};
MeshGradients GradientsOn(const GradientCase& c, const ReferenceParams& params);
// The sum over documents, each by itself.
ReferenceGradients ReferenceOn(const GradientCase& c, const ReferenceParams& params);

// Of each parameter max|x - ref| / max(max|ref|, 1e-6 x the largest max|ref|), the largest;
// infinite if one is missing. `worst`, unless null, gets its name.
double GradientError(const ReferenceParams& x, const ReferenceParams& reference,
                     std::string* worst = nullptr);

}  // namespace toroid
