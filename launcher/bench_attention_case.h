// One case of `bench attention`: random inputs on the host, room for what a kernel makes of them,
// and the same in float64 for some of it.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/attention.h"

namespace toroid {

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
};

// "h32 g8 k128".
std::string ShapeText(const AttentionShape& shape);

// Numbers beside what they should be.
class Comparison {
 public:
  void Add(double actual, double expected);
  // Frobenius, relative; not finite if a number was not.
  double error() const { return std::sqrt(difference_ / norm_); }
  // InternalError if that is above `most`.
  absl::Status CheckError(const std::string& name, double most) const;
  // InternalError if one is off by more than tolerance (1 + |expected|), or is not a number.
  absl::Status Check(const std::string& name, double tolerance) const;

 private:
  double difference_ = 0, norm_ = 0, worst_ = 0;
};

// Arrays of one case: `copies` texts of `keys` keys each, and the queries of the last `queries`
// tokens. Queries are numbers of bf16 too.
class AttentionInputs {
 public:
  AttentionInputs(const AttentionShape& shape, DType kv_type, int64_t queries, int64_t keys,
                  int64_t copies);

  // A fresh carry (o is not read then), the next text.
  void Attend(ThreadPool& pool);

  // o and lse of up to 16 queries in double, all scores at once.
  struct Compared {
    Comparison o, lse;
    absl::Status Check(const std::string& name, double tolerance) const;
  };
  Compared Compare() const;

  const AttentionShape& shape() const { return shape_; }
  const AttentionArgs<float>& args() const { return args_; }  // of the text that was next
  std::vector<float>& o() { return o_; }
  const std::vector<float>& o() const { return o_; }
  std::vector<float>& lse() { return lse_; }
  int64_t kv_head(int64_t head) const { return kv_index_[head]; }
  double K(int64_t key, int64_t head, int64_t d) const { return At(args_.k, key, head, d); }
  double V(int64_t key, int64_t head, int64_t d) const { return At(args_.v, key, head, d); }

 private:
  double At(const void* kv, int64_t key, int64_t head, int64_t d) const;

  const AttentionShape shape_;
  const int64_t row_;
  const std::vector<uint8_t> k_, v_;
  std::vector<float> q_, o_, lse_;
  std::vector<int32_t> positions_, kv_index_;
  const int64_t copies_;
  int64_t turn_ = 0;
  AttentionArgs<float> args_;
};

// The backward of `inputs`, whose forward has been done.
class AttentionGradients {
 public:
  explicit AttentionGradients(const AttentionInputs& inputs);

  void Backward(ThreadPool& pool);

  // Eight queries' dq, and dk and dv of eight keys, in double, from the forward's lse and o.
  struct Compared {
    Comparison dq, dk, dv;
    absl::Status Check(const std::string& name, double tolerance) const;
  };
  Compared Compare() const;

  const std::vector<float>& d_o() const { return do_; }
  std::vector<float>& dq() { return dq_; }
  std::vector<float>& dk() { return dk_; }
  std::vector<float>& dv() { return dv_; }

 private:
  int64_t Row(int64_t q, int64_t head) const {
    return (q * args_.forward.heads + head) * args_.forward.head_dim;
  }
  double Weight(int64_t q, int64_t key, int64_t head) const;
  double ScoreGradient(int64_t q, int64_t key, int64_t head) const;

  const AttentionInputs& in_;
  std::vector<float> do_, dq_, dk_, dv_, delta_;
  AttentionBackwardArgs<float> args_;
};

}  // namespace toroid
