// Transformer: the weights of one rank, in memory of their own, and the model bound to them.
//
//   x_uD = ends().Embed(ids);  L blocks: ForwardLayer(x_uD);  h = ends().FinalNorm(x);
//   ends().Head(h) -> (log p, log Z), or ends().Logits(h)
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "core/io/model_source.h"
#include "core/model/block.h"
#include "core/model/ends.h"
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
    int threads = 1;  // that draw the weights of a random model
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

  const ModelEnds& ends() const { return ends_; }
  // x [u, D] in place.
  void ForwardLayer(const Pass& pass, int64_t layer, Tensor x_uD) const {
    blocks_[layer].Forward(pass, layer, x_uD);
  }

 private:
  Transformer(Backend& ops, ModelConfig config, ParamLayout layout)
      : ops_(ops), config_(std::move(config)), layout_(std::move(layout)) {}
  struct Placed;  // a parameter's slice and where it lies
  absl::Status Place(const ModelSource& source, const std::vector<ParamSpec>& table,
                     const Options& options, std::vector<Placed>& placed);
  absl::Status Read(const ModelSource& source, Stream s, const Options& options,
                    const std::vector<Placed>& placed);
  absl::Status Bind(const std::vector<Placed>& placed, int64_t layers);

  Backend& ops_;
  const ModelConfig config_;
  const ParamLayout layout_;
  char* memory_ = nullptr;
  int64_t weight_bytes_ = 0;
  Tensor kv_index_;
  ModelEnds ends_;
  std::vector<Block> blocks_;
};

}  // namespace toroid
