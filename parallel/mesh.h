// Mesh: the axes data x ring x tensor of one world, and the communicator of each.
//
// world rank = (data_rank * ring + ring_rank) * tensor + tensor_rank: tensor is nearest (same
// host), data farthest. `shard` = data x ring is the group that splits weights in training. The pod
// is a number, not a communicator.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/communicator.h"

namespace toroid {

struct MeshShape {
  int64_t data = 1, ring = 1, tensor = 1;
  int64_t size() const { return data * ring * tensor; }
  bool operator==(const MeshShape&) const = default;
};

// "data=1,ring=2,tensor=2" for `world` ranks: a missing axis is 1, one axis may be `*` (the rest).
// An empty text puts all ranks on `default_axis` ("ring" or "data"). The product must be the world
// size; else the error names both numbers and proposes a mesh.
absl::StatusOr<MeshShape> ParseMesh(absl::string_view text, int64_t world,
                                    absl::string_view default_axis);
// "data=1,ring=2,tensor=2"
std::string ToString(const MeshShape& shape);

enum class Axis { kData, kRing, kTensor, kShard, kWorld };
inline constexpr std::array<const char*, 5> kAxisNames = {"data", "ring", "tensor", "shard",
                                                          "world"};

class Mesh {
 public:
  // Collective over `world`. REQUIRES: shape.size() == world->size().
  Mesh(std::unique_ptr<Communicator> world, MeshShape shape);

  const MeshShape& shape() const { return shape_; }
  int64_t data_rank() const { return data_rank_; }
  int64_t ring_rank() const { return ring_rank_; }
  int64_t tensor_rank() const { return tensor_rank_; }
  int64_t rank() const { return world_->rank(); }

  Communicator& data() { return *data_; }
  Communicator& ring() { return *ring_; }
  Communicator& tensor() { return *tensor_; }
  Communicator& shard() { return *shard_; }
  Communicator& world() { return *world_; }
  Communicator& axis(Axis axis);

  // The first error of any axis; sticky.
  absl::Status Health() const;
  // One 8-byte all-reduce over the world: the largest `value` of all ranks. Tokens, optimizer steps
  // and checkpoints leave a rank only after it, so that no rank acts on what another could not do.
  int64_t Agree(int64_t value);

 private:
  MeshShape shape_;
  int64_t data_rank_, ring_rank_, tensor_rank_;
  std::unique_ptr<Communicator> world_, data_, ring_, tensor_, shard_;
};

}  // namespace toroid
