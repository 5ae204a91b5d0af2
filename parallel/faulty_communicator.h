// FaultyCommunicator: a communicator with a fault planted in it, for the proof that verification
// finds faults (verify_self_test.h). Everything passes on to a sound one, but for the verbs that
// FaultyVerbs names: those do what they are told to.
#pragma once

#include <functional>
#include <memory>

#include "core/communicator.h"

namespace toroid {

// Each is called in place of a verb of one axis, with the sound communicator of that axis, and does
// the whole of it: what it adds is enqueued on s. Tensors are flat. Null: the verb is sound.
struct FaultyVerbs {
  std::function<void(Communicator& ring, Stream s, Tensor send, int to, Tensor recv, int from)>
      ring_send_recv;
  std::function<void(Communicator& tensor, Stream s, Tensor x, Tensor out)> tensor_reduce_scatter;
  std::function<void(Communicator& tensor, Stream s, Tensor x, ReduceOp op)> tensor_all_reduce;
  std::function<void(Communicator& world, Stream s, Tensor x, ReduceOp op)> world_all_reduce;
};

// A world whose axes, as a Mesh splits them off it, have those faults.
std::unique_ptr<Communicator> PlantFaults(std::unique_ptr<Communicator> world, FaultyVerbs faults);

}  // namespace toroid
