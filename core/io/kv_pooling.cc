#include "core/io/kv_pooling.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/io/model_source.h"
#include "core/io/plain_values.h"
#include "core/io/random_model.h"
#include "core/io/weights.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

// The heads of one group, row after row of one head, or elements of a bias: sum or first.
absl::Status AddHeads(const ModelSource& source, const ParamSpec& spec, const ParamSlice& slice,
                      int64_t output, std::vector<double>& sum) {
  const KvPooling& pooling = *source.kv_pooling;
  const int64_t group = pooling.from / source.config.kv_heads, head_dim = source.config.head_dim;
  const bool vector = spec.rows == 1;
  ParamSpec held = spec;
  (vector ? held.cols : held.rows) *= group;
  const int64_t taken = pooling.kind == KvPooling::Kind::kMean ? group : 1;
  std::vector<double> values(sum.size());
  for (int64_t i = 0; i < taken; ++i) {
    const int64_t at = (output / head_dim * group + i) * head_dim + output % head_dim;
    ParamSlice part = slice;
    (vector ? part.col_begin : part.row_begin) = at;
    TOROID_RETURN_IF_ERROR(LoadStored(source, held, part, DType::kF64, values.data()));
    for (size_t j = 0; j < sum.size(); ++j) sum[j] += values[j];
  }
  for (double& value : sum) value /= double(taken);
  return absl::OkStatus();
}

void Draw(const ModelSource& source, const ParamSpec& spec, const ParamSlice& slice,
          std::vector<double>& values) {
  std::vector<float> row(size_t(slice.col_count));
  for (int64_t i = 0; i < slice.row_count; ++i) {
    InitialRow(source.kv_pooling->seed, source.config, spec, slice.row_begin + i, slice.col_begin,
               slice.col_count, row.data());
    std::copy(row.begin(), row.end(), values.begin() + i * slice.col_count);
  }
}

}  // namespace

absl::Status PoolKvHeads(ModelSource& source, int64_t kv_heads, KvPooling::Kind kind,
                         uint64_t seed) {
  const int64_t from = source.config.kv_heads;
  if (source.kv_pooling.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source.path, " is pooled to ", from, " KV heads already"));
  }
  if (kv_heads < 1 || from % kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        kv_heads, " KV heads of the ", from, " of ", source.path,
        ": heads are pooled in groups of equal size: give a number that divides ", from));
  }
  if (kv_heads == from) return absl::OkStatus();
  source.kv_pooling = KvPooling{kind, from, seed};
  source.config.kv_heads = kv_heads;
  return absl::OkStatus();
}

absl::Status LoadPooled(const ModelSource& source, const ParamSpec& spec, const ParamSlice& slice,
                        DType stored, void* out) {
  TOROID_CHECK(source.kv_pooling.has_value() && spec.split == Split::kKvHeads);
  const int64_t head_dim = source.config.head_dim;
  const bool vector = spec.rows == 1;
  const int64_t begin = vector ? slice.col_begin : slice.row_begin;
  const int64_t end = begin + (vector ? slice.col_count : slice.row_count);
  char* to = static_cast<char*>(out);
  for (int64_t output = begin, count; output < end; output += count) {
    count = std::min(end - output, head_dim - output % head_dim);  // of one head
    ParamSlice part = slice;
    (vector ? part.col_begin : part.row_begin) = output;
    (vector ? part.col_count : part.row_count) = count;
    std::vector<double> values(size_t(part.row_count * part.col_count));
    if (source.kv_pooling->kind == KvPooling::Kind::kRandom) {
      Draw(source, spec, part, values);
    } else {
      TOROID_RETURN_IF_ERROR(AddHeads(source, spec, part, output, values));
    }
    StorePlain(values.data(), int64_t(values.size()), stored, to);
    to += RowBytes(stored, int64_t(values.size()));
  }
  return absl::OkStatus();
}

}  // namespace toroid
