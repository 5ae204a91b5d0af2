#include "parallel/optimizer.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "core/train/update.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

// Calls visit(i, member) for every parameter in the order of ParamStore::SquaredSums.
template <typename Visit>
void ForEachParameter(const ParamGroups& groups, const Visit& visit) {
  int64_t i = 0;
  for (int64_t g = 0; g < groups.count(); ++g) {
    for (const GroupMember& member : groups.group(g).members) visit(i++, member.spec);
  }
}

}  // namespace

absl::Status Validate(const OptimizerSpec& spec) {
  const auto wrong = [](absl::string_view name, double value, absl::string_view rule) {
    return absl::InvalidArgumentError(
        absl::StrCat("optimizer: ", name, " is ", value, ", must be ", rule));
  };
  const bool adamw = spec.kind == OptimizerSpec::Kind::kAdamW;
  const double beta1 = adamw ? spec.adamw.beta1 : spec.adafactor.beta1;
  const double epsilon = adamw ? spec.adamw.epsilon : spec.adafactor.epsilon;
  if (!(beta1 >= 0 && beta1 < 1)) return wrong("beta1", beta1, "at least 0 and below 1");
  if (adamw && !(spec.adamw.beta2 >= 0 && spec.adamw.beta2 < 1)) {
    return wrong("beta2", spec.adamw.beta2, "at least 0 and below 1");
  }
  if (!(epsilon > 0)) return wrong("epsilon", epsilon, "above 0");
  if (!(spec.decay.rate >= 0)) return wrong("weight decay", spec.decay.rate, "at least 0");
  return Validate(spec.rate);
}

Tensor Optimizer::Constants(const ParamStore& store, const OptimizerSpec& spec) {
  int64_t parameters = 0;
  ForEachParameter(store.groups(), [&](int64_t, const ParamSpec&) { ++parameters; });
  const int64_t fields = spec.kind == OptimizerSpec::Kind::kAdamW ? 5 : 4;
  return Tensor(DType::kF64, {parameters, fields}, nullptr);
}

int64_t Optimizer::ConstantBytes(const ParamStore& store, const OptimizerSpec& spec) {
  return Constants(store, spec).bytes();
}

absl::StatusOr<std::unique_ptr<Optimizer>> Optimizer::Create(Backend& ops, Stream s,
                                                             ParamStore& store,
                                                             const OptimizerSpec& spec) {
  std::unique_ptr<Optimizer> optimizer(new Optimizer(ops, s, store, spec));
  Tensor& steps = optimizer->steps_;
  steps = Constants(store, spec);
  TOROID_ASSIGN_OR_RETURN(steps.data, ops.Allocate(steps.bytes()));
  return optimizer;
}

Optimizer::~Optimizer() {
  if (steps_.data != nullptr) ops_.Free(steps_.data, steps_.bytes());
}

void Optimizer::UploadAdamW(int64_t step, int64_t updates, double gradient_scale) {
  const double rate = LearningRate(spec_.rate, step);
  std::vector<AdamWStep> steps;
  ForEachParameter(store_.groups(), [&](int64_t, const ParamSpec& parameter) {
    steps.push_back(AdamWUpdate(spec_.adamw, updates + 1, gradient_scale, rate,
                                spec_.decay.Shrink(parameter, rate)));
  });
  ops_.Upload(s_, steps.data(), steps_);
}

void Optimizer::UploadAdafactor(int64_t step, int64_t updates, double gradient_scale) {
  const double rate = LearningRate(spec_.rate, step);
  const std::vector<double> squares = squares_();
  std::vector<AdafactorStep> steps;
  ForEachParameter(store_.groups(), [&](int64_t i, const ParamSpec& parameter) {
    steps.push_back(AdafactorUpdate(updates + 1, gradient_scale, rate,
                                    spec_.decay.Shrink(parameter, rate), squares[i],
                                    parameter.rows * parameter.cols));
  });
  ops_.Upload(s_, steps.data(), steps_);
}

void Optimizer::Update(int64_t step, int64_t updates, double gradient_scale) {
  const bool adamw = spec_.kind == OptimizerSpec::Kind::kAdamW;
  if (adamw) {
    UploadAdamW(step, updates, gradient_scale);
  } else {
    UploadAdafactor(step, updates, gradient_scale);
  }
  int64_t first = 0;  // of the group's parameters in steps_
  for (int64_t g = 0; g < store_.groups().count(); ++g) {
    for (const ParamPiece& piece : store_.pieces(g)) {
      const Tensor constants = steps_.Rows(first + piece.member, 1).Reshape({steps_.cols()});
      const Tensor gradient = store_.Stored(Kind::kGradients, g, piece);
      const Tensor w = store_.Stored(Kind::kWeights, g, piece);
      const Tensor m = store_.Stored(Kind::kFirstMoments, g, piece);
      const Tensor v = store_.Stored(Kind::kSecondMoments, g, piece);
      if (adamw) {
        ops_.AdamW(s_, spec_.adamw, constants, gradient, w, m, v);
      } else {
        ops_.Adafactor(s_, spec_.adafactor, constants, gradient, w, m, v);
      }
    }
    first += int64_t(store_.groups().group(g).members.size());
  }
  store_.Forget();
}

Optimizer::Clipped Optimizer::ClipAndUpdate(int64_t step, const std::vector<double>& squares,
                                            double max_norm, int64_t& updates) {
  Clipped made;
  for (size_t i = 0; i < squares.size(); ++i) {
    if (!std::isfinite(squares[i]) && made.skipped.empty()) {
      made.skipped = store_.parameter_name(int64_t(i));
    }
    made.squared_sum += squares[i];
  }
  made.clip = ClipGlobalNorm(made.squared_sum, max_norm);
  if (made.clip.finite) Update(step, updates++, made.clip.factor);
  return made;
}

}  // namespace toroid
