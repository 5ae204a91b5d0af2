// The backward ops of Backend put together: a small model, forward and backward written by hand
// through the backend alone, against central differences of its own loss in double, and float32
// against double. A wrong stride, order of operands or missing sum in a backend shows here.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "core/backend.h"
#include "tests/support/all_close.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using reference::Array;

constexpr int64_t kT = 11, kD = 12, kH = 4, kG = 2, kK = 6, kF = 10, kV = 23;
constexpr double kEpsilon = 1e-2;

using Params = std::map<std::string, Array>;

Params RandomParams() {
  Params p;
  uint64_t seed = 1;
  const auto add = [&](const char* name, int64_t size, double deviation) {
    p[name] = RandomArray(size, seed++, deviation);
  };
  add("tokens", kV * kD, 1), add("positions", kT * kD, 1), add("norm1", kD, 1);
  add("wq", kH * kK * kD, 0.4), add("wk", kG * kK * kD, 0.4), add("wv", kG * kK * kD, 0.4);
  add("bq", kH * kK, 0.4), add("wo", kD * kH * kK, 0.3), add("bo", kD, 0.3);
  add("norm2", kD, 1), add("shift2", kD, 1), add("gate", kF * kD, 0.4), add("up", kF * kD, 0.4);
  add("down", kD * kF, 0.4), add("in", kF * kD, 0.4), add("out", kD * kF, 0.4);
  return p;
}

// x = E[ids] + P[positions];  x += Wo Attention(rms(x)) + bo;  a = layer(x);
// x += Down (silu(Gate a) * Up a) + Out gelu(In a);  logits = x E^T / sqrt(D);
// loss = sum_i c_i log p_i + z_i log Z_i. E is tied: it has two gradients.
template <typename T>
class TinyModel {
 public:
  explicit TinyModel(const Params& params, int threads = 2)
      : type_(sizeof(T) == 8 ? DType::kF64 : DType::kF32),
        ops_(NewCpuBackend(type_, threads)),
        s_(ops_->NewStream(false)) {
    for (const auto& [name, values] : params) p_[name] = As<T>(values);
    for (const auto& [name, values] : params) g_[name].resize(values.size());
    for (int64_t i = 0; i < kT; ++i) {
      ids_.push_back(int32_t(Philox(5, i, 0)[0] % kV)), positions_.push_back(int32_t(i));
      labels_.push_back(int32_t(Philox(6, i, 0)[0] % kV));
      c_.push_back(NormalAt(7, 0, i)), z_.push_back(NormalAt(8, 0, i));
    }
    spec_.scale = 0.5, spec_.window = 7;
  }

  double Forward() {
    Backend& ops = *ops_;
    ops.Embed(s_, Ints(ids_), P("tokens", kV), 0, x0_);
    ops.Embed(s_, Ints(positions_), P("positions", kT), 0, x1_);
    ops.Add(s_, x0_, x1_);
    ops.RmsNorm(s_, x0_, P("norm1"), kEpsilon, a_);
    ops.MatMul(s_, a_, P("wq", kH * kK), P("bq"), Flat(q_));
    ops.MatMul(s_, a_, P("wk", kG * kK), Tensor(), Flat(k_));
    ops.MatMul(s_, a_, P("wv", kG * kK), Tensor(), Flat(v_));
    ops.Rope(s_, q_, Ints(positions_), Doubles(inv_freq_), 1.25);
    ops.Rope(s_, k_, Ints(positions_), Doubles(inv_freq_), 1.25);
    ops.Fill(s_, o_, 0), ops.Fill(s_, lse_, -INFINITY);
    for (const Tile& tile : tiles_) {
      ops.AttendTile(s_, q_, Ints(positions_), Kv(), Ints(kv_index_), spec_, tile, o_, lse_);
    }
    ops.MatMul(s_, Flat(o_), P("wo", kD), Tensor(), x1_);
    ops.Add(s_, x1_, P("bo", 1));
    ops.Add(s_, x1_, x0_);
    ops.LayerNorm(s_, x1_, P("norm2"), P("shift2"), kEpsilon, b_);
    ops.MatMul(s_, b_, P("gate", kF), Tensor(), gate_);
    ops.MatMul(s_, b_, P("up", kF), Tensor(), up_);
    ops.SwiGlu(s_, gate_, up_, hidden_);
    ops.MatMul(s_, hidden_, P("down", kD), Tensor(), x2_);
    ops.MatMul(s_, b_, P("in", kF), Tensor(), in_);
    ops.Gelu(s_, in_, hidden2_);
    ops.MatMul(s_, hidden2_, P("out", kD), Tensor(), dx_);
    ops.Add(s_, x2_, dx_);
    ops.Add(s_, x2_, x1_);
    ops.MatMul(s_, x2_, P("tokens", kV), Tensor(), logits_);
    ops.Scale(s_, logits_, 1 / std::sqrt(double(kD)));
    for (int64_t i = 0; i < kT; ++i) {
      stat_[3 * i] = stat_[3 * i + 2] = -INFINITY, stat_[3 * i + 1] = 0;
    }
    for (int64_t v = 0; v < kV; v += 9) {
      ops.VocabStatistics(s_, logits_.Cols(v, std::min<int64_t>(9, kV - v)), v, Ints(labels_),
                          Tensor(DType::kF64, {kT, 3}, stat_.data()));
    }
    ops.VocabMerge(s_, Tensor(DType::kF64, {1, kT, 3}, stat_.data()), Doubles(log_p_),
                   Doubles(log_z_));
    double loss = 0;
    for (int64_t i = 0; i < kT; ++i) loss += c_[i] * log_p_[i] + z_[i] * log_z_[i];
    return loss;
  }

  // Lines of Forward in reverse, each quoted. After Forward.
  void Backward() {
    Backend& ops = *ops_;
    // loss = sum_i c_i log p_i + z_i log Z_i
    for (int64_t v = 0; v < kV; v += 9) {
      const Tensor tile = logits_.Cols(v, std::min<int64_t>(9, kV - v));
      ops.VocabBackward(s_, tile, v, Ints(labels_), Doubles(log_z_), Doubles(c_), Doubles(z_),
                        tile);
    }
    // logits = x2 E^T / sqrt(D)
    ops.Scale(s_, logits_, 1 / std::sqrt(double(kD)));
    ops.MatMulBackward(s_, x2_, P("tokens", kV), logits_, false, dx_, G("tokens", kV), Tensor());
    // x2 = x1 + Down swiglu(Gate b, Up b) + Out gelu(In b)
    ops.MatMulBackward(s_, hidden2_, P("out", kD), dx_, false, hidden2_, Tensor(), Tensor());
    ops.GeluBackward(s_, in_, hidden2_, hidden2_);
    ops.MatMulBackward(s_, b_, P("in", kF), hidden2_, false, db_, G("in", kF), Tensor());
    ops.Gelu(s_, in_, in_);  // the product's input again: what it was is done with
    ops.MatMulBackward(s_, in_, P("out", kD), dx_, false, Tensor(), G("out", kD), Tensor());
    ops.MatMulBackward(s_, hidden_, P("down", kD), dx_, false, Tensor(), G("down", kD), Tensor());
    ops.MatMulBackward(s_, hidden_, P("down", kD), dx_, false, hidden_, Tensor(), Tensor());
    ops.SwiGluBackward(s_, gate_, up_, hidden_, gate_, up_);
    ops.MatMulBackward(s_, b_, P("gate", kF), gate_, true, db_, G("gate", kF), Tensor());
    ops.MatMulBackward(s_, b_, P("up", kF), up_, true, db_, G("up", kF), Tensor());
    // b = layer(x1)
    ops.LayerNormBackward(s_, x1_, P("norm2"), kEpsilon, db_, db_, G("norm2"), G("shift2"));
    ops.Add(s_, dx_, db_);
    // x1 = x0 + Wo o + bo
    ops.AddBackward(s_, dx_, G("bo", 1));
    ops.MatMulBackward(s_, Flat(o_), P("wo", kD), dx_, false, Flat(do_), G("wo", kD), Tensor());
    // o, lse = sum over tiles of AttendTile(q, k, v)
    ops.AttentionDelta(s_, o_, do_, delta_);
    for (const Tensor& d : {dq_, dk_, dv_}) ops.Fill(s_, d, 0);
    for (const Tile& tile : tiles_) {
      ops.AttendTileBackward(s_, q_, Ints(positions_), Kv(), Ints(kv_index_), spec_, tile, do_,
                             lse_, delta_, dq_, dk_, dv_);
    }
    // q = rope(Wq a + bq), k = rope(Wk a), v = Wv a
    ops.RopeBackward(s_, dq_, Ints(positions_), Doubles(inv_freq_), 1.25);
    ops.RopeBackward(s_, dk_, Ints(positions_), Doubles(inv_freq_), 1.25);
    ops.MatMulBackward(s_, a_, P("wq", kH * kK), Flat(dq_), false, db_, G("wq", kH * kK), G("bq"));
    ops.MatMulBackward(s_, a_, P("wk", kG * kK), Flat(dk_), true, db_, G("wk", kG * kK), Tensor());
    ops.MatMulBackward(s_, a_, P("wv", kG * kK), Flat(dv_), true, db_, G("wv", kG * kK), Tensor());
    // a = rms(x0)
    ops.RmsNormBackward(s_, x0_, P("norm1"), kEpsilon, db_, db_, G("norm1"));
    ops.Add(s_, dx_, db_);
    // x0 = E[ids] + P[positions]
    ops.EmbedBackward(s_, Ints(ids_), 0, dx_, G("tokens", kV));
    ops.EmbedBackward(s_, Ints(positions_), 0, dx_, G("positions", kT));
  }

  std::map<std::string, std::vector<T>>& params() { return p_; }
  std::map<std::string, std::vector<T>>& gradients() { return g_; }

 private:
  Tensor New(std::initializer_list<int64_t> shape) {
    int64_t size = 1;
    for (int64_t dim : shape) size *= dim;
    buffers_.push_back(std::make_unique<std::vector<T>>(size));
    return Tensor(type_, shape, buffers_.back()->data());
  }
  Tensor Of(std::vector<T>& x, int64_t rows) {
    if (rows == 0) return Tensor(type_, {int64_t(x.size())}, x.data());
    return Tensor(type_, {rows, int64_t(x.size()) / rows}, x.data());
  }
  Tensor P(const char* name, int64_t rows = 0) { return Of(p_.at(name), rows); }
  Tensor G(const char* name, int64_t rows = 0) { return Of(g_.at(name), rows); }
  static Tensor Flat(Tensor x) { return x.Reshape({x.rows(), x.cols()}); }
  static Tensor Ints(std::vector<int32_t>& x) {
    return Tensor(DType::kI32, {int64_t(x.size())}, x.data());
  }
  static Tensor Doubles(std::vector<double>& x) {
    return Tensor(DType::kF64, {int64_t(x.size())}, x.data());
  }
  KvView Kv() {
    KvView view;
    view.k = k_, view.v = v_, view.positions = Ints(positions_);
    return view;
  }

  const DType type_;
  std::unique_ptr<Backend> ops_;
  Stream s_;
  std::map<std::string, std::vector<T>> p_, g_;
  std::vector<std::unique_ptr<std::vector<T>>> buffers_;
  std::vector<int32_t> ids_, positions_, labels_, kv_index_ = {0, 0, 0, 1};
  std::vector<double> inv_freq_ = {1, 0.2, 0.05}, c_, z_;
  std::vector<double> stat_ = std::vector<double>(3 * kT), log_p_ = std::vector<double>(kT),
                      log_z_ = std::vector<double>(kT);
  AttentionSpec spec_;
  const std::vector<Tile> tiles_ = {{0, 4, 0, 4}, {4, 7, 0, 5}, {4, 7, 5, 6}};
  Tensor x0_ = New({kT, kD}), x1_ = New({kT, kD}), x2_ = New({kT, kD}), a_ = New({kT, kD}),
         b_ = New({kT, kD}), dx_ = New({kT, kD}), db_ = New({kT, kD});
  Tensor q_ = New({kT, kH, kK}), k_ = New({kT, kG, kK}), v_ = New({kT, kG, kK}),
         o_ = New({kT, kH, kK}), dq_ = New({kT, kH, kK}), dk_ = New({kT, kG, kK}),
         dv_ = New({kT, kG, kK}), do_ = New({kT, kH, kK});
  Tensor lse_ = New({kT, kH}), delta_ = New({kT, kH});
  Tensor gate_ = New({kT, kF}), up_ = New({kT, kF}), hidden_ = New({kT, kF}), in_ = New({kT, kF}),
         hidden2_ = New({kT, kF}), logits_ = New({kT, kV});
};

TEST(TrainingOps, GradientsAreTheDifferencesOfTheLoss) {
  constexpr double h = 1e-3;
  TinyModel<double> model(RandomParams());
  model.Forward();
  model.Backward();
  for (auto& [name, values] : model.params()) {
    Array differences;
    for (double& w : values) {
      const double at = w;
      const auto loss = [&](double step) {
        w = at + step * h;
        const double value = model.Forward();
        w = at;
        return value;
      };
      differences.push_back((8 * (loss(1) - loss(-1)) - (loss(2) - loss(-2))) / (12 * h));
    }
    EXPECT_TRUE(AllClose(model.gradients()[name], differences, 1e-7)) << name;
    differences[0] += 1e-4 * *std::max_element(differences.begin(), differences.end());
    EXPECT_FALSE(AllClose(model.gradients()[name], differences, 1e-7)) << name;  // control
  }
}

TEST(TrainingOps, FloatAgreesWithDoubleAndBitsDoNotDependOnThreads) {
  TinyModel<double> exact(RandomParams());
  TinyModel<float> one(RandomParams(), 1), three(RandomParams(), 3);
  EXPECT_NEAR(one.Forward(), exact.Forward(), 1e-4);
  three.Forward();
  exact.Backward(), one.Backward(), three.Backward();
  for (const auto& [name, gradient] : exact.gradients()) {
    EXPECT_TRUE(AllClose(one.gradients()[name], gradient, Tolerance<float>::kGradient)) << name;
    EXPECT_EQ(one.gradients()[name], three.gradients()[name]) << name;
  }
  one.Forward(), one.Backward();  // gradients are added to: now they are twice as large
  for (const auto& [name, gradient] : exact.gradients()) {
    Array twice = gradient;
    for (double& x : twice) x *= 2;
    EXPECT_TRUE(AllClose(one.gradients()[name], twice, Tolerance<float>::kGradient)) << name;
  }
}

// The optimizers through the backend; their formulas: tests/kernels/optimizer_test.cc.
TEST(TrainingOps, UpdatesReadTheirStepFromMemory) {
  const auto ops = NewCpuBackend(DType::kF32, 2);
  const Stream s = ops->NewStream(false);
  std::vector<float> w = {1, -2, 3}, g = {0.5f, 1, -4}, m(3), v(3);
  std::vector<double> step = {1, 0.1, 0.01, 1 - 0.9, 1 - 0.95}, sum = {1};
  const auto vec = [](std::vector<float>& x) { return Tensor(DType::kF32, {3}, x.data()); };
  ops->SquaredSum(s, vec(g), Tensor(DType::kF64, {1}, sum.data()));
  EXPECT_DOUBLE_EQ(sum[0], 1 + 0.25 + 1 + 16);
  ops->AdamW(s, {}, Tensor(DType::kF64, {5}, step.data()), vec(g), vec(w), vec(m), vec(v));
  EXPECT_NEAR(w[0], 1 * 0.99 - 0.1, 1e-6);  // the first step is one learning rate long
  EXPECT_NEAR(w[2], 3 * 0.99 + 0.1, 1e-6);
  step = {1, 0.1, 0, 0};
  w = {1, -2, 3}, m = v = {0, 0, 0};
  ops->Adafactor(s, {}, Tensor(DType::kF64, {4}, step.data()), vec(g), vec(w), vec(m), vec(v));
  EXPECT_NEAR(w[0], 1 - 0.1 * 0.1, 1e-6);  // (1 - beta1) of it, as there is no correction
  step[1] = 0;                             // negative control: the step is read anew
  const std::vector<float> before = w;
  ops->Adafactor(s, {}, Tensor(DType::kF64, {4}, step.data()), vec(g), vec(w), vec(m), vec(v));
  EXPECT_EQ(w, before);
}

// Step and rows are read from memory; two halves of a tensor on two ranks are the whole.
TEST(TrainingOps, DropoutReadsItsStepAndRowsFromMemory) {
  const auto ops = NewCpuBackend(DType::kF64, 2);
  const Stream s = ops->NewStream(false);
  const DropoutSpec spec = {.rate = 0.5, .seed = 4, .layer = 1, .site = 2, .width = 40};
  const auto run = [&](int64_t step, std::vector<int64_t> rows, int64_t col, int64_t cols) {
    std::vector<double> x(rows.size() * cols, 1.0);
    const Tensor all(DType::kF64, {int64_t(rows.size()), cols}, x.data());
    ops->Dropout(s, spec, Tensor(DType::kI64, {1}, &step),
                 Tensor(DType::kI64, {int64_t(rows.size())}, rows.data()), col, all, all);
    return x;
  };
  const std::vector<double> whole = run(3, {8, 9, 20}, 0, 40), half = run(3, {20, 9}, 17, 23);
  for (int64_t i = 0; i < 23; ++i) {
    EXPECT_EQ(half[i], whole[2 * 40 + 17 + i]);
    EXPECT_EQ(half[23 + i], whole[40 + 17 + i]);
  }
  EXPECT_NE(run(4, {8, 9, 20}, 0, 40), whole);
}

TEST(TrainingOpsDeathTest, WrongShapesAbortOnEveryBackend) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const bool counting : {false, true}) {
    const auto ops = counting ? NewCountingBackend(DType::kF32) : NewCpuBackend(DType::kF32, 1);
    const Stream s = ops->NewStream(false);
    std::vector<float> a(64);
    const auto of = [&](std::initializer_list<int64_t> shape) {
      return Tensor(DType::kF32, shape, a.data());
    };
    const Tensor x = of({3, 4}), w = of({5, 4}), dout = of({3, 5});
    EXPECT_DEATH(ops->MatMulBackward(s, x, w, dout, false, of({3, 5}), Tensor(), Tensor()),
                 "5 vs 4");
    EXPECT_DEATH(ops->MatMulBackward(s, x, w, dout, false, Tensor(), of({4, 5}), Tensor()),
                 "4 vs 5");
    EXPECT_DEATH(ops->MatMulBackward(s, x, w, dout, false, Tensor(), Tensor(), of({4})), "4 vs 5");
    EXPECT_DEATH(ops->RmsNormBackward(s, x, of({4}), 1e-5, x, x, of({3})), "3 vs 4");
    EXPECT_DEATH(ops->GeluBackward(s, x, x, dout), "4 vs 5");
    EXPECT_DEATH(ops->AddBackward(s, x, of({3})), "3 vs 4");
    std::vector<int64_t> rows(3);
    const Tensor rows_t(DType::kI64, {3}, rows.data());
    EXPECT_DEATH(ops->Dropout(s, {.rate = 0.1, .width = 5}, rows_t.Rows(0, 1), rows_t, 2, x, x),
                 "6 vs 5");
    EXPECT_DEATH(ops->Dropout(s, {.rate = 1, .width = 4}, rows_t.Rows(0, 1), rows_t, 0, x, x),
                 "rate");
    std::vector<double> step(4);
    EXPECT_DEATH(ops->AdamW(s, {}, Tensor(DType::kF64, {4}, step.data()), of({3}), of({3}), of({3}),
                            of({3})),
                 "4 vs 5");
  }
}

}  // namespace
}  // namespace toroid
