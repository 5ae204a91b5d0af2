#include "core/model/transformer.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "core/io/weights.h"
#include "core/model/bind.h"
#include "core/status_macros.h"
#include "kernels/thread_pool.h"

namespace toroid {
namespace {

constexpr int64_t kLoadBytes = 4 << 20;  // of a weight read at a time

int64_t Aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// `part` of a parameter, kept in `type`, to `out`. Rows of a random model are drawn by all threads.
absl::Status ReadRows(const ModelSource& source, ThreadPool& pool, const ParamSpec& spec,
                      const ParamSlice& part, DType type, char* out) {
  if (!source.random_seed.has_value()) return LoadParam(source, spec, part, type, out);
  std::vector<absl::Status> read(size_t(pool.threads()));
  const int64_t grain = std::max<int64_t>(1, part.row_count / (4 * pool.threads()));
  const int64_t row_bytes = RowBytes(type, part.col_count);
  pool.ParallelFor(part.row_count, grain, [&](int64_t begin, int64_t end, int worker) {
    ParamSlice rows = part;
    rows.row_begin += begin, rows.row_count = end - begin;
    read[size_t(worker)].Update(LoadParam(source, spec, rows, type, out + begin * row_bytes));
  });
  for (const absl::Status& status : read) TOROID_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

}  // namespace

struct Transformer::Placed {
  const ParamSpec* spec;
  ParamSlice slice;
  Tensor tensor;
};

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Create(const ModelSource& source,
                                                                 Backend& ops, Stream s,
                                                                 const Options& options) {
  const ModelConfig& config = source.config;
  TOROID_RETURN_IF_ERROR(CheckTensorAxis(config, options.tensor_size, "ring"));
  const int64_t layers =
      options.layers > 0 ? std::min(options.layers, config.layers) : config.layers;
  std::vector<ParamSpec> table;
  for (ParamSpec& spec : ParamTable(config)) {
    if (spec.layer < layers && spec.alias.empty()) table.push_back(std::move(spec));
  }
  std::unique_ptr<Transformer> model(
      new Transformer(ops, config, ParamLayout(config, options.tensor_rank, options.tensor_size)));
  std::vector<Placed> placed;
  TOROID_RETURN_IF_ERROR(model->Place(source, table, options, placed));
  if (options.load) TOROID_RETURN_IF_ERROR(model->Read(source, s, options, placed));
  ops.Upload(s, model->layout_.heads().kv_index().data(), model->kv_index_);
  TOROID_RETURN_IF_ERROR(model->Bind(placed, layers));
  return model;
}

Transformer::~Transformer() {
  if (memory_ != nullptr) ops_.Free(memory_, weight_bytes_);
}

// Gives every parameter of the table its place in one piece of memory.
absl::Status Transformer::Place(const ModelSource& source, const std::vector<ParamSpec>& table,
                                const Options& options, std::vector<Placed>& placed) {
  std::vector<int64_t> offsets;
  int64_t bytes = 0;
  for (const ParamSpec& spec : table) {
    const ParamSlice slice = layout_.Slice(spec);
    const DType type = StoredType(source, spec, options.compute);
    placed.push_back({&spec, slice, Tensor(type, {slice.row_count, slice.col_count}, nullptr)});
    offsets.push_back(bytes);
    bytes += Aligned(placed.back().tensor.bytes());
  }
  kv_index_ = Tensor(DType::kI32, {layout_.heads().query_count()}, nullptr);
  TOROID_ASSIGN_OR_RETURN(void* memory, ops_.Allocate(bytes + Aligned(kv_index_.bytes())));
  memory_ = static_cast<char*>(memory);
  weight_bytes_ = bytes + Aligned(kv_index_.bytes());
  for (size_t i = 0; i < placed.size(); ++i) placed[i].tensor.data = memory_ + offsets[i];
  kv_index_.data = memory_ + bytes;
  return absl::OkStatus();
}

// Reads this rank's slices, a few rows at a time, so that no copy of a whole weight exists beside
// it.
absl::Status Transformer::Read(const ModelSource& source, Stream s, const Options& options,
                               const std::vector<Placed>& placed) {
  int64_t done = 0;
  std::vector<char> staging;
  ThreadPool pool(source.random_seed.has_value() ? std::max(1, options.threads) : 1);
  for (const Placed& p : placed) {
    if (p.tensor.empty()) continue;
    const int64_t step = std::max<int64_t>(1, kLoadBytes / p.tensor.row_bytes());
    for (int64_t row = 0; row < p.slice.row_count; row += step) {
      ParamSlice part = p.slice;
      part.row_begin += row;
      part.row_count = std::min(step, p.slice.row_count - row);
      const Tensor rows = p.tensor.Rows(row, part.row_count);
      if (int64_t(staging.size()) < rows.bytes()) staging.resize(rows.bytes());
      TOROID_RETURN_IF_ERROR(ReadRows(source, pool, *p.spec, part, p.tensor.dtype, staging.data()));
      ops_.Upload(s, staging.data(), rows);
      done += rows.bytes();
      options.progress(done, weight_bytes_);
    }
  }
  return absl::OkStatus();
}

absl::Status Transformer::Bind(const std::vector<Placed>& placed, int64_t layers) {
  absl::flat_hash_map<std::string, Tensor> by_name;
  for (const Placed& p : placed) by_name[p.spec->name] = p.tensor;
  const auto find = [&](const std::string& name) {
    const auto it = by_name.find(name);
    return it == by_name.end() ? Tensor() : it->second;
  };
  ends_ = BindEnds(config_, layout_, find);
  for (int64_t i = 0; i < layers; ++i) {
    blocks_.push_back(BindBlock(config_, layout_, i, find));
    TOROID_RETURN_IF_ERROR(blocks_.back().attention.spec.Validate());
  }
  return absl::OkStatus();
}

}  // namespace toroid
