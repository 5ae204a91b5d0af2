#include "core/model/owed_sums.h"

#include <functional>

namespace toroid {
namespace {

// KV heads that more than one rank holds, ascending.
std::vector<int64_t> SharedKvHeads(const ModelConfig& config, int64_t ranks) {
  std::vector<int64_t> holders(config.kv_heads, 0), shared;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const HeadLayout heads(config.query_heads, config.kv_heads, rank, ranks);
    for (int64_t i = 0; i < heads.kv_count(); ++i) ++holders[heads.kv_begin() + i];
  }
  for (int64_t head = 0; head < config.kv_heads; ++head) {
    if (holders[head] > 1) shared.push_back(head);
  }
  return shared;
}

// The owed parts of a parameter, one after the other: (KV head, or -1 for the whole; rows; cols).
void ForEachOwed(const ModelConfig& config, const ParamSpec& spec,
                 const std::vector<int64_t>& shared,
                 const std::function<void(int64_t head, int64_t rows, int64_t cols)>& visit) {
  if (!spec.alias.empty()) return;
  if (spec.split == Split::kReplicated) visit(-1, spec.rows, spec.cols);
  if (spec.split != Split::kKvHeads) return;
  for (int64_t head : shared) {
    if (spec.rows == 1) {
      visit(head, 1, config.head_dim);
    } else {
      visit(head, config.head_dim, spec.cols);
    }
  }
}

}  // namespace

int64_t OwedElements(const ModelConfig& config, const std::vector<ParamSpec>& group,
                     int64_t tensor_size) {
  if (tensor_size == 1) return 0;
  const std::vector<int64_t> shared = SharedKvHeads(config, tensor_size);
  int64_t elements = 0;
  for (const ParamSpec& spec : group) {
    ForEachOwed(config, spec, shared,
                [&](int64_t, int64_t rows, int64_t cols) { elements += rows * cols; });
  }
  return elements;
}

void SumOwedOverTensor(Backend& ops, Stream s, Arena& scratch, Communicator& tensor,
                       const ModelConfig& config, const std::vector<ParamSpec>& group,
                       const FindParam& gradient) {
  if (tensor.size() == 1) return;  // nothing is owed
  std::vector<ParamSpec> wanted;
  for (const ParamSpec& spec : group) {
    if (gradient(spec.name).given()) wanted.push_back(spec);
  }
  const int64_t elements = OwedElements(config, wanted, tensor.size());
  if (elements == 0) return;
  const HeadLayout heads(config.query_heads, config.kv_heads, tensor.rank(), tensor.size());
  const std::vector<int64_t> shared = SharedKvHeads(config, tensor.size());
  Arena::Mark mark(scratch);
  const Tensor packed = scratch.New("owed gradients", ops.dtype(), {elements});
  // Every part held here, beside its place in the buffer.
  const auto for_each_held = [&](const std::function<void(Tensor part, Tensor place)>& visit) {
    int64_t offset = 0;
    for (const ParamSpec& spec : wanted) {
      const Tensor whole = gradient(spec.name);
      ForEachOwed(config, spec, shared, [&](int64_t head, int64_t rows, int64_t cols) {
        const Tensor place = packed.Rows(offset, rows * cols).Reshape({rows, cols});
        offset += rows * cols;
        const int64_t local = head - heads.kv_begin();
        if (head < 0) {
          visit(whole.Reshape({rows, cols}), place);
        } else if (local >= 0 && local < heads.kv_count()) {
          const int64_t begin = local * config.head_dim;
          visit(spec.rows == 1 ? whole.Reshape({1, whole.size()}).Cols(begin, cols)
                               : whole.Rows(begin, rows),
                place);
        }
      });
    }
  };
  ops.Fill(s, packed, 0.0);
  for_each_held([&](Tensor part, Tensor place) { ops.Copy(s, part, place); });
  tensor.AllReduce(s, Partial(packed));
  for_each_held([&](Tensor part, Tensor place) { ops.Copy(s, place, part); });
}

}  // namespace toroid
