// CudaStream: the runtime's cudaStream_t, named without CUDA's headers, so that the contracts of
// the ops can show their CUDA signature in every build.
//
// A CUDA launcher takes the stream where its CPU twin takes the pool, and the same arguments behind
// it, with pointers to memory of the stream's device. It enqueues and returns; whoever calls it
// makes the stream's device current, keeps the memory, and asks for the error (cudaGetLastError).
#pragma once

struct CUstream_st;

namespace toroid {

using CudaStream = CUstream_st*;

}  // namespace toroid
