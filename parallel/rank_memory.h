// Bytes of one rank by what they are for: foreseen by the counting backend, or measured.
#pragma once

#include <cstdint>

namespace toroid {

// What the exchange with other pods takes on a rank's host: parallel/pod_exchange.h.
struct ExchangeBytes {
  int64_t state = 0;    // copies of what the rank stores that are kept from step to step
  int64_t buffers = 0;  // for one group of it
  // The most: what is encoded, waits to be sent, or came and waits to be merged.
  int64_t queues = 0;
  // The most, where pods may come: the state on its way to one of them.
  int64_t given = 0;
  int64_t total() const { return state + buffers + queues + given; }
  bool operator==(const ExchangeBytes&) const = default;
};

struct RankMemory {
  int64_t weights = 0;       // stored, and in training the buffers that gather them
  int64_t optimizer = 0;     // both moments, and the constants of a step
  int64_t gradients = 0;     // stored, and the buffers that reduce them
  int64_t activations = 0;   // both arenas, but for ring_buffers
  int64_t kv = 0;            // cache of generate
  int64_t ring_buffers = 0;  // of both arenas: blocks of K, V and their gradients that travel
  int64_t communicator = 0;
  ExchangeBytes exchange;       // of ranks on CPUs part of communicator
  int64_t checkpoint_copy = 0;  // what a checkpoint is written from while steps go on
  // Of a GPU: its driver's for this process, and workspaces (core/cuda_memory.h). The bytes are
  // then those of the GPU; what lies in the host's memory beside them is not among them.
  int64_t device = 0;
  int64_t total() const {
    return weights + optimizer + gradients + activations + kv + ring_buffers + communicator +
           checkpoint_copy + device;
  }
  bool operator==(const RankMemory&) const = default;
};

}  // namespace toroid
