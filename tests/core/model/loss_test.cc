// The loss in one pass over its logits against Head and HeadBackward, and both against the
// reference, on one rank and over the vocabulary of several. That whole models learn from it:
// tests/parallel/gradient_test.cc.
#include "core/model/loss.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <vector>

#include "tests/reference/backward.h"
#include "tests/support/all_close.h"
#include "tests/support/kernel_inputs.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using reference::Array;

class LossTest : public ::testing::Test {
 protected:
  static constexpr int64_t kT = 7, kD = 6, kV = 9001;  // two tiles of the head's vocabulary

  LossTest()
      : ops_(NewCpuBackend(DType::kF64, 1)), s_(ops_->NewStream(false)), scratch_(*ops_, "") {
    TOROID_CHECK(scratch_.Reserve(64 << 20).ok());
    ends_.embedding_vD = ends_.head_vD = View(head_, {kV, kD});
    ends_.final_norm.gain_D = View(gain_, {kD});
    ends_.final_norm.epsilon = 1e-3, ends_.vocab = {0, kV}, ends_.vocab_padded = kV;
    labels_ = {3, -1, 8999, 0, 8191, 8192, 17};
    h_ = reference::RmsNorm(x_, gain_, ends_.final_norm.epsilon);
    // The reference.
    std::vector<int32_t> labels = labels_;
    labels[1] = 0;
    const Array logits = reference::MatMul(h_, head_, {}, kT, kV, kD);
    reference::LogProbabilities(logits, labels, &log_p_, &log_z_);
    for (int64_t i = 0; i < kT; ++i) {
      d_log_p_.push_back(i == 1 ? 0 : -weights_[i]);
      d_log_z_.push_back(i == 1 ? 0 : 2 * kZeta * weights_[i] * log_z_[i]);
    }
    gradient_ = reference::MatMulBackward(
        h_, head_, reference::LogProbabilitiesBackward(logits, labels, d_log_p_, d_log_z_), kT, kV,
        kD);
  }

  static Tensor View(Array& x, std::initializer_list<int64_t> shape) {
    return Tensor(DType::kF64, shape, x.data());
  }
  Pass NewPass() {
    Pass pass(*ops_, s_, scratch_, self_, ResidualLayout(kT, 0, 1, true), Tensor(), Tensor());
    pass.token_block = 3;
    return pass;
  }
  ModelEnds Gradients(Array& dhead, Array& dgain) {
    ModelEnds d;
    dhead.assign(kV * kD, 0.0), dgain.assign(kD, 0.0);
    d.head_vD = View(dhead, {kV, kD}), d.final_norm.gain_D = View(dgain, {kD});
    return d;
  }

  static constexpr double kZeta = 0.05;
  std::unique_ptr<Backend> ops_;
  Stream s_;
  Arena scratch_;
  SelfCommunicator self_;
  Array head_ = RandomArray(kV * kD, 1, 0.3), gain_ = RandomArray(kD, 2),
        x_ = RandomArray(kT * kD, 3);
  Array weights_ = {0.5, 9, 0.25, 0, 1, 0.125, 2};
  std::vector<int32_t> labels_;
  Array h_, log_p_, log_z_, d_log_p_, d_log_z_;
  reference::MatMulGradient gradient_;
  ModelEnds ends_;
};

TEST_F(LossTest, HeadBackwardEqualsTheReference) {
  Array dhead, dgain, dh(kT * kD, 7.0);
  const ModelEnds d = Gradients(dhead, dgain);
  ends_.HeadBackward(NewPass(), View(h_, {kT, kD}), Tensor(DType::kI32, {kT}, labels_.data()),
                     View(log_z_, {kT}), View(d_log_p_, {kT}), View(d_log_z_, {kT}),
                     View(dh, {kT, kD}), d);
  EXPECT_TRUE(AllClose(dh, gradient_.dx_mk));
  EXPECT_TRUE(AllClose(dhead, gradient_.dw_nk));
}

// Each rank of `tensor` has its rows of the head: Head merges them, HeadBackward's dh owes the sum.
TEST_F(LossTest, HeadIsTheSameOverAnyTensorAxis) {
  Array one_dh;
  for (const int ranks : {1, 2, 3}) {
    SCOPED_TRACE(ranks);
    std::mutex mutex;
    Array dhead, dh, part;  // of all ranks; of rank 0 before the sum
    dhead.assign(kV * kD, NAN);
    RunOnRanks(ranks, [&](std::unique_ptr<Communicator> tensor) {
      const auto ops = NewCpuBackend(DType::kF64, 1);
      const Stream s = ops->NewStream(false);
      Arena scratch(*ops, "");
      ASSERT_TRUE(scratch.Reserve(4 << 20).ok());
      Array h = h_, head = head_, log_p(kT), log_z(kT), own_dh(kT * kD, 7.0);
      Array d_log_p = d_log_p_, d_log_z = d_log_z_;
      std::vector<int32_t> ids = labels_;
      const int64_t c = (kV + ranks - 1) / ranks, begin = tensor->rank() * c;
      ModelEnds ends, d;
      ends.vocab = {begin, std::min(kV, begin + c)}, ends.vocab_padded = c;
      const int64_t v = ends.vocab.size();
      ends.head_vD = Tensor(DType::kF64, {v, kD}, head.data() + begin * kD);
      Array own_dhead(v * kD, 0.0);
      d.head_vD = View(own_dhead, {v, kD});
      const Pass pass(*ops, s, scratch, *tensor,
                      ResidualLayout(kT, tensor->rank(), tensor->size(), true), Tensor(), Tensor());
      const Tensor labels(DType::kI32, {kT}, ids.data());
      ends.Head(pass, View(h, {kT, kD}), labels, View(log_p, {kT}), View(log_z, {kT}));
      const Partial owed =
          ends.HeadBackward(pass, View(h, {kT, kD}), labels, View(log_z, {kT}), View(d_log_p, {kT}),
                            View(d_log_z, {kT}), View(own_dh, {kT, kD}), d);
      ops->Synchronize(s);
      const Array before = own_dh;
      tensor->AllReduce(s, owed);
      ops->Synchronize(s);
      ASSERT_TRUE(tensor->Health().ok()) << tensor->Health();
      const std::lock_guard<std::mutex> lock(mutex);
      EXPECT_TRUE(AllClose(log_z, log_z_));
      EXPECT_EQ(log_p[1], -INFINITY);  // no label
      log_p[1] = log_p_[1];
      EXPECT_TRUE(AllClose(log_p, log_p_));
      EXPECT_TRUE(AllClose(own_dh, gradient_.dx_mk)) << "rank " << tensor->rank();
      std::copy(own_dhead.begin(), own_dhead.end(), dhead.begin() + begin * kD);
      if (tensor->rank() == 0) dh = own_dh, part = before;
    });
    EXPECT_TRUE(AllClose(dhead, gradient_.dw_nk));
    if (ranks == 1) one_dh = dh;
    EXPECT_TRUE(AllClose(dh, one_dh));
    EXPECT_EQ(bool(AllClose(part, one_dh, 0.01)), ranks == 1);  // control: a sum was owed
  }
}

TEST_F(LossTest, OnePassEqualsTheReference) {
  Array dhead, dgain, dx(kT * kD), log_p(kT), log_z(kT);
  const ModelEnds d = Gradients(dhead, dgain);
  CrossEntropy(NewPass(), ends_,
               {Tensor(DType::kI32, {kT}, labels_.data()), View(weights_, {kT}), kZeta},
               View(x_, {kT, kD}), View(log_p, {kT}), View(log_z, {kT}), View(dx, {kT, kD}), d);
  const auto norm =
      reference::RmsNormBackward(x_, gain_, ends_.final_norm.epsilon, gradient_.dx_mk);
  EXPECT_TRUE(AllClose(dx, norm.dx_tD, Tolerance<double>::kGradient));
  EXPECT_TRUE(AllClose(dgain, norm.dgain_D, Tolerance<double>::kGradient));
  EXPECT_TRUE(AllClose(dhead, gradient_.dw_nk));
  EXPECT_TRUE(AllClose(log_z, log_z_));
  EXPECT_EQ(log_p[1], -INFINITY);  // no label
  log_p[1] = log_p_[1] = 0;
  EXPECT_TRUE(AllClose(log_p, log_p_));
  // Negative control: a token that has a label counts.
  labels_[1] = 5;
  CrossEntropy(NewPass(), ends_,
               {Tensor(DType::kI32, {kT}, labels_.data()), View(weights_, {kT}), kZeta},
               View(x_, {kT, kD}), View(log_p, {kT}), View(log_z, {kT}), View(dx, {kT, kD}), {});
  EXPECT_FALSE(AllClose(dx, norm.dx_tD, 0.1));
}

TEST_F(LossTest, ABlockHoldsAsManyLogitsAsTheyMayBe) {
  Pass pass = NewPass();
  EXPECT_EQ(LossBlock(pass, ends_), 3);
  pass.token_block = 1 << 20;
  EXPECT_EQ(LossBlock(pass, ends_), (1 << 24) / kV);
  ends_.vocab_padded = int64_t{1} << 30;
  EXPECT_EQ(LossBlock(pass, ends_), 1);
}

}  // namespace
}  // namespace toroid
