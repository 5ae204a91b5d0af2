// Reading parameters out of a model: the slice that a rank asks for, in the type it is kept in.
#pragma once

#include "absl/status/status.h"
#include "core/io/model_source.h"
#include "core/model/params.h"
#include "kernels/dtype.h"

namespace toroid {

// The type in which a rank keeps this parameter when it computes in `compute` (kF32, kF64 or
// kBF16).
//   vectors (gains, biases)          f64 in f64, else f32
//   f16, bf16, q8_0, q4_0, q4_1      as stored, if every slice by `tensor` has whole blocks
//   everything else                  f32 (bf16 in bf16): dequantised at load
//   of a random model                as it says, else f32 (bf16 in bf16)
//   of a checkpoint                  f32 (bf16 in bf16; in f64 as the checkpoint holds it)
//   pooled K and V                   f32 (bf16 in bf16)
// Matrices keep their type in f64 too: products convert, and stored values are the model's truth.
DType StoredType(const ModelSource& source, const ParamSpec& spec, DType compute);

// Bytes of a slice kept in `stored`.
int64_t SliceBytes(const ParamSlice& slice, DType stored);

// Reads the slice to `out`, row after row without gaps, SliceBytes(slice, stored) bytes, and drops
// the file's pages again. An alias reads the parameter that it stands for. InvalidArgument naming
// the file and the parameter if a value is infinite or not a number; DataLoss naming a checkpoint's
// damaged shard. REQUIRES: the slice lies
// within the parameter; `stored` is f32, f64, bf16 or the type of the file (of a random model:
// StoredType's); the columns of a
// quantised `stored` begin and end with a block.
absl::Status LoadParam(const ModelSource& source, const ParamSpec& spec, const ParamSlice& slice,
                       DType stored, void* out);

// The same of what the model's files hold: of K and V of a pooled model (kv_pooling.h), `spec` and
// `slice` are those of the files.
absl::Status LoadStored(const ModelSource& source, const ParamSpec& spec, const ParamSlice& slice,
                        DType stored, void* out);

}  // namespace toroid
