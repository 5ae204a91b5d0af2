// Transformer: the weights of one rank and the three steps of a forward pass, as maths.
//
//   x_uD = Embed(ids);  Forward(x_uD): L blocks;  h = final_norm(x);  Head(h) -> (log p, log Z) or
//   logits
//
// Vocabulary-parallel over `tensor`: each rank holds rows of E (and of the output head), so Embed
// owes a sum and Head merges (max, sum of exp, label's logit) of the shards. Logits exist only as
// tiles of [block, vocab tile], or for single rows.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "core/io/model_source.h"
#include "core/model/block.h"
#include "core/model/params.h"

namespace toroid {

class Transformer {
 public:
  // Called with (bytes loaded, bytes in all) while weights are read.
  using LoadProgress = std::function<void(int64_t done, int64_t total)>;

  // This rank's slices of the weights of `source`, in their stored types (bf16 narrows plain
  // float32 matrices). `layers`: the first so many, 0 for all. With load == false the weights are
  // only counted.
  struct Options {
    int64_t tensor_rank = 0, tensor_size = 1;
    DType compute =
        DType::kF32;  // kF32, kF64 (as the backend) or kBF16: plain weights are narrowed
    int64_t layers = 0;
    bool load = true;
    LoadProgress progress = [](int64_t, int64_t) {};
  };
  static absl::StatusOr<std::unique_ptr<Transformer>> Create(const ModelSource& source,
                                                             Backend& ops, Stream s,
                                                             const Options& options);
  ~Transformer();

  const ModelConfig& config() const { return config_; }
  const ParamLayout& layout() const { return layout_; }
  int64_t layers() const { return int64_t(blocks_.size()); }
  int64_t weight_bytes() const { return weight_bytes_; }
  // i32 [h]: local KV head of each local query head.
  Tensor kv_index() const { return kv_index_; }

  // x [u, D] = rows of E. ids: i32 [t]. y_tD: scratch [padded, D].
  void Embed(const Pass& pass, Tensor ids_t, Tensor x_uD) const;
  void ForwardLayer(const Pass& pass, int64_t layer, Tensor x_uD) const {
    blocks_[layer].Forward(pass, layer, x_uD);
  }
  // a [t, D] = final_norm(x).
  void FinalNorm(const Pass& pass, Tensor x_tD, Tensor a_tD) const;
  // Logits of all rows: h [n, D] -> [tensor, n, c], c = layout().vocab_padded(): shard i holds ids
  // [i c, min(V, (i + 1) c)), what lies beyond is undefined.
  void Logits(const Pass& pass, Tensor h_nD, Tensor logits_snc) const;
  // log p of labels (i32 [n]; an id outside the vocabulary gives -inf) and log Z of each row, f64
  // [n].
  void Head(const Pass& pass, Tensor h_nD, Tensor labels_n, Tensor log_p_n, Tensor log_z_n) const;

 private:
  Transformer(Backend& ops, ModelConfig config, ParamLayout layout)
      : ops_(ops), config_(std::move(config)), layout_(std::move(layout)) {}
  struct Placed;  // a parameter's slice and where it lies
  absl::Status Place(const ModelSource& source, const std::vector<ParamSpec>& table,
                     const Options& options, std::vector<Placed>& placed);
  absl::Status Read(const ModelSource& source, Stream s, const Options& options,
                    const std::vector<Placed>& placed);
  absl::Status BuildBlocks(const std::vector<Placed>& placed, int64_t layers);

  Backend& ops_;
  const ModelConfig config_;
  const ParamLayout layout_;
  char* memory_ = nullptr;
  int64_t weight_bytes_ = 0;
  Tensor embedding_vD_, head_vD_, final_norm_D_, kv_index_;
  std::vector<Block> blocks_;
};

}  // namespace toroid
