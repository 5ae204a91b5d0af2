#include "parallel/mesh.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace toroid {
namespace {

constexpr int64_t kRest = -1;  // `*`
constexpr int64_t kUnset = 0;

int64_t* AxisOf(MeshShape& shape, absl::string_view name) {
  if (name == "data") return &shape.data;
  if (name == "ring") return &shape.ring;
  if (name == "tensor") return &shape.tensor;
  return nullptr;
}

// The mesh closest to what was asked that has `world` ranks: tensor and data are kept as far as
// they divide it, the ring takes the rest.
MeshShape Propose(const MeshShape& asked, int64_t world) {
  MeshShape shape;
  for (shape.tensor = std::min(asked.tensor, world); world % shape.tensor != 0;) --shape.tensor;
  const int64_t rest = world / shape.tensor;
  for (shape.data = std::min(asked.data, rest); rest % shape.data != 0;) --shape.data;
  shape.ring = rest / shape.data;
  return shape;
}

absl::Status Wrong(absl::string_view text, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat("mesh \"", text, "\": ", why,
                                                 ": write --mesh data=1,ring=2,tensor=2, one axis ",
                                                 "may be * (the rest)"));
}

// Reads "axis=count" into `shape`; axes not yet named are kUnset.
absl::Status ReadAxis(absl::string_view text, absl::string_view part, MeshShape& shape) {
  const std::vector<absl::string_view> sides = absl::StrSplit(part, absl::MaxSplits('=', 1));
  const absl::string_view name = absl::StripAsciiWhitespace(sides[0]);
  int64_t* axis = AxisOf(shape, name);
  if (axis == nullptr) {
    return Wrong(text, absl::StrCat("no axis is called \"", name, "\""));
  }
  if (sides.size() != 2) return Wrong(text, absl::StrCat(name, " has no number"));
  if (*axis != kUnset) return Wrong(text, absl::StrCat(name, " is given twice"));
  const absl::string_view value = absl::StripAsciiWhitespace(sides[1]);
  if (value == "*") {
    *axis = kRest;
  } else if (!absl::SimpleAtoi(value, axis) || *axis < 1 || *axis > (int64_t{1} << 20)) {
    return Wrong(text, absl::StrCat(name, " is \"", value, "\", not a positive number or *"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<MeshShape> ParseMesh(absl::string_view text, int64_t world,
                                    absl::string_view default_axis) {
  TOROID_CHECK_GT(world, 0);
  MeshShape shape;
  if (absl::StripAsciiWhitespace(text).empty()) {
    int64_t* axis = AxisOf(shape, default_axis);
    TOROID_CHECK(axis != nullptr);
    *axis = world;
    return shape;
  }
  shape = {kUnset, kUnset, kUnset};
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    const absl::Status read = ReadAxis(text, part, shape);
    if (!read.ok()) return read;
  }
  int64_t* rest = nullptr;
  for (int64_t* axis : {&shape.data, &shape.ring, &shape.tensor}) {
    if (*axis == kRest) {
      if (rest != nullptr) return Wrong(text, "two axes are *");
      rest = axis;
    }
    if (*axis < 1) *axis = 1;
  }
  const int64_t named = shape.size();
  if (rest != nullptr && world % named == 0) *rest = world / named;
  if (shape.size() == world) return shape;
  const std::string what = rest == nullptr ? absl::StrCat("is for ", named, " ranks")
                                           : absl::StrCat("needs a multiple of ", named, " ranks");
  return absl::InvalidArgumentError(
      absl::StrCat("mesh \"", text, "\" ", what, " but the world has ", world, ": use --mesh ",
                   ToString(Propose(shape, world)), " or start ", named, " ranks"));
}

std::string ToString(const MeshShape& shape) {
  return absl::StrCat("data=", shape.data, ",ring=", shape.ring, ",tensor=", shape.tensor);
}

Mesh::Mesh(std::unique_ptr<Communicator> world, MeshShape shape)
    : shape_(shape), world_(std::move(world)) {
  TOROID_CHECK_EQ(shape.size(), world_->size());
  const int ring = static_cast<int>(shape.ring), tensor = static_cast<int>(shape.tensor);
  tensor_rank_ = rank() % tensor;
  ring_rank_ = rank() / tensor % ring;
  data_rank_ = rank() / (tensor * ring);
  // An axis joins the ranks that differ in its coordinate only: its color is the world rank of the
  // one at coordinate 0.
  data_ = world_->Split([=](int r) { return r % (ring * tensor); });
  ring_ = world_->Split([=](int r) { return r - r / tensor % ring * tensor; });
  tensor_ = world_->Split([=](int r) { return r - r % tensor; });
  shard_ = world_->Split([=](int r) { return r % tensor; });
}

Communicator& Mesh::axis(Axis axis) {
  switch (axis) {
    case Axis::kData:
      return *data_;
    case Axis::kRing:
      return *ring_;
    case Axis::kTensor:
      return *tensor_;
    case Axis::kShard:
      return *shard_;
    case Axis::kWorld:
      return *world_;
  }
  std::abort();
}

absl::Status Mesh::Health() const {
  const Communicator* axes[] = {world_.get(), data_.get(), ring_.get(), tensor_.get(),
                                shard_.get()};
  const char* names[] = {"world", "data", "ring", "tensor", "shard"};
  for (size_t i = 0; i < std::size(axes); ++i) {
    const absl::Status health = axes[i]->Health();
    if (!health.ok()) {
      return absl::Status(health.code(), absl::StrCat("axis ", names[i], ": ", health.message()));
    }
  }
  return absl::OkStatus();
}

int64_t Mesh::Agree(int64_t value) {
  int64_t largest = value;
  CpuStream queue(/*inline_work=*/true);  // the value is the host's, whatever ranks compute on
  world_->AllReduce({&queue, nullptr}, Partial(Tensor(DType::kI64, {1}, &largest)), ReduceOp::kMax);
  return largest;
}

}  // namespace toroid
