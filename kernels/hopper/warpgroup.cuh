// Warpgroups (4 warps, 128 threads): their registers and the order in which they take turns.
#pragma once

#include <cstdint>

namespace toroid::hopper {

inline constexpr int kWarpThreads = 32;
inline constexpr int kWarpgroupThreads = 128;
inline constexpr int kWarpgroupWarps = 4;

// setmaxnreg: every warp of the warpgroup gives registers back, or waits for them and takes them.
template <int kRegisters>
__device__ void GiveBackRegisters() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void TakeRegisters() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Meets all threads of `kWarpgroups` warpgroups on a named barrier; 0 is __syncthreads.
template <int kWarpgroups>
__device__ void Meet(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kWarpgroups * kWarpgroupThreads) : "memory");
}

// What this thread stored to shared memory may be read by the tensor cores and the copy engine once
// their user has met this thread.
__device__ inline void PublishStores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The tensor cores taken in turns by `kWarpgroups` warpgroups, round robin (FlashAttention-3's
// ping-pong): while one multiplies the others do their softmax. One named barrier per warpgroup,
// on which it waits and its predecessor arrives: barriers 1 .. kWarpgroups.
template <int kWarpgroups>
struct Turns {
  int me;

  __device__ explicit Turns(int warpgroup) : me(warpgroup) {
    if (me == kWarpgroups - 1) Pass();  // the first turn is warpgroup 0's
  }
  __device__ void Wait() const {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + me), "n"(2 * kWarpgroupThreads) : "memory");
  }
  __device__ void Pass() const {
    const int next = me + 1 == kWarpgroups ? 0 : me + 1;
    asm volatile("bar.arrive %0, %1;" ::"r"(1 + next), "n"(2 * kWarpgroupThreads) : "memory");
  }
};

}  // namespace toroid::hopper
