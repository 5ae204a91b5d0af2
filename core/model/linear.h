// Linear: y = x W^T (+ b), one weight in its stored type and its split over the axis `tensor`.
//
// Block never multiplies by a weight itself. A column split (rows of W by heads or by F) gives this
// rank's columns of y; a row split contracts over a small letter and so yields a Partial. Gradients
// lie in another Linear: d.weight += dW, d.bias += db, where they are not empty.
#pragma once

#include "core/backend.h"

namespace toroid {

struct Linear {
  Tensor weight;  // [n, k], rows = outputs, any stored type
  Tensor bias;    // [n] or empty

  // Column split or replicated: out [t, n] = x [t, k] W^T + b.
  void Forward(Backend& ops, Stream s, Tensor x, Tensor out) const {
    ops.MatMul(s, x, weight, bias, out);
  }
  // dx = dout W, or dx += with add_dx: it contracts over n, so a column split owes the sum over
  // `tensor`.
  void Backward(Backend& ops, Stream s, Tensor x, Tensor dout, bool add_dx, Tensor dx,
                const Linear& d) const {
    ops.MatMulBackward(s, x, weight, dout, add_dx, dx, d.weight, d.bias);
  }
  // Row split: k is this rank's share, so `out` [t, n] still owes the sum over `tensor`. A bias
  // belongs to the sum and is added after the reduction (AddBias).
  Partial ForwardPartial(Backend& ops, Stream s, Tensor x, Tensor out) const {
    ops.MatMul(s, x, weight, Tensor(), out);
    return Partial(out);
  }
  // dx [t, k], this rank's columns, from dout whole on every rank.
  void BackwardPartial(Backend& ops, Stream s, Tensor x, Tensor dout, Tensor dx,
                       const Linear& d) const {
    ops.MatMulBackward(s, x, weight, dout, /*add_dx=*/false, dx, d.weight, Tensor());
  }
  // The bias of a row split, added to the reduced sum: every rank holds all of it.
  void AddBias(Backend& ops, Stream s, Tensor reduced) const {
    if (!bias.empty()) ops.Add(s, reduced, bias.Reshape({1, bias.size()}));
  }
  // db of this rank's rows: over `tensor` a sum is owed.
  void AddBiasBackward(Backend& ops, Stream s, Tensor dreduced, const Linear& d) const {
    if (!d.bias.empty()) ops.AddBackward(s, dreduced, d.bias.Reshape({1, d.bias.size()}));
  }
};

}  // namespace toroid
