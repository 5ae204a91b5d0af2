// InferenceBackend: a Backend without the ops that only training needs (and the norm and activation
// of GPT-3 blocks). To call one is our own mistake and aborts naming it: a request that would train
// on such a backend is refused long before.
#pragma once

#include <string>

#include "core/backend.h"

namespace toroid {

class InferenceBackend : public Backend {
 public:
  void EmbedBackward(Stream, Tensor, int64_t, Tensor, Tensor) override { Refuse("EmbedBackward"); }
  void RmsNormBackward(Stream, Tensor, Tensor, double, Tensor, Tensor, Tensor) override {
    Refuse("RmsNormBackward");
  }
  void LayerNorm(Stream, Tensor, Tensor, Tensor, double, Tensor) override { Refuse("LayerNorm"); }
  void LayerNormBackward(Stream, Tensor, Tensor, double, Tensor, Tensor, Tensor, Tensor) override {
    Refuse("LayerNormBackward");
  }
  void MatMulBackward(Stream, Tensor, Tensor, Tensor, bool, Tensor, Tensor, Tensor) override {
    Refuse("MatMulBackward");
  }
  void RopeBackward(Stream, Tensor, Tensor, Tensor, double) override { Refuse("RopeBackward"); }
  void AttentionDelta(Stream, Tensor, Tensor, Tensor) override { Refuse("AttentionDelta"); }
  void AttendTileBackward(Stream, Tensor, Tensor, const KvView&, Tensor, const AttentionSpec&,
                          const Tile&, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor) override {
    Refuse("AttendTileBackward");
  }
  void SwiGluBackward(Stream, Tensor, Tensor, Tensor, Tensor, Tensor) override {
    Refuse("SwiGluBackward");
  }
  void Gelu(Stream, Tensor, Tensor) override { Refuse("Gelu"); }
  void GeluBackward(Stream, Tensor, Tensor, Tensor) override { Refuse("GeluBackward"); }
  void AddBackward(Stream, Tensor, Tensor) override { Refuse("AddBackward"); }
  void Scale(Stream, Tensor, double) override { Refuse("Scale"); }
  void Dropout(Stream, const DropoutSpec&, Tensor, Tensor, int64_t, Tensor, Tensor) override {
    Refuse("Dropout");
  }
  void VocabBackward(Stream, Tensor, int64_t, Tensor, Tensor, Tensor, Tensor, Tensor) override {
    Refuse("VocabBackward");
  }
  void LossBackward(Stream, Tensor, Tensor, double, Tensor, Tensor, Tensor) override {
    Refuse("LossBackward");
  }
  void SquaredSum(Stream, Tensor, Tensor) override { Refuse("SquaredSum"); }
  void AdamW(Stream, const AdamWSpec&, Tensor, Tensor, Tensor, Tensor, Tensor) override {
    Refuse("AdamW");
  }
  void Adafactor(Stream, const AdafactorSpec&, Tensor, Tensor, Tensor, Tensor, Tensor) override {
    Refuse("Adafactor");
  }

 private:
  [[noreturn]] static void Refuse(const char* op) {
    TOROID_CHECK_MSG(false, std::string(op) + " on a backend of inference alone");
    __builtin_unreachable();
  }
};

}  // namespace toroid
