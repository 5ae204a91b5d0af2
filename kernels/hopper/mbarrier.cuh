// Barriers in shared memory (mbarrier) and the ring of stages that they guard.
//
// A Barrier counts arrivals and announced bytes; when both are complete its phase flips.
// Wait(parity) returns once the phase of that parity has completed. A fresh barrier counts the
// phase before its first, parity 1, as complete: so a producer starts with parity 1 and finds every
// stage empty.
#pragma once

#include <cstdint>

namespace toroid::hopper {

__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

struct Barrier {
  uint64_t word;

  __device__ void Init(uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(&word)),
                 "r"(arrivals));
  }

  __device__ void Arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(&word)) : "memory");
  }

  // Arrives, and makes the phase wait for `bytes` that the copy engine will report here.
  __device__ void ArriveExpecting(uint32_t bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(&word)),
        "r"(bytes)
        : "memory");
  }

  __device__ void Wait(uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "AGAIN:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
        "@complete bra DONE;\n"
        "bra AGAIN;\n"
        "DONE:\n"
        "}\n" ::"r"(SharedAddress(&word)),
        "r"(parity)
        : "memory");
  }
};

// Says, once per warp, that the warp is done with what the barrier guards.
__device__ inline void Release(Barrier& empty) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) empty.Arrive();
}

// Makes initialised barriers visible to the copy engine; a __syncthreads must follow.
__device__ inline void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Where one side stands in a ring of kStages stages. The consumer waits on `full` with `phase`, the
// producer on `empty` with `phase ^ 1`.
template <int kStages>
struct Cursor {
  int stage = 0;
  uint32_t phase = 0;

  __device__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace toroid::hopper
