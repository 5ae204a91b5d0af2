// Binding: a block and the ends of a model made of tensors found by name.
//
// Model code owns no weights. Inference binds once to memory of its own (Transformer); training
// binds to whatever buffer a group of parameters was gathered into, and once more to the gradients'
// buffer: d.attention.q.weight is then dWq, of Wq's shape.
#pragma once

#include <functional>
#include <string>

#include "core/model/block.h"
#include "core/model/ends.h"
#include "core/model/model_config.h"
#include "core/model/params.h"

namespace toroid {

// Where this rank's ParamSlice of a parameter lies: [row_count, col_count], a vector [1, n]. What
// the model has not, or is not at hand now, is Tensor().
using FindParam = std::function<Tensor(const std::string& name)>;

// The block of layer `layer`. Its attention spec is not yet validated.
Block BindBlock(const ModelConfig& config, const ParamLayout& layout, int64_t layer,
                const FindParam& find);
ModelEnds BindEnds(const ModelConfig& config, const ParamLayout& layout, const FindParam& find);

}  // namespace toroid
