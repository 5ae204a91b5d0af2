#include <algorithm>

#include "kernels/attention.h"
#include "kernels/attention_kernel.h"
#include "kernels/attention_merge.h"
#include "kernels/isa.h"

namespace toroid {

namespace {

const AttentionKernel<float>& Kernel(float) {
  static constexpr AttentionKernel<float> kScalar = {AttendBlock<float, 4>, BlockRows<float, 4>, 4};
  switch (CurrentIsa()) {
    case Isa::kAvx512:
      return AttentionAvx512();
    case Isa::kAvx2:
      return AttentionAvx2();
    case Isa::kScalar:
      break;
  }
  return kScalar;
}

const AttentionKernel<double>& Kernel(double) {
  static constexpr AttentionKernel<double> kScalar = {AttendBlock<double, 2>, BlockRows<double, 2>,
                                                      2};
  return kScalar;
}

// Query heads that read one KV head: runs of equal kv_index, cut so that a run fits a block.
struct HeadRuns {
  const int32_t* kv_index;
  int64_t heads, longest_allowed;

  int64_t End(int64_t begin) const {
    int64_t end = begin + 1;
    while (end < heads && end - begin < longest_allowed && kv_index[end] == kv_index[begin]) ++end;
    return end;
  }
};

template <typename T>
class AttendOp {
 public:
  AttendOp(ThreadPool& pool, const AttentionArgs<T>& args)
      : pool_(pool), a_(args), kernel_(Kernel(T(0))) {
    const int64_t rows = kernel_.rows(a_.head_dim);
    runs_ = {a_.kv_index, a_.heads, rows};
    int64_t longest = 0;
    for (int64_t begin = 0; begin < a_.heads; begin = runs_.End(begin)) {
      ++run_count_;
      longest = std::max(longest, runs_.End(begin) - begin);
    }
    longest_run_ = longest;
    block_tokens_ = std::max<int64_t>(1, rows / longest);
    blocks_ = (a_.q_count + block_tokens_ - 1) / block_tokens_;
  }

  void Run() {
    const int64_t parts = Parts();
    if (parts > 1) {
      RunSplit(parts);
      return;
    }
    // Later queries see more keys under a causal mask: longest first, so that the ends balance.
    pool_.ParallelFor(run_count_ * blocks_, 1, [&](int64_t item, int64_t, int worker) {
      const int64_t block = blocks_ - 1 - item / run_count_;
      AttentionBlock<T> b = BlockAt(item % run_count_, block);
      b.key_begin = a_.k_begin, b.key_end = a_.k_begin + a_.k_count;
      b.o = a_.o + b.token_begin * a_.o_stride + b.head_begin * a_.head_dim;
      b.o_stride = a_.o_stride;
      b.lse = a_.lse + b.token_begin * a_.lse_stride + b.head_begin;
      b.lse_stride = a_.lse_stride;
      kernel_.attend(a_, b, pool_.scratch(worker));
    });
  }

 private:
  AttentionBlock<T> BlockAt(int64_t run, int64_t block) const {
    AttentionBlock<T> b = {};
    for (; run > 0; --run) b.head_begin = runs_.End(b.head_begin);
    b.head_count = runs_.End(b.head_begin) - b.head_begin;
    b.token_begin = a_.q_begin + block * block_tokens_;
    b.token_count = std::min(block_tokens_, a_.q_begin + a_.q_count - b.token_begin);
    return b;
  }

  // How many KV heads an item of decode takes: so many that it reads 1 KiB of each key in one
  // piece.
  int64_t GroupRuns() const {
    if (a_.q_count * longest_run_ > kNarrowRows) return 1;
    return std::clamp<int64_t>(1024 / RowBytes(a_.kv_type, a_.head_dim), 1, kNarrowRuns);
  }

  AttentionBlock<T> GroupAt(int64_t group) const {
    const int64_t first = group * GroupRuns(), last = std::min(first + GroupRuns(), run_count_);
    AttentionBlock<T> b = BlockAt(first, 0);
    const AttentionBlock<T> end = BlockAt(last - 1, 0);
    b.head_count = end.head_begin + end.head_count - b.head_begin;
    return b;
  }

  // Into how many key ranges the work of few queries (decode) is cut: by shape alone. Each part
  // has at least 256 keys and all partial results fit the pool's shared scratch.
  int64_t Parts() const {
    if (a_.q_count * longest_run_ > std::max(kernel_.lanes, kNarrowRows)) return 1;
    const int64_t part_bytes =
        a_.q_count * a_.heads * (a_.head_dim + 1) * static_cast<int64_t>(sizeof(T));
    return std::min({a_.k_count / 256, int64_t{32}, ThreadPool::kScratchBytes / part_bytes});
  }

  void RunSplit(int64_t parts) {
    const int64_t lse_size = a_.q_count * a_.heads, o_size = lse_size * a_.head_dim;
    T* o_parts = static_cast<T*>(pool_.shared_scratch());
    T* lse_parts = o_parts + parts * o_size;
    const int64_t per_part =
        ((a_.k_count + parts - 1) / parts + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
    const int64_t k_end = a_.k_begin + a_.k_count;
    const int64_t groups = (run_count_ + GroupRuns() - 1) / GroupRuns();
    pool_.ParallelFor(groups * parts, 1, [&](int64_t item, int64_t, int worker) {
      const int64_t part = item / groups;
      AttentionBlock<T> b = GroupAt(item % groups);
      b.key_begin = std::min(k_end, a_.k_begin + part * per_part);
      b.key_end = std::min(k_end, b.key_begin + per_part);
      b.o = o_parts + part * o_size + b.head_begin * a_.head_dim;
      b.o_stride = a_.heads * a_.head_dim;
      b.lse = lse_parts + part * lse_size + b.head_begin;
      b.lse_stride = a_.heads;
      b.fresh = true;
      kernel_.attend(a_, b, pool_.scratch(worker));
    });
    MergeArgs<T> merge;
    merge.o_parts = o_parts, merge.lse_parts = lse_parts;
    merge.parts = parts, merge.rows = lse_size, merge.heads = a_.heads, merge.dim = a_.head_dim;
    merge.o_part_stride = o_size, merge.lse_part_stride = lse_size;
    merge.o = a_.o + a_.q_begin * a_.o_stride, merge.o_stride = a_.o_stride;
    merge.lse = a_.lse + a_.q_begin * a_.lse_stride, merge.lse_stride = a_.lse_stride;
    merge.carry = true;
    AttentionMerge(pool_, merge);
  }

  ThreadPool& pool_;
  const AttentionArgs<T>& a_;
  const AttentionKernel<T>& kernel_;
  HeadRuns runs_ = {};
  int64_t run_count_ = 0, longest_run_ = 0, block_tokens_ = 1, blocks_ = 0;
};

}  // namespace

void AttendTile(ThreadPool& pool, const AttentionArgs<float>& args) {
  if (args.q_count > 0 && args.k_count > 0 && args.heads > 0) AttendOp<float>(pool, args).Run();
}
void AttendTile(ThreadPool& pool, const AttentionArgs<double>& args) {
  if (args.q_count > 0 && args.k_count > 0 && args.heads > 0) AttendOp<double>(pool, args).Run();
}

}  // namespace toroid
