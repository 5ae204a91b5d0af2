#include "tests/support/training_store.h"

#include <cstring>
#include <vector>

#include "core/random.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;
constexpr Kind kKinds[] = {Kind::kWeights, Kind::kFirstMoments, Kind::kSecondMoments};

}  // namespace

TrainingStore::TrainingStore(Mesh& mesh, const ModelConfig& config, DType type)
    : ops_(NewCpuBackend(type, 1)) {
  const ParamLayout layout(config, mesh.tensor_rank(), mesh.shape().tensor);
  store_ = *ParamStore::Create(
      *ops_, ops_->NewStream(/*communication=*/false), mesh,
      ParamGroups(config, layout, mesh.tensor_rank(), mesh.shard().size(), config.layers), {});
}

// visit(a value of the store, the bytes that it should have, their number)
template <typename Visit>
void TrainingStore::ForEach(uint64_t version, Visit visit) const {
  const DType type = ops_->dtype();
  const int64_t width = RowBytes(type, 1);
  const double zero = 0;
  for (const Kind kind : kKinds) {
    for (int64_t g = 0; g < store_->groups().count(); ++g) {
      const Tensor all = store_->Stored(kind, g);
      std::vector<bool> pad(size_t(all.rows()), true);
      for (const ParamPiece& piece : store_->pieces(g)) {
        const GroupMember& member = store_->groups().group(g).members[piece.member];
        const std::string& name = member.spec.name;
        const uint64_t key = version * 3 + uint64_t(kind),
                       stream = HashName(name.data(), name.size());
        for (int64_t i = 0; i < piece.count; ++i) {
          const int64_t at = piece.begin + i, cols = member.slice.col_count;
          const int64_t row = member.slice.row_begin + at / cols;
          const int64_t col = member.slice.col_begin + at % cols;
          const auto words = Philox(key, uint64_t(row * member.spec.cols + col), stream);
          const double f64 = UniformDouble(words);
          const float f32 = float(f64);
          const void* value = type == DType::kF64 ? static_cast<const void*>(&f64) : &f32;
          visit(all.as<char>() + (piece.offset + i) * width, value, width);
          pad[size_t(piece.offset + i)] = false;
        }
      }
      for (size_t i = 0; i < pad.size(); ++i) {
        if (pad[i]) visit(all.as<char>() + int64_t(i) * width, &zero, width);
      }
    }
  }
}

void TrainingStore::Fill(uint64_t version) {
  ForEach(version, [](char* at, const void* value, int64_t width) {
    std::memcpy(at, value, size_t(width));
  });
}

int64_t TrainingStore::Differences(uint64_t version) const {
  int64_t count = 0;
  ForEach(version, [&](char* at, const void* value, int64_t width) {
    count += std::memcmp(at, value, size_t(width)) != 0;
  });
  return count;
}

}  // namespace toroid
