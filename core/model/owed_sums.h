// The sums over `tensor` that gradients of a group of parameters owe once its backward is done.
//
// A rank of `tensor` sees its own rows of the residual (so gains and biases of what is added to the
// residual, replicated, owe a sum) and its own query heads (so the gains of head norms, replicated,
// and W and b of a KV head that several ranks hold, owe one; a rank that does not hold the head
// adds zeros). Everything else is a rank's alone.
#pragma once

#include <vector>

#include "core/arena.h"
#include "core/communicator.h"
#include "core/model/bind.h"

namespace toroid {

// Pays them with one AllReduce of one packed buffer in scratch; none if nothing is owed. gradient:
// where this rank's slices lie; what is not wanted is left out, on all ranks alike.
void SumOwedOverTensor(Backend& ops, Stream s, Arena& scratch, Communicator& tensor,
                       const ModelConfig& config, const std::vector<ParamSpec>& group,
                       const FindParam& gradient);

// Elements of that buffer, if all of the group's gradients are wanted.
int64_t OwedElements(const ModelConfig& config, const std::vector<ParamSpec>& group,
                     int64_t tensor_size);

}  // namespace toroid
