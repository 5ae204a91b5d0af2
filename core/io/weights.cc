#include "core/io/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/io/model_checkpoint.h"
#include "core/io/plain_values.h"
#include "core/io/random_model.h"
#include "core/io/store_row.h"
#include "core/status_macros.h"
#include "kernels/dequantize.h"

namespace toroid {
namespace {

constexpr int64_t kReleaseEvery = int64_t{4}
                                  << 20;  // bytes of a mapping that may be resident at once

const std::string& StoredName(const ParamSpec& spec) {
  return spec.alias.empty() ? spec.name : spec.alias;
}

const StoredTensor& Find(const ModelSource& source, const ParamSpec& spec) {
  const auto found = source.tensors.find(StoredName(spec));
  TOROID_CHECK_MSG(found != source.tensors.end(), StoredName(spec));
  return found->second;
}

bool IsVector(const ParamSpec& spec) { return spec.group == "norm" || spec.group == "bias"; }

bool IsKept(DType type) {
  return type == DType::kF16 || type == DType::kBF16 || type == DType::kQ8_0 ||
         type == DType::kQ4_0 || type == DType::kQ4_1;
}

// True if ParamLayout cuts the columns of this parameter at multiples of the block.
bool CutsWholeBlocks(const ModelConfig& config, const ParamSpec& spec, DType type) {
  const int64_t block = Info(type).block;
  if (spec.split == Split::kQueryCols) return config.head_dim % block == 0;
  return spec.cols % block == 0;
}

// The type in which a random model holds a matrix.
std::optional<DType> RandomType(const ModelSource& source, const ParamSpec& spec) {
  if (!source.random_type.has_value() || IsVector(spec)) return std::nullopt;
  if (!CutsWholeBlocks(source.config, spec, *source.random_type)) return std::nullopt;
  return source.random_type;
}

// Where element `i` of `size` (rows, or elements of a bias) of an interleaved tensor is stored: our
// element a K/2 + b of a head lies at 2 b + a.
int64_t Interleaved(int64_t i, int64_t size, int64_t heads) {
  const int64_t head_dim = size / heads, half = head_dim / 2;
  const int64_t within = i % head_dim;
  return i - within + within % half * 2 + within / half;
}

// Copies or converts rows of one stored tensor.
class RowReader {
 public:
  RowReader(const StoredTensor& tensor, const ParamSlice& slice, DType stored)
      : tensor_(tensor), slice_(slice), stored_(stored), block_(Info(tensor.dtype).block) {
    // Columns rounded outwards to blocks; with a kept quantised type they are whole already.
    first_ = slice.col_begin / block_ * block_;
    const int64_t last = (slice.col_begin + slice.col_count + block_ - 1) / block_ * block_;
    count_ = last - first_;
    if (stored == tensor.dtype) {
      TOROID_CHECK_EQ(first_, slice.col_begin);
      TOROID_CHECK_EQ(count_, slice.col_count);
    }
    values_.resize(size_t(count_));
  }

  // False if a value is not finite.
  bool Read(int64_t row, void* out) {
    const uint8_t* data = tensor_.data.data() + row * RowBytes(tensor_.dtype, tensor_.cols()) +
                          RowBytes(tensor_.dtype, first_);
    DecodeRow(tensor_.dtype, data, 0, count_, values_.data());
    if (!AllFinite(values_.data(), count_)) return false;
    if (stored_ == tensor_.dtype) {
      std::memcpy(out, data, size_t(RowBytes(stored_, count_)));
    } else {
      StorePlain(values_.data() + (slice_.col_begin - first_), slice_.col_count, stored_, out);
    }
    return true;
  }

 private:
  const StoredTensor& tensor_;
  const ParamSlice& slice_;
  DType stored_;
  int64_t block_, first_, count_;
  std::vector<float> values_;
};

absl::Status NotFinite(const ModelSource& source, const StoredTensor& tensor,
                       const std::string& name) {
  return absl::InvalidArgumentError(
      absl::StrCat(source.files[tensor.file].path(), ": parameter ", name,
                   " holds an infinite value or one that is not a number; the file is damaged"));
}

absl::Status LoadMatrix(const ModelSource& source, const StoredTensor& tensor,
                        const std::string& name, const ParamSlice& slice, DType stored,
                        uint8_t* out) {
  const MappedFile& file = source.files[tensor.file];
  const int64_t row_bytes = RowBytes(tensor.dtype, tensor.cols());
  const int64_t step = RowBytes(stored, slice.col_count);
  const int64_t head_dim =
      tensor.interleaved_heads > 0 ? tensor.rows() / tensor.interleaved_heads : 1;
  RowReader reader(tensor, slice, stored);
  int64_t released = slice.row_begin;  // rows before this one are dropped
  for (int64_t i = 0; i < slice.row_count; ++i) {
    const int64_t row = slice.row_begin + i;
    const int64_t at = tensor.interleaved_heads > 0
                           ? Interleaved(row, tensor.rows(), tensor.interleaved_heads)
                           : row;
    if (!reader.Read(at, out + i * step)) return NotFinite(source, tensor, name);
    const bool last = i + 1 == slice.row_count;
    if (last || (row + 1 - released) * row_bytes >= kReleaseEvery) {
      // Rows of one head are read out of order, so whole heads are dropped.
      const int64_t begin = released / head_dim * head_dim;
      const int64_t end = std::min(tensor.rows(), (row + head_dim) / head_dim * head_dim);
      file.Release(tensor.data.data() + begin * row_bytes, (end - begin) * row_bytes);
      released = row + 1;
    }
  }
  return absl::OkStatus();
}

// A matrix whose columns are our rows (StoredTensor::stored_cols): stored rows are read in runs,
// and turned a few of our rows at a time.
absl::Status LoadTransposed(const ModelSource& source, const StoredTensor& tensor,
                            const std::string& name, const ParamSlice& slice, DType stored,
                            uint8_t* out) {
  constexpr int64_t kRows = 64;  // of ours at a time
  const int64_t cols = slice.col_count, step = RowBytes(stored, cols);
  const int64_t width = RowBytes(tensor.dtype, 1);
  const bool kept = stored == tensor.dtype;
  std::vector<float> run(kRows), turned(size_t(kRows * cols));
  for (int64_t row = 0; row < slice.row_count; row += kRows) {
    const int64_t rows = std::min(kRows, slice.row_count - row);
    const int64_t first = tensor.first_stored_col + slice.row_begin + row;
    for (int64_t c = 0; c < cols; ++c) {
      const uint8_t* data =
          tensor.data.data() + ((slice.col_begin + c) * tensor.stored_cols + first) * width;
      DecodeRow(tensor.dtype, data, 0, rows, run.data());
      if (!AllFinite(run.data(), rows)) return NotFinite(source, tensor, name);
      for (int64_t r = 0; r < rows; ++r) {
        turned[size_t(r * cols + c)] = run[size_t(r)];
        if (kept) std::memcpy(out + (row + r) * step + c * width, data + r * width, size_t(width));
      }
    }
    for (int64_t r = 0; !kept && r < rows; ++r) {
      StorePlain(turned.data() + r * cols, cols, stored, out + (row + r) * step);
    }
  }
  source.files[tensor.file].Release(tensor.data.data(), int64_t(tensor.data.size()));
  return absl::OkStatus();
}

// A bias or gain: small, so it is decoded whole, then put in order and cut.
absl::Status LoadVector(const ModelSource& source, const StoredTensor& tensor,
                        const std::string& name, const ParamSlice& slice, DType stored, void* out) {
  const int64_t size = tensor.cols();
  std::vector<float> whole(size), part(slice.col_count);
  DecodeRow(tensor.dtype, tensor.data.data(), 0, size, whole.data());
  if (!AllFinite(whole.data(), size)) return NotFinite(source, tensor, name);
  for (int64_t i = 0; i < slice.col_count; ++i) {
    const int64_t element = slice.col_begin + i;
    part[i] =
        whole[tensor.interleaved_heads > 0 ? Interleaved(element, size, tensor.interleaved_heads)
                                           : element];
  }
  StorePlain(part.data(), slice.col_count, stored, out);
  source.files[tensor.file].Release(tensor.data.data(), int64_t(tensor.data.size()));
  return absl::OkStatus();
}

// Drawn, and where the model holds another type, stored in it by whole blocks and read again.
void LoadRandom(const ModelSource& source, const ParamSpec& spec, const ParamSlice& slice,
                DType stored, uint8_t* out) {
  ParamSpec drawn = spec;  // an alias draws the numbers of the parameter that it stands for
  if (!spec.alias.empty()) {
    for (const ParamSpec& other : ParamTable(source.config)) {
      if (other.name == spec.alias) drawn = other;
    }
  }
  const std::optional<DType> held = RandomType(source, spec);
  const int64_t block = held.has_value() ? Info(*held).block : 1;
  const int64_t first = slice.col_begin / block * block;
  const int64_t count = (slice.col_begin + slice.col_count - first + block - 1) / block * block;
  std::vector<float> row(size_t(count), 0.0f);
  std::vector<uint8_t> blocks(held.has_value() ? size_t(RowBytes(*held, count)) : 0);
  const int64_t step = RowBytes(stored, slice.col_count);
  for (int64_t i = 0; i < slice.row_count; ++i) {
    const int64_t at = slice.row_begin + i;
    if (source.initial) {
      InitialRow(*source.random_seed, source.config, drawn, at, first, count, row.data());
    } else {
      RandomRow(*source.random_seed, drawn, at, first, count, row.data());
    }
    if (held.has_value()) {
      StoreRow(row.data(), count, *held, blocks.data());
      if (stored == *held) {
        std::memcpy(out + i * step, blocks.data(), size_t(step));
        continue;
      }
      DecodeRow(*held, blocks.data(), 0, count, row.data());
    }
    StorePlain(row.data() + (slice.col_begin - first), slice.col_count, stored, out + i * step);
  }
}

}  // namespace

DType StoredType(const ModelSource& source, const ParamSpec& spec, DType compute) {
  if (IsVector(spec)) return compute == DType::kF64 ? DType::kF64 : DType::kF32;
  const DType plain = compute == DType::kBF16 ? DType::kBF16 : DType::kF32;
  const bool pooled = source.kv_pooling.has_value() && spec.split == Split::kKvHeads;
  if (source.random_seed.has_value()) {
    return pooled ? plain : RandomType(source, spec).value_or(plain);
  }
  if (source.checkpoint != nullptr) {
    return compute == DType::kF64 ? source.checkpoint->manifest().dtype : plain;
  }
  if (pooled) return plain;
  const DType type = Find(source, spec).dtype;
  return IsKept(type) && CutsWholeBlocks(source.config, spec, type) ? type : plain;
}

int64_t SliceBytes(const ParamSlice& slice, DType stored) {
  return slice.row_count * RowBytes(stored, slice.col_count);
}

absl::Status LoadParam(const ModelSource& source, const ParamSpec& spec, const ParamSlice& slice,
                       DType stored, void* out) {
  const bool pooled = source.kv_pooling.has_value() && spec.split == Split::kKvHeads;
  return pooled ? LoadPooled(source, spec, slice, stored, out)
                : LoadStored(source, spec, slice, stored, out);
}

absl::Status LoadStored(const ModelSource& source, const ParamSpec& spec, const ParamSlice& slice,
                        DType stored, void* out) {
  TOROID_CHECK(slice.row_begin >= 0 && slice.row_begin + slice.row_count <= spec.rows);
  TOROID_CHECK(slice.col_begin >= 0 && slice.col_begin + slice.col_count <= spec.cols);
  if (slice.row_count == 0 || slice.col_count == 0) return absl::OkStatus();
  if (source.checkpoint != nullptr) {
    return source.checkpoint->Load(StoredName(spec), slice, stored, out);
  }
  if (!source.random_seed.has_value()) {
    const StoredTensor& tensor = Find(source, spec);
    if (IsVector(spec)) return LoadVector(source, tensor, spec.name, slice, stored, out);
    if (tensor.stored_cols > 0) {
      return LoadTransposed(source, tensor, spec.name, slice, stored, static_cast<uint8_t*>(out));
    }
    return LoadMatrix(source, tensor, spec.name, slice, stored, static_cast<uint8_t*>(out));
  }
  LoadRandom(source, spec, slice, stored, static_cast<uint8_t*>(out));
  return absl::OkStatus();
}

}  // namespace toroid
