// Norm: RmsNorm, or LayerNorm where it has a bias; one gain, and one bias, by row.
//
// Gradients lie in another Norm: d.gain_D and d.bias_D are added to where they are not empty. Every
// rank holds all of them and sees its own rows: over `tensor` a sum is owed.
#pragma once

#include "core/backend.h"
#include "core/model/model_config.h"

namespace toroid {

struct Norm {
  NormKind kind = NormKind::kRms;
  Tensor gain_D, bias_D;  // bias: kLayer only
  double epsilon = 0;

  // out = norm(x), by row. out may be x.
  void Forward(Backend& ops, Stream s, Tensor x_tD, Tensor out_tD) const {
    if (kind == NormKind::kRms) {
      ops.RmsNorm(s, x_tD, gain_D, epsilon, out_tD);
    } else {
      ops.LayerNorm(s, x_tD, gain_D, bias_D, epsilon, out_tD);
    }
  }
  // dx may be dout.
  void Backward(Backend& ops, Stream s, Tensor x_tD, Tensor dout_tD, Tensor dx_tD,
                const Norm& d) const {
    if (kind == NormKind::kRms) {
      ops.RmsNormBackward(s, x_tD, gain_D, epsilon, dout_tD, dx_tD, d.gain_D);
    } else {
      ops.LayerNormBackward(s, x_tD, gain_D, epsilon, dout_tD, dx_tD, d.gain_D, d.bias_D);
    }
  }
  // The same with dx added to. dout is lost.
  void BackwardAdd(Backend& ops, Stream s, Tensor x_tD, Tensor dout_tD, Tensor dx_tD,
                   const Norm& d) const {
    if (kind == NormKind::kRms) {
      ops.RmsNormBackwardAdd(s, x_tD, gain_D, epsilon, dout_tD, dx_tD, d.gain_D);
    } else {
      Backward(ops, s, x_tD, dout_tD, dout_tD, d);
      ops.Add(s, dx_tD, dout_tD);
    }
  }
};

}  // namespace toroid
