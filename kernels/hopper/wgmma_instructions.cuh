// The instruction of each width N, m64nNk16 bf16: text only. wgmma.cuh says how they are used.
//
// MmaSharedShared: A and B in shared memory, both along their columns, D = (accumulate ? D : 0) + A
// B^T, or with kAlongRows both along their rows, D = (accumulate ? D : 0) + A^T B.
// MmaRegisterShared: A in registers, B along its rows, D += A B.
#pragma once

#include <cstdint>

namespace toroid::hopper {

// TOROID_R<n> names the operands %0 .. %<n - 1>, TOROID_D<n> binds them to d[0] .. d[n - 1].
#define TOROID_D8(i)                                                                          \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define TOROID_D32 TOROID_D8(0), TOROID_D8(8), TOROID_D8(16), TOROID_D8(24)
#define TOROID_D40 TOROID_D32, TOROID_D8(32)
#define TOROID_D64 TOROID_D40, TOROID_D8(40), TOROID_D8(48), TOROID_D8(56)
#define TOROID_D128                                                                      \
  TOROID_D64, TOROID_D8(64), TOROID_D8(72), TOROID_D8(80), TOROID_D8(88), TOROID_D8(96), \
      TOROID_D8(104), TOROID_D8(112), TOROID_D8(120)
#define TOROID_R32                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TOROID_R40 \
  TOROID_R32       \
  ", %32, %33, %34, %35, %36, %37, %38, %39"
#define TOROID_R64                                                                   \
  TOROID_R32                                                                         \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TOROID_R128                                                                              \
  TOROID_R64                                                                                     \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"             \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"             \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"

// The operands after the kCount accumulators are numbered from kCount, as text: hence the numbers.
#define TOROID_WGMMA(N, REGISTERS, ACCUMULATORS, I0, I1, I2, I3, I4)                              \
  template <bool kAlongRows = false>                                                              \
  __device__ inline void MmaSharedShared(float(&d)[N / 2], uint64_t a, uint64_t b,                \
                                         bool accumulate) {                                       \
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, " I2                         \
                 ", 0;\n"                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGISTERS "}, " I0  \
                 ", " I1 ", accumulate, 1, 1, " I3 ", " I3 ";\n}\n"                               \
                 : ACCUMULATORS                                                                   \
                 : "l"(a), "l"(b), "r"(int{accumulate}), "n"(int{kAlongRows}));                   \
  }                                                                                               \
  __device__ inline void MmaRegisterShared(float(&d)[N / 2], const uint32_t* a, uint64_t b) {     \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGISTERS "}, {" I0 \
                 ", " I1 ", " I2 ", " I3 "}, " I4 ", 1, 1, 1, 1;\n"                               \
                 : ACCUMULATORS                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                           \
  }
TOROID_WGMMA(64, TOROID_R32, TOROID_D32, "%32", "%33", "%34", "%35", "%36")
TOROID_WGMMA(80, TOROID_R40, TOROID_D40, "%40", "%41", "%42", "%43", "%44")
TOROID_WGMMA(128, TOROID_R64, TOROID_D64, "%64", "%65", "%66", "%67", "%68")
TOROID_WGMMA(256, TOROID_R128, TOROID_D128, "%128", "%129", "%130", "%131", "%132")

#undef TOROID_WGMMA
#undef TOROID_D8
#undef TOROID_D32
#undef TOROID_D40
#undef TOROID_D64
#undef TOROID_D128
#undef TOROID_R32
#undef TOROID_R40
#undef TOROID_R64
#undef TOROID_R128

}  // namespace toroid::hopper
