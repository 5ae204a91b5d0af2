#include "parallel/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/counting_communicator.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

MeshShape Parsed(absl::string_view text, int64_t world) {
  const absl::StatusOr<MeshShape> shape = ParseMesh(text, world, "ring");
  EXPECT_TRUE(shape.ok()) << shape.status();
  return shape.ok() ? *shape : MeshShape{};
}

std::string Refusal(absl::string_view text, int64_t world) {
  const absl::StatusOr<MeshShape> shape = ParseMesh(text, world, "ring");
  EXPECT_EQ(shape.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(shape.status().message());
}

TEST(MeshShapeTest, ParsesAxesInAnyOrder) {
  EXPECT_EQ(Parsed("data=1,ring=2,tensor=2", 4), (MeshShape{1, 2, 2}));
  EXPECT_EQ(Parsed("tensor=2, ring=3", 6), (MeshShape{1, 3, 2}));
  EXPECT_EQ(Parsed("ring=*,tensor=2", 8), (MeshShape{1, 4, 2}));
  EXPECT_EQ(Parsed("data=*", 5), (MeshShape{5, 1, 1}));
  EXPECT_EQ(Parsed("data=*,ring=4", 4), (MeshShape{1, 4, 1}));
  EXPECT_EQ(Parsed("", 7), (MeshShape{1, 7, 1}));
  EXPECT_EQ(*ParseMesh(" ", 7, "data"), (MeshShape{7, 1, 1}));
  EXPECT_EQ(ToString(MeshShape{1, 2, 3}), "data=1,ring=2,tensor=3");
}

TEST(MeshShapeTest, ErrorsNameBothNumbersAndProposeAMesh) {
  EXPECT_THAT(Refusal("ring=2,tensor=2", 6),
              HasSubstr("is for 4 ranks but the world has 6: use --mesh "
                        "data=1,ring=3,tensor=2 or start 4 ranks"));
  EXPECT_THAT(Refusal("ring=*,tensor=4", 6), HasSubstr("needs a multiple of 4 ranks"));
  EXPECT_THAT(Refusal("ring=*,tensor=4", 6), HasSubstr("data=1,ring=2,tensor=3"));
  EXPECT_THAT(Refusal("ring=8", 1), HasSubstr("data=1,ring=1,tensor=1"));
}

TEST(MeshShapeTest, ProposalsAreAccepted) {
  for (int64_t world = 1; world <= 12; ++world) {
    for (const char* text : {"ring=5,tensor=2", "data=7,tensor=3", "data=2,ring=2,tensor=16"}) {
      const absl::StatusOr<MeshShape> shape = ParseMesh(text, world, "ring");
      if (shape.ok()) continue;
      const std::string message(shape.status().message());
      const size_t begin = message.find("--mesh ") + 7;
      const std::string proposal = message.substr(begin, message.find(' ', begin) - begin);
      EXPECT_EQ(Parsed(proposal, world).size(), world) << message;
    }
  }
}

TEST(MeshShapeTest, RefusesWhatIsNotAMesh) {
  EXPECT_THAT(Refusal("rings=2", 2), HasSubstr("no axis is called \"rings\""));
  EXPECT_THAT(Refusal("ring", 2), HasSubstr("ring has no number"));
  EXPECT_THAT(Refusal("ring=2,ring=2", 2), HasSubstr("ring is given twice"));
  EXPECT_THAT(Refusal("ring=0", 2), HasSubstr("ring is \"0\""));
  EXPECT_THAT(Refusal("ring=-2,tensor=-1", 2), HasSubstr("ring is \"-2\""));
  EXPECT_THAT(Refusal("ring=two", 2), HasSubstr("ring is \"two\""));
  EXPECT_THAT(Refusal("ring=9223372036854775807,tensor=2", 2), HasSubstr("ring is"));
  EXPECT_THAT(Refusal("ring=*,tensor=*", 2), HasSubstr("two axes are *"));
  EXPECT_THAT(Refusal("ring=2,", 2), HasSubstr("no axis is called"));
}

// What an axis' communicator must contain: the world ranks that differ in that coordinate only.
void ExpectAxes(Mesh& mesh) {
  const MeshShape& shape = mesh.shape();
  EXPECT_EQ(mesh.rank(),
            (mesh.data_rank() * shape.ring + mesh.ring_rank()) * shape.tensor + mesh.tensor_rank());
  EXPECT_EQ(mesh.data().size(), shape.data);
  EXPECT_EQ(mesh.data().rank(), mesh.data_rank());
  EXPECT_EQ(mesh.ring().size(), shape.ring);
  EXPECT_EQ(mesh.ring().rank(), mesh.ring_rank());
  EXPECT_EQ(mesh.tensor().size(), shape.tensor);
  EXPECT_EQ(mesh.tensor().rank(), mesh.tensor_rank());
  EXPECT_EQ(mesh.shard().size(), shape.data * shape.ring);
  EXPECT_EQ(mesh.shard().rank(), mesh.data_rank() * shape.ring + mesh.ring_rank());
  EXPECT_EQ(mesh.world().size(), shape.size());
}

const MeshShape kShapes[] = {{1, 1, 1}, {1, 4, 1}, {1, 2, 2}, {2, 1, 3}, {2, 2, 2}, {3, 1, 1}};

TEST(MeshTest, AxesJoinTheRanksThatDifferInOneCoordinate) {
  for (const MeshShape& shape : kShapes) {
    RunOnMesh(shape, [](Mesh& mesh) {
      ExpectAxes(mesh);
      CpuStream queue(/*inline_work=*/true);
      const Stream s{&queue};
      for (Axis axis : {Axis::kData, Axis::kRing, Axis::kTensor, Axis::kShard, Axis::kWorld}) {
        Communicator& ranks = mesh.axis(axis);
        const int64_t me = mesh.rank();
        std::vector<int64_t> all(ranks.size());
        ranks.AllGather(s, Tensor(DType::kI64, {1}, const_cast<int64_t*>(&me)),
                        Tensor(DType::kI64, {ranks.size()}, all.data()));
        EXPECT_EQ(all[ranks.rank()], me);
        for (int64_t other : all) {
          const MeshShape& n = mesh.shape();
          const bool same_tensor = other % n.tensor == mesh.tensor_rank();
          const bool same_ring = other / n.tensor % n.ring == mesh.ring_rank();
          const bool same_data = other / n.tensor / n.ring == mesh.data_rank();
          EXPECT_TRUE(axis != Axis::kData || (same_tensor && same_ring));
          EXPECT_TRUE(axis != Axis::kRing || (same_tensor && same_data));
          EXPECT_TRUE(axis != Axis::kTensor || (same_ring && same_data));
          EXPECT_TRUE(axis != Axis::kShard || (same_tensor));
        }
      }
      EXPECT_TRUE(mesh.Health().ok()) << mesh.Health();
    });
  }
}

TEST(MeshTest, CountingMeshHasTheSameAxes) {
  for (const MeshShape& shape : kShapes) {
    for (int rank = 0; rank < shape.size(); ++rank) {
      Mesh mesh(NewCountingWorld(rank, static_cast<int>(shape.size())), shape);
      EXPECT_EQ(mesh.rank(), rank);
      ExpectAxes(mesh);
      EXPECT_EQ(mesh.Agree(17), 17);
    }
  }
}

TEST(MeshTest, AgreeIsTheLargestOnEveryRank) {
  RunOnMesh({1, 2, 2}, [](Mesh& mesh) {
    EXPECT_EQ(mesh.Agree(mesh.rank() == 2 ? 5 : -7), 5);
    EXPECT_EQ(mesh.Agree(-3 - mesh.rank()), -3);
  });
}

TEST(MeshTest, HealthNamesTheAxis) {
  RunOnMesh({1, 2, 2}, [](Mesh& mesh) {
    CpuStream queue(/*inline_work=*/true);
    char bytes[8] = {};
    // The ends of a message disagree about its size.
    const int64_t mine = mesh.ring_rank() == 0 ? 8 : 4;
    const int other = 1 - mesh.ring().rank();
    mesh.ring().SendRecv(Stream{&queue}, Tensor(DType::kU8, {mine}, bytes), other,
                         Tensor(DType::kU8, {mine}, bytes), other);
    EXPECT_THAT(std::string(mesh.Health().message()), HasSubstr("axis ring: "));
  });
}

}  // namespace
}  // namespace toroid
