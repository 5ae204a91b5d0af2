// Messages between GPUs of one host by the copy engine, which takes no multiprocessor from the
// attention that they overlap. Each rank has slots in its memory for each other one, mapped by CUDA
// IPC (plain peer access between ranks of one process).
//
//   sender:   waits until a slot there is free, copies a piece into it, raises the receiver's count
//             of arrived pieces
//   receiver: waits for the count, copies the piece out of the slot, raises the sender's count of
//             free slots
//
// All of it are commands of two streams of the link's own, one a direction: waits are the device's
// (stream memory operations on counts in device memory), no kernel runs and no host takes part in a
// round. Messages between two ranks match in the order of the calls, over all communicators.
#pragma once

#include "absl/status/statusor.h"
#include "parallel/device_communicator.h"

namespace toroid {

struct IpcLimits {
  int64_t slot_bytes = 8 << 20;  // longer messages are cut; a multiple of 256
};

// Collective over `host`, a communicator of host memory that the link keeps to itself: it says
// goodbye with it. Reaches the ranks of this host that CUDA can map both ways, not those that share
// this rank's process and GPU; nobody in a build without CUDA. OutOfRange: no memory for the slots.
absl::StatusOr<DeviceLink> NewIpcLink(std::unique_ptr<Communicator> host, int device,
                                      const IpcLimits& limits = {});

}  // namespace toroid
