// The identities of diloco and streaming, in a bowl.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/support/bowl_on_pods.h"
#include "tests/support/pod_identities.h"
#include "tests/support/train_on_pods.h"

namespace toroid {
namespace {

using Mode = ExchangeSpec::Mode;

const std::vector<MeshShape> kTwins = {{1, 1, 1}, {1, 1, 1}};

// A10: H = 1, inner SGD, outer SGD(1) is synchronous SGD.
void OneInnerStepOfSgdIsSynchronousSgd(const NewPodLinkNetwork& network) {
  ExchangeSpec spec = ExchangeOf(Mode::kDiLoCo);
  spec.outer_rate = 1, spec.outer_momentum = 0;
  const std::vector<double> sync = RollAlone(2, 6);
  const BowlRun run = RollDown(network, kTwins, spec, 6);
  EXPECT_LT(Furthest(run.weights.at(0).back(), sync), 1e-14);
  EXPECT_EQ(run.hashes.at(0), run.hashes.at(1));
  const BowlRun unlike = RollDown(network, {{1, 1, 1}, {1, 1, 2}, {2, 1, 1}}, spec, 6);
  EXPECT_LT(Furthest(unlike.weights.at(0).back(), RollAlone(3, 6)), 1e-14);
  EXPECT_EQ(unlike.hashes.at(0), unlike.hashes.at(1));
  EXPECT_EQ(unlike.hashes.at(0), unlike.hashes.at(2));

  spec.outer_rate = 0.7;  // control
  EXPECT_GT(Furthest(RollDown(network, kTwins, spec, 6).weights.at(0).back(), sync), 1e-3);
}

// A10: one pod, outer rate 1, no momentum is the inner run.
void OnePodIsThePlainRun(const NewPodLinkNetwork& network) {
  for (const int64_t every : {1, 3}) {
    ExchangeSpec spec = ExchangeOf(Mode::kDiLoCo, every);
    spec.outer_rate = 1, spec.outer_momentum = 0;
    EXPECT_LT(
        Furthest(RollDown(network, {{1, 1, 1}}, spec, 7).weights.at(0).back(), RollAlone(1, 7)),
        2e-15);
    spec.outer_momentum = 0.5;  // control
    EXPECT_GT(
        Furthest(RollDown(network, {{1, 1, 1}}, spec, 7).weights.at(0).back(), RollAlone(1, 7)),
        1e-3);
  }
}

// The formula of the whole round with momentum, element by element.
void DiLoCoIsItsFormula(const NewPodLinkNetwork& network) {
  const int64_t every = 3, steps = 9;
  const ExchangeSpec spec = ExchangeOf(Mode::kDiLoCo, every);
  std::vector<double> outer = RollAlone(1, 0), momentum(outer.size(), 0.0);
  std::vector<std::vector<double>> pods(2, outer);
  double labels[2] = {0, 0};
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t q = 0; q < 2; ++q) {
      for (double& x : pods[size_t(q)]) x -= kEta * Bowl(x, q, step);
      labels[q] += double(LabelsOf(q, step));
    }
    if ((step + 1) % every != 0) continue;
    for (size_t i = 0; i < outer.size(); ++i) {
      const double delta =
          (labels[0] * (outer[i] - pods[0][i]) + labels[1] * (outer[i] - pods[1][i])) /
          (labels[0] + labels[1]);
      momentum[i] = 0.9 * momentum[i] + delta;
      outer[i] -= 0.7 * (0.9 * momentum[i] + delta);
      pods[0][i] = pods[1][i] = outer[i];
    }
    labels[0] = labels[1] = 0;
  }
  const BowlRun run = RollDown(network, kTwins, spec, steps);
  EXPECT_LT(Furthest(run.weights.at(0).back(), outer), 1e-13);
  // Pods go their own ways between two rounds, and only there.
  for (int64_t step = 0; step < steps; ++step) {
    const bool round = (step + 1) % every == 0;
    EXPECT_EQ(run.hashes.at(0)[size_t(step)] == run.hashes.at(1)[size_t(step)], round) << step;
  }
  EXPECT_EQ(run.outer.at(0), run.outer.at(1));
}

// A10: alpha = 1 never syncs; alpha = 0, tau = 0 and one fragment is DiLoCo, bit for bit.
void StreamingsLimits(const NewPodLinkNetwork& network) {
  ExchangeSpec spec = ExchangeOf(Mode::kStreaming, 4);
  spec.fragments = 2, spec.tau = 1, spec.alpha = 1;
  const BowlRun apart = RollDown(network, kTwins, spec, 8);
  EXPECT_LT(Furthest(apart.weights.at(0).back(), RollAlone(1, 8)), 1e-300);
  EXPECT_NE(apart.hashes.at(0).back(), apart.hashes.at(1).back());
  EXPECT_EQ(apart.outer.at(0), apart.outer.at(1));  // which are nobody's weights
  EXPECT_NE(apart.outer.at(0).front(), apart.outer.at(0).back());

  spec.fragments = 1, spec.tau = 0, spec.alpha = 0;
  const BowlRun streaming = RollDown(network, kTwins, spec, 9);
  EXPECT_EQ(streaming.hashes, RollDown(network, kTwins, ExchangeOf(Mode::kDiLoCo, 4), 9).hashes);
  spec.tau = 1;  // control
  EXPECT_NE(streaming.hashes, RollDown(network, kTwins, spec, 9).hashes);
}

// With tau a fragment is what it was when it was sent; pods of unlike meshes agree on the outer
// weights always, whatever the codec loses.
void OuterWeightsAreTheSameOnAllPods(const NewPodLinkNetwork& network) {
  for (const Codec codec : kCodecs) {
    ExchangeSpec spec = ExchangeOf(Mode::kStreaming, 4, codec);
    spec.fragments = 2, spec.tau = 1, spec.alpha = 0.5;
    spec.error_feedback = codec == Codec::kE3m0;
    spec.stochastic = codec == Codec::kInt8;
    const BowlRun run = RollDown(network, {{1, 1, 2}, {2, 1, 1}, {1, 1, 1}}, spec, 10);
    EXPECT_EQ(run.outer.at(0), run.outer.at(1)) << CodecName(codec);
    EXPECT_EQ(run.outer.at(0), run.outer.at(2)) << CodecName(codec);
    // Fragment 0 is sent after step 2 and applied after 3, fragment 1 after 4 and 5.
    const std::vector<uint64_t>& outer = run.outer.at(0);
    for (const auto& [step, changes] : std::map<size_t, bool>{
             {1, false}, {2, true}, {3, false}, {4, true}, {5, false}, {6, true}}) {
      EXPECT_EQ(outer[step] != outer[step - 1], changes) << step;
    }
  }
}

}  // namespace

const std::vector<PodIdentityCase>& OuterIdentities() {
  static const auto* const cases = new std::vector<PodIdentityCase>{
      {"OneInnerStepOfSgdIsSynchronousSgd", OneInnerStepOfSgdIsSynchronousSgd},
      {"OnePodIsThePlainRun", OnePodIsThePlainRun},
      {"DiLoCoIsItsFormula", DiLoCoIsItsFormula},
      {"StreamingsLimits", StreamingsLimits},
      {"OuterWeightsAreTheSameOnAllPods", OuterWeightsAreTheSameOnAllPods},
  };
  return *cases;
}

}  // namespace toroid
