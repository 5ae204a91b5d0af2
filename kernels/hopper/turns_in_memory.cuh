// Turns in device memory: thread blocks that add to the same sums do it in an order of their own,
// so that the sums have the same bits each time. A turn is a count of those who have been.
#pragma once

#include <cstdint>

namespace toroid::hopper {

// One thread waits until `mine` others have passed; what they added before is seen by what this
// thread, and those that it meets, add from now on, also by the copy engine.
__device__ inline void AwaitTurn(const int32_t* turn, int mine) {
  int passed;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(passed) : "l"(turn) : "memory");
  } while (passed != mine);
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// By one thread, after it has met those that added.
__device__ inline void PassTurn(int32_t* turn) {
  asm volatile("fence.proxy.async.global;" ::: "memory");
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(turn) : "memory");
}

}  // namespace toroid::hopper
