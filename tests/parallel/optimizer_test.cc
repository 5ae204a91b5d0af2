#include "parallel/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "core/io/random_model.h"
#include "core/io/weights.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;
using Parameters = std::map<std::string, std::vector<double>>;  // whole, row after row

constexpr int kSteps = 3;

double GradientAt(const std::string& name, int64_t element, int step) {
  return 0.01 * std::sin(double(name.size()) + 0.37 * double(element) + double(step));
}

// The element of the whole parameter that element i of the slice is.
int64_t Whole(const GroupMember& member, int64_t i) {
  const int64_t cols = member.slice.col_count;
  return (member.slice.row_begin + i / cols) * member.spec.cols + member.slice.col_begin + i % cols;
}

OptimizerSpec Spec(OptimizerSpec::Kind kind) {
  OptimizerSpec spec;
  spec.kind = kind;
  if (kind == OptimizerSpec::Kind::kAdamW) {
    spec.rate.peak = 0.1;
    spec.rate.warmup = 2;
    spec.decay = {WeightDecay::Kind::kTimesRate, 0.1};
  } else {
    spec.rate = PalmLearningRate();
    spec.decay = {WeightDecay::Kind::kRateSquared, 0};
  }
  return spec;
}

// What one rank stores after three updates.
void Train(Mesh& mesh, const ModelSource& source, const OptimizerSpec& spec, Parameters& trained) {
  const auto ops = NewCpuBackend(DType::kF64, 1);
  const Stream s = ops->NewStream(false);
  const ParamLayout layout(source.config, mesh.tensor_rank(), mesh.shape().tensor);
  const auto store = *ParamStore::Create(*ops, s, mesh,
                                         ParamGroups(source.config, layout, mesh.tensor_rank(),
                                                     mesh.shard().size(), source.config.layers),
                                         {});
  ASSERT_TRUE(store->Load(source).ok());
  const auto optimizer = *Optimizer::Create(*ops, s, *store, spec);
  const auto for_each = [&](Kind kind, const auto& visit) {
    for (int64_t g = 0; g < store->groups().count(); ++g) {
      for (const ParamPiece& piece : store->pieces(g)) {
        const GroupMember& member = store->groups().group(g).members[piece.member];
        double* values = store->Stored(kind, g, piece).as<double>();
        for (int64_t i = 0; i < piece.count; ++i) {
          visit(member.spec.name, Whole(member, piece.begin + i), values[i]);
        }
      }
    }
  };
  for (int step = 0; step < kSteps; ++step) {
    for_each(Kind::kGradients, [&](const std::string& name, int64_t element, double& d) {
      d = GradientAt(name, element, step);
    });
    optimizer->Update(step, step, 0.5);
  }
  for_each(Kind::kWeights, [&](const std::string& name, int64_t element, double& w) {
    trained[name][element] = w;
  });
}

// The formulas, over whole parameters.
Parameters Reference(const ModelSource& source, const OptimizerSpec& spec) {
  Parameters trained;
  for (const ParamSpec& parameter : ParamTable(source.config)) {
    if (!parameter.alias.empty()) continue;
    const int64_t n = parameter.rows * parameter.cols;
    std::vector<double> w(n), m(n), v(n);
    EXPECT_TRUE(
        LoadParam(source, parameter, {0, parameter.rows, 0, parameter.cols}, DType::kF64, w.data())
            .ok());
    for (int step = 0; step < kSteps; ++step) {
      const double k = step + 1, rate = LearningRate(spec.rate, step);
      const double shrink = spec.decay.Shrink(parameter, rate);
      double squares = 0;
      for (double x : w) squares += x * x;
      const double rms = std::max(1e-3, std::sqrt(squares / double(n)));
      for (int64_t i = 0; i < n; ++i) {
        const double g = 0.5 * GradientAt(parameter.name, i, step);
        if (spec.kind == OptimizerSpec::Kind::kAdamW) {
          const AdamWSpec& a = spec.adamw;
          m[i] = a.beta1 * m[i] + (1 - a.beta1) * g;
          v[i] = a.beta2 * v[i] + (1 - a.beta2) * g * g;
          w[i] =
              (1 - shrink) * w[i] - rate * (m[i] / (1 - std::pow(a.beta1, k))) /
                                        (std::sqrt(v[i] / (1 - std::pow(a.beta2, k))) + a.epsilon);
        } else {
          const double beta2 = 1 - std::pow(k, -0.8);
          v[i] = beta2 * v[i] + (1 - beta2) * (g * g + spec.adafactor.epsilon);
          m[i] = spec.adafactor.beta1 * m[i] + (1 - spec.adafactor.beta1) * g / std::sqrt(v[i]);
          w[i] = (1 - shrink) * w[i] - rate * rms * m[i];
        }
      }
    }
    trained[parameter.name] = w;
  }
  return trained;
}

class OptimizerTest : public testing::TestWithParam<OptimizerSpec::Kind> {};

TEST_P(OptimizerTest, IsTheFormulaOnEveryMesh) {
  const ModelSource source = *OpenRandom("tiny-mqa", 4);
  const OptimizerSpec spec = Spec(GetParam());
  const Parameters reference = Reference(source, spec);
  for (const MeshShape shape :
       {MeshShape{1, 1, 1}, MeshShape{1, 3, 1}, MeshShape{1, 1, 2}, MeshShape{2, 1, 2}}) {
    std::mutex mutex;
    Parameters trained;
    for (const auto& [name, values] : reference) trained[name].assign(values.size(), NAN);
    RunOnMesh(shape, [&](Mesh& mesh) {
      Parameters own = reference;
      for (auto& [name, values] : own) values.assign(values.size(), NAN);
      Train(mesh, source, spec, own);
      const std::lock_guard<std::mutex> lock(mutex);
      for (auto& [name, values] : own) {
        for (size_t i = 0; i < values.size(); ++i) {
          if (std::isnan(values[i])) continue;
          double& seen = trained[name][i];
          EXPECT_TRUE(std::isnan(seen) || seen == values[i]) << "replicas differ: " << name;
          seen = values[i];
        }
      }
    });
    for (const auto& [name, values] : reference) {
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_NEAR(trained[name][i], values[i], 1e-12 * (1 + std::abs(values[i])))
            << name << " " << i << " on " << ToString(shape);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, OptimizerTest,
                         testing::Values(OptimizerSpec::Kind::kAdamW,
                                         OptimizerSpec::Kind::kAdafactor),
                         [](const auto& kind) {
                           return kind.param == OptimizerSpec::Kind::kAdamW ? "AdamW" : "Adafactor";
                         });

}  // namespace
}  // namespace toroid
