#include "tests/support/gradients_on_mesh.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/model/loss.h"
#include "core/model/owed_sums.h"
#include "core/model/rope.h"
#include "core/random.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {

ModelConfig TinyConfig() {
  ModelConfig config;
  config.name = "tiny", config.architecture = "llama";
  config.layers = 2, config.dim = 24, config.ffn = 40;
  config.query_heads = 6, config.kv_heads = 2, config.head_dim = 8;
  config.vocab = 37, config.context = 4096;
  return config;
}

ModelConfig TinyPalm() {
  ModelConfig config = TinyConfig();
  config.architecture = "palm";
  config.kv_heads = 1, config.parallel_block = config.tied_embeddings = true;
  config.logit_scale = 1 / std::sqrt(double(config.dim));
  return config;
}

ModelConfig TinyGpt() {
  ModelConfig config = TinyConfig();
  config.architecture = "gpt";
  config.kv_heads = 6, config.context = 40, config.windows = {0, 5};
  config.norm = NormKind::kLayer, config.activation = Activation::kGelu;
  config.positions = PositionKind::kLearned;
  config.qkv_bias = config.output_bias = config.mlp_bias = config.tied_embeddings = true;
  return config;
}

std::string ToString(const GradientCase& c) {
  std::string packs;
  for (const auto& pack : c.packs) {
    absl::StrAppend(&packs, " [");
    for (int64_t length : pack) absl::StrAppend(&packs, " ", length);
    absl::StrAppend(&packs, " ]");
  }
  return absl::StrCat(ToString(c.mesh), " ", ToString(c.layout), " remat ", int(c.remat), packs);
}

ReferenceParams RandomParams(const ModelConfig& config) {
  ReferenceParams params;
  for (const ParamSpec& spec : ParamTable(config)) {
    if (!spec.alias.empty()) continue;
    const bool vector = spec.group == "norm" || spec.group == "bias";
    const uint64_t stream = HashName(spec.name.data(), spec.name.size());
    std::vector<double>& values = params[spec.name];
    for (int64_t i = 0; i < spec.rows * spec.cols; ++i) {
      values.push_back((spec.group == "norm" ? 1.0 : 0.0) +
                       (vector ? 0.3 : spec.init_deviation) * NormalAt(11, stream, i));
    }
  }
  return params;
}

std::vector<Document> DocumentsOf(const GradientCase& c) {
  std::vector<Document> documents;
  for (const auto& pack : c.packs) {
    for (int64_t length : pack) {
      Document document;
      const uint64_t number = documents.size();
      for (int64_t i = 0; i < length; ++i) {
        document.ids.push_back(int32_t(Philox(3, i, number)[0] % c.config.vocab));
        document.loss.weights.push_back(0.01 * double((i * 7 + 3 * number) % 5));
      }
      for (int64_t i = 0; i < length; ++i) {
        const bool last = i + 1 == length && length > 1;  // a lone token has a label, for its loss
        document.loss.labels.push_back(last ? -1 : document.ids[(i + 1) % length]);
      }
      if (length == 1) document.loss.weights[0] = 0.03;
      document.loss.zeta = c.zeta;
      documents.push_back(std::move(document));
    }
  }
  return documents;
}

GradientRank::GradientRank(const GradientCase& c, const ReferenceParams* params, Backend& ops,
                           Mesh& mesh)
    : c_(c),
      ops_(ops),
      mesh_(mesh),
      s_(ops.NewStream(false)),
      comm_s_(ops.NewStream(true)),
      tokens_(TokenLayout::Packed(c.layout, c.packs, c.mesh.data, c.mesh.ring)),
      layout_(c.config, mesh.tensor_rank(), c.mesh.tensor),
      weights_(ops, "weights"),
      saved_(ops, "saved"),
      scratch_(ops, "scratch") {
  const int64_t room = params == nullptr ? int64_t{1} << 46 : 8 << 20;
  for (Arena* arena : {&weights_, &saved_, &scratch_}) TOROID_CHECK(arena->Reserve(room).ok());
  const Stream s = s_;
  for (ParamSpec& spec : ParamTable(c.config)) {
    if (!spec.alias.empty()) continue;
    const ParamSlice slice = layout_.Slice(spec);
    const Tensor w = w_[spec.name] = NewTensor(spec), d = d_[spec.name] = NewTensor(spec);
    ops.Fill(s, d, 0.0);
    std::vector<double> values;
    for (int64_t row = 0; row < slice.row_count && params != nullptr; ++row) {
      const double* from =
          &params->at(spec.name)[(slice.row_begin + row) * spec.cols + slice.col_begin];
      values.insert(values.end(), from, from + slice.col_count);
    }
    if (c.type == DType::kF64) {
      ops.Upload(s, values.data(), w);
    } else {
      ops.Upload(s, std::vector<float>(values.begin(), values.end()).data(), w);
    }
    table_.push_back(std::move(spec));
  }
}

GradientRank::~GradientRank() = default;

Tensor GradientRank::NewTensor(const ParamSpec& spec) {
  const ParamSlice slice = layout_.Slice(spec);
  return weights_.New(spec.name.c_str(), c_.type, {slice.row_count, slice.col_count});
}

Tensor GradientRank::Uploaded(DType type, int64_t size, const void* host) {
  Tensor tensor = scratch_.New("input", type, {size}, Arena::Length::kTokens);
  ops_.Upload(s_, host, tensor);
  return tensor;
}

std::vector<double> GradientRank::Gradient(const std::string& name) const {
  const Tensor d = d_.at(name);
  if (c_.type == DType::kF64) return {d.as<double>(), d.as<double>() + d.size()};
  return {d.as<float>(), d.as<float>() + d.size()};
}

void GradientRank::Run(const After& after) {
  const Stream s = s_;
  const int64_t data = mesh_.data_rank(), ring_rank = mesh_.ring_rank();
  const std::vector<Document> documents = DocumentsOf(c_);
  std::vector<int32_t> ids, labels;
  std::vector<double> weights;
  for (const auto& run : tokens_.runs(data, ring_rank)) {
    const Document& document = documents[run.sequence];
    for (int64_t i = run.first; i < run.first + run.count; ++i) {
      ids.push_back(document.ids[i]), labels.push_back(document.loss.labels[i]);
      weights.push_back(document.loss.weights[i]);
    }
  }
  const int64_t t = int64_t(ids.size()), D = c_.config.dim;
  const RopeFrequencies rope = Rope(c_.config, c_.config.context);
  const std::vector<int32_t> positions = tokens_.Positions(data, ring_rank);
  const std::vector<int32_t>& heads = layout_.heads().kv_index();

  Arena::Mark mark(scratch_), saved_mark(saved_);
  const Tensor ids_t = Uploaded(DType::kI32, t, ids.data());
  const Tensor labels_t = Uploaded(DType::kI32, t, labels.data());
  const Tensor weights_t = Uploaded(DType::kF64, t, weights.data());
  const Tensor positions_t = Uploaded(DType::kI32, t, positions.data());
  const Tensor kv_index = Uploaded(DType::kI32, int64_t(heads.size()), heads.data());
  const Tensor inv_freq =
      Uploaded(DType::kF64, int64_t(rope.inv_freq.size()), rope.inv_freq.data());
  RingAttention ring(ops_, s, comm_s_, scratch_, mesh_, tokens_, [](int64_t, int64_t, int64_t) {});
  const ResidualLayout residual(t, mesh_.tensor_rank(), c_.mesh.tensor, /*always_split=*/true);
  Pass pass(ops_, s, scratch_, mesh_.tensor(), residual, positions_t, inv_freq);
  pass.rope_scale = rope.attention_scale;
  pass.kv_dtype = c_.kv_dtype == DType::kF64 ? c_.type : c_.kv_dtype;
  pass.kv_capacity = tokens_.max_count(data);
  pass.token_block = c_.token_block;
  pass.attend = [&](int64_t layer, const AttentionSpec& spec, Tensor q, Tensor kv, Tensor o,
                    Tensor lse) { ring.Attend(layer, spec, q, positions_t, kv, kv_index, o, lse); };
  pass.attend_backward = [&](int64_t layer, const AttentionSpec& spec, Tensor q, Tensor kv,
                             Tensor o, Tensor lse, Tensor d_o, Tensor dq, Tensor dkv) {
    ring.Backward(layer, spec, q, positions_t, kv, kv_index, o, lse, d_o, dq, dkv);
  };
  // Numbers of this rank's tokens in all documents, one after the other; pads 0.
  std::vector<int64_t> firsts = {0}, numbers(residual.share(), 0);
  for (int64_t length : tokens_.lengths()) firsts.push_back(firsts.back() + length);
  const std::vector<int32_t> sequences = tokens_.Sequences(data, ring_rank);
  for (int64_t i = 0; i < residual.valid(); ++i) {
    const int64_t local = residual.begin() + i;
    numbers[i] = firsts[sequences[local]] + positions[local];
  }
  pass.dropout = {c_.dropout, 17, Uploaded(DType::kI64, 1, &c_.step),
                  Uploaded(DType::kI64, int64_t(numbers.size()), numbers.data())};
  if (c_.break_pass) c_.break_pass(pass);

  const auto bound = [](const std::map<std::string, Tensor>& tensors) {
    return [&tensors](const std::string& name) {
      const auto it = tensors.find(name);
      return it == tensors.end() ? Tensor() : it->second;
    };
  };
  const FindParam w = bound(w_), d = bound(d_);
  const ModelEnds ends = BindEnds(c_.config, layout_, w), dends = BindEnds(c_.config, layout_, d);
  Tensor x_uD = pass.Long("x", c_.type, {residual.share(), D});
  Tensor dx_uD = pass.Long("dx", c_.type, {residual.share(), D});
  Tensor log_p_t = pass.Long("log p", DType::kF64, {t});
  Tensor log_z_t = pass.Long("log Z", DType::kF64, {t});

  ends.Embed(pass, ids_t, x_uD);
  after("embed", -1);
  std::vector<Block::Saved> saved;
  for (int64_t layer = 0; layer < c_.config.layers; ++layer) {
    const Block block = BindBlock(c_.config, layout_, layer, w);
    saved.push_back(block.NewSaved(pass, c_.remat, saved_));
    block.Forward(pass, layer, x_uD, &saved.back());
    if (c_.break_saved) c_.break_saved(ops_, s, saved.back());
    after("forward", layer);
  }
  CrossEntropy(pass, ends, {labels_t, weights_t, c_.zeta}, x_uD, log_p_t, log_z_t, dx_uD, dends);
  after("loss", -1);
  const auto pay = [&](int64_t layer) {
    std::vector<ParamSpec> group;
    for (const ParamSpec& spec : table_) {
      if (spec.layer == layer) group.push_back(spec);
    }
    if (!c_.pay_owed) return;
    SumOwedOverTensor(ops_, s, scratch_, mesh_.tensor(), c_.config, group, d);
  };
  for (int64_t layer = c_.config.layers - 1; layer >= 0; --layer) {
    BindBlock(c_.config, layout_, layer, w)
        .Backward(pass, layer, saved[layer], dx_uD, BindBlock(c_.config, layout_, layer, d));
    after("backward", layer);
    pay(layer);
    after("owed", layer);
  }
  ends.EmbedBackward(pass, ids_t, dx_uD, dends);
  pay(-1);
  after("ends", -1);

  std::vector<double> log_p(t), log_z(t);
  ops_.Download(s, log_p_t, log_p.data());
  ops_.Download(s, log_z_t, log_z.data());
  for (int64_t i = 0; i < t; ++i) {
    if (labels[i] >= 0) loss_ += weights[i] * (-log_p[i] + c_.zeta * log_z[i] * log_z[i]);
  }
}

namespace {

// Adds a rank's slice to the whole parameter, where counts(output) says so.
void AddSlice(const ParamSpec& spec, const ParamSlice& slice, const std::vector<double>& x,
              const std::function<bool(int64_t local)>& counts, std::vector<double>& whole) {
  for (int64_t row = 0; row < slice.row_count; ++row) {
    for (int64_t col = 0; col < slice.col_count; ++col) {
      if (!counts(spec.rows == 1 ? col : row)) continue;
      whole[(slice.row_begin + row) * spec.cols + slice.col_begin + col] +=
          x[row * slice.col_count + col];
    }
  }
}

}  // namespace

MeshGradients GradientsOn(const GradientCase& c, const ReferenceParams& params) {
  // Of each rank: its slices by parameter, and its loss.
  std::vector<ReferenceParams> slices(c.mesh.size());
  std::vector<double> losses(c.mesh.size());
  RunOnMesh(c.mesh, [&](Mesh& mesh) {
    const auto ops = NewCpuBackend(c.type, 1);
    GradientRank rank(c, &params, *ops, mesh);
    rank.Run();
    EXPECT_TRUE(mesh.Health().ok()) << mesh.Health();
    for (const ParamSpec& spec : rank.table()) {
      slices[mesh.rank()][spec.name] = rank.Gradient(spec.name);
    }
    losses[mesh.rank()] = rank.loss();
  });
  MeshGradients result;
  ReferenceParams of_last;  // as result.d, but of the last holder of what several ranks hold
  for (const auto& [name, values] : params) {
    result.d[name].resize(values.size()), of_last[name].resize(values.size());
  }
  const int64_t n = c.mesh.tensor, K = c.config.head_dim;
  for (int64_t rank = 0; rank < c.mesh.size(); ++rank) {
    const int64_t me = rank % n;
    const ParamLayout layout(c.config, me, n);
    const HeadLayout& heads = layout.heads();
    const int64_t next =
        me + 1 < n ? HeadLayout(c.config.query_heads, c.config.kv_heads, me + 1, n).kv_begin()
                   : c.config.kv_heads;
    if (me == 0) result.loss += losses[rank];
    for (const ParamSpec& spec : ParamTable(c.config)) {
      if (!spec.alias.empty()) continue;
      const std::vector<double>& x = slices[rank].at(spec.name);
      const bool replicated = spec.split == Split::kReplicated, kv = spec.split == Split::kKvHeads;
      const auto first = [&](int64_t local) {
        return kv ? heads.owns_kv(local / K) : !replicated || me == 0;
      };
      const auto last = [&](int64_t local) {
        return kv ? heads.kv_begin() + local / K < next : !replicated || me + 1 == n;
      };
      AddSlice(spec, layout.Slice(spec), x, first, result.d[spec.name]);
      AddSlice(spec, layout.Slice(spec), x, last, of_last[spec.name]);
    }
  }
  result.replica_error = GradientError(of_last, result.d);
  return result;
}

ReferenceGradients ReferenceOn(const GradientCase& c, const ReferenceParams& params) {
  ReferenceGradients sum;
  for (const auto& [name, values] : params) sum.d[name].resize(values.size());
  const RopeFrequencies rope = Rope(c.config, c.config.context);
  for (const Document& document : DocumentsOf(c)) {
    if (document.ids.empty()) continue;
    ReferenceInput input;
    input.ids = document.ids, input.inv_freq = rope.inv_freq;
    input.rope_scale = rope.attention_scale;
    const ReferenceGradients one = ReferenceBackward(c.config, params, input, document.loss);
    sum.loss += one.loss;
    for (const auto& [name, values] : one.d) {
      for (size_t i = 0; i < values.size(); ++i) sum.d[name][i] += values[i];
    }
  }
  return sum;
}

double GradientError(const ReferenceParams& x, const ReferenceParams& reference,
                     std::string* worst) {
  const auto largest = [](const std::vector<double>& values) {
    double most = 0;
    for (double v : values) most = std::max(most, std::abs(v));
    return most;
  };
  double scale = 0, error = 0;
  for (const auto& [name, values] : reference) scale = std::max(scale, largest(values));
  for (const auto& [name, values] : reference) {
    const auto found = x.find(name);
    double distance = INFINITY;
    if (found != x.end() && found->second.size() == values.size()) {
      distance = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        const double difference = std::abs(found->second[i] - values[i]);
        distance = std::isnan(difference) ? INFINITY : std::max(distance, difference);
      }
    }
    const double relative = distance / std::max({largest(values), 1e-6 * scale, 1e-300});
    if (relative > error || worst == nullptr || worst->empty()) {
      if (worst != nullptr) *worst = name;
    }
    error = std::max(error, relative);
  }
  return error;
}

}  // namespace toroid
