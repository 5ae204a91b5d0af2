#include <cub/device/device_radix_sort.cuh>

#include "kernels/embedding.h"
#include "kernels/stored_weight.cuh"

namespace toroid {

namespace {

// A thread per unit of a token's row.
template <DType kType>
struct EmbedUnit {
  const int32_t* ids;
  const uint8_t* table;
  int64_t row_bytes, v, dim, vocab_begin;
  float* out;
  int64_t out_stride;
  __device__ void operator()(int64_t token, int64_t unit) const {
    const int64_t row = ids[token] - vocab_begin;
    float values[kUnit] = {};
    if (row >= 0 && row < v) LoadUnit<kType, false>(table + row * row_bytes, unit, dim, values);
    for (int half = 0; half < 2; ++half) {
      const int64_t first = UnitHalf<kType>(unit, half);
      for (int i = 0; i < 4 && first + i < dim; ++i) {
        out[token * out_stride + first + i] = values[half * 4 + i];
      }
    }
  }
};

struct NumberToken {
  const int32_t* ids;
  uint32_t* keys;
  uint32_t* tokens;
  __device__ void operator()(int64_t i, int64_t) const {
    keys[i] = uint32_t(ids[i]);
    tokens[i] = uint32_t(i);
  }
};

// A block per token in the order of ids: the first of each id adds all of them, in order of the
// tokens, to the columns of blockIdx.y.
__global__ void AddRunsKernel(const uint32_t* ids, const uint32_t* tokens, int64_t t,
                              const float* dout, int64_t dout_stride, int64_t v, int64_t dim,
                              int64_t vocab_begin, float* dtable, int64_t dtable_stride) {
  const uint32_t id = ids[blockIdx.x];
  const int64_t row = int64_t(int32_t(id)) - vocab_begin;
  const int64_t col = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (row < 0 || row >= v || col >= dim) return;
  if (blockIdx.x > 0 && ids[blockIdx.x - 1] == id) return;
  float sum = dtable[row * dtable_stride + col];
  for (int64_t i = blockIdx.x; i < t && ids[i] == id; ++i)
    sum += dout[tokens[i] * dout_stride + col];
  dtable[row * dtable_stride + col] = sum;
}

}  // namespace

void Embed(CudaStream s, const int32_t* ids, int64_t t, DType table_type, const void* table,
           int64_t table_stride, int64_t v, int64_t dim, int64_t vocab_begin, float* out,
           int64_t out_stride) {
  WithStoredType(table_type, [&]<DType kType>() {
    ForEach(s, t, CeilDiv(dim, kUnit),
            EmbedUnit<kType>{ids, static_cast<const uint8_t*>(table), RowBytes(kType, table_stride),
                             v, dim, vocab_begin, out, out_stride});
  });
}

int64_t EmbedBackwardWorkspace(int64_t t) {
  size_t bytes = 0;
  uint32_t* none = nullptr;
  (void)cub::DeviceRadixSort::SortPairs(nullptr, bytes, none, none, none, none, t);
  return int64_t(bytes) + 4 * (4 * t + 256);
}

// The tokens are sorted by id, stably, so that no two blocks add to one element.
void EmbedBackward(CudaStream s, const int32_t* ids, int64_t t, const float* dout,
                   int64_t dout_stride, int64_t v, int64_t dim, int64_t vocab_begin, float* dtable,
                   int64_t dtable_stride, void* workspace, int64_t workspace_bytes) {
  if (t == 0 || dim == 0) return;
  const int64_t room = CeilDiv(t, 64) * 64;  // of each array: 256-byte steps
  uint32_t* keys = static_cast<uint32_t*>(workspace);
  uint32_t *tokens = keys + room, *sorted_keys = tokens + room, *sorted_tokens = sorted_keys + room;
  void* rest = sorted_tokens + room;
  size_t bytes = size_t(workspace_bytes - 16 * room);
  ForEach(s, t, 1, NumberToken{ids, keys, tokens});
  (void)cub::DeviceRadixSort::SortPairs(rest, bytes, keys, sorted_keys, tokens, sorted_tokens, t, 0,
                                        32, s);
  constexpr int kThreads = 128;
  const dim3 grid(unsigned(t), unsigned(CeilDiv(dim, kThreads)));
  AddRunsKernel<<<grid, kThreads, 0, s>>>(sorted_keys, sorted_tokens, t, dout, dout_stride, v, dim,
                                          vocab_begin, dtable, dtable_stride);
}

}  // namespace toroid
