// Pods that train over gRPC streams with TLS: the identities that hold between threads hold there.
#include "tests/support/pod_identities.h"

#include <gtest/gtest.h>

#include <string>

#include "parallel/exchange_plan.h"
#include "tests/rpc/grpc_pod_network.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/train_on_pods.h"

namespace toroid {
namespace {

NewPodLinkNetwork TlsNetwork() {
  return [tls = TestTls("identities")](int64_t queue_bytes) {
    GrpcPodLinkOptions options;
    options.queue_bytes = queue_bytes;
    options.tls = tls;
    return std::make_unique<GrpcPodNetwork>(options);
  };
}

class GrpcPodIdentities : public ::testing::TestWithParam<PodIdentityCase> {};

TEST_P(GrpcPodIdentities, Holds) { GetParam().run(TlsNetwork()); }

const auto name_of = [](const auto& info) { return std::string(info.param.name); };
INSTANTIATE_TEST_SUITE_P(Gradients, GrpcPodIdentities, ::testing::ValuesIn(GradientIdentities()),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Delayed, GrpcPodIdentities, ::testing::ValuesIn(DelayedIdentities()),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Outer, GrpcPodIdentities, ::testing::ValuesIn(OuterIdentities()), name_of);

// From one length of a run to another, so without greetings: payloads are the plan's to the byte;
// what is on the wire besides is a percent and the frames' headers, a few hundred bytes a message.
TEST(GrpcPodBytes, AreThePlansOnTheWireToo) {
  constexpr char kModel[] = "random:tiny-gqa";
  constexpr int64_t kSteps = 8, kHeaders = 400;
  const std::vector<MeshShape> meshes = {{1, 1, 1}, {1, 1, 2}};
  const auto source = TestSource(kModel);
  for (const Codec codec : {Codec::kFp64, Codec::kInt8}) {
    SCOPED_TRACE(CodecName(codec));
    const TrainOptions options =
        Float64(ExchangeOf(ExchangeSpec::Mode::kDiLoCo, /*every=*/2, codec));
    const auto shorter = TrainOnPods(TlsNetwork(), kModel, options, meshes, 2);
    const auto longer = TrainOnPods(TlsNetwork(), kModel, options, meshes, 2 + 2 * kSteps);
    for (size_t pod = 0; pod < meshes.size(); ++pod) {
      const auto turns =
          PlanTurns(source->config, {meshes, source->config.layers, false, options.pods.exchange},
                    int64_t(pod));
      ASSERT_EQ(turns.size(), 1u);
      int64_t planned = 0;
      for (const TurnBytes& rank : turns[0]) planned += rank.sent;
      EXPECT_EQ(longer[pod].bytes_sent - shorter[pod].bytes_sent, kSteps * planned);
      // Four groups from rank to rank, and a card; a launch's greetings once.
      const int64_t messages = (1 + kSteps) * (4 * 2 + 1) + 8;
      EXPECT_LE(double(longer[pod].wire_sent),
                1.01 * double(longer[pod].bytes_sent) + double(kHeaders * messages));
      EXPECT_GT(longer[pod].wire_sent, longer[pod].bytes_sent - planned);  // the last may travel
      // Control: that is no room in which a share could hide.
      EXPECT_LT(double(kHeaders * messages), 0.9 * double(kSteps * planned));
    }
  }
}

}  // namespace
}  // namespace toroid
