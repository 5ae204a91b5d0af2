#include "parallel/exchange_plan.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "core/check.h"
#include "core/model/param_groups.h"
#include "core/model/params.h"
#include "parallel/exchange_layout.h"
#include "parallel/exchange_rows.h"

namespace toroid {
namespace {

using Mode = ExchangeSpec::Mode;

// Of a line between two ranks, one way: each layer's message, those of the embedding and the head
// (one, if they are tied), and what it takes to send the embedding's in two.
struct LineBytes {
  int64_t layer = 0, embedding = 0, head = 0, rows = 0;
  void Add(const ParamGroups& groups, int64_t group, int64_t bytes) {
    (group == groups.layer(0) ? layer : group == groups.embedding() ? embedding : head) += bytes;
  }
};

struct RankLines {
  std::map<std::pair<int64_t, int64_t>, LineBytes> sends, receives;  // by pod and rank
};

ParamGroups OneLayer(const ModelConfig& config, const MeshShape& mesh, int64_t tensor_rank) {
  return ParamGroups(config, ParamLayout(config, tensor_rank, mesh.tensor), tensor_rank,
                     mesh.data * mesh.ring, /*layers=*/1);
}

// Of twins: all that the rank stores. As ExchangeLayout has it, which looks at all pairs of ranks.
LineBytes TwinBytes(const ParamGroups& groups, const ModelConfig& config, int64_t shard_rank,
                    Codec codec) {
  LineBytes bytes;
  for (int64_t g = 0; g < groups.count(); ++g) {
    const ParamGroup& group = groups.group(g);
    int64_t codes = 0, blocks = 0;
    for (const ParamPiece& piece : PiecesOf(group, groups.Stored(g, shard_rank))) {
      const int64_t block = ExchangeBlock(group.members[piece.member].spec, config.head_dim);
      codes += piece.count;
      blocks += (piece.count + block - 1) / block;
    }
    bytes.Add(groups, g, CodeBytes(codec, codes) + (HasScales(codec) ? 2 * blocks : 0));
  }
  return bytes;
}

// Of each line on which ranks of this mesh send; 0: the embedding's gradient goes at once.
int64_t RowsBytesOf(const ModelConfig& config, const ExchangeSpec& spec, const MeshShape& sender) {
  const bool in_two = spec.gradients() && SplitsByRows(spec.codec) && sender.size() == 1;
  return in_two ? RowsBytes(config.vocab) : 0;
}

// By rank of pod `pod`.
std::vector<RankLines> LinesOf(const ModelConfig& config, const PlannedExchange& job, int64_t pod) {
  const MeshShape& own = job.meshes[size_t(pod)];
  const Codec codec = job.spec.codec;
  std::vector<RankLines> ranks(size_t(own.size()));
  for (int64_t t = 0; t < own.tensor; ++t) {
    const ParamGroups groups = OneLayer(config, own, t);
    for (int64_t rank = t; rank < own.size(); rank += own.tensor) {
      RankLines& lines = ranks[size_t(rank)];
      for (int64_t q = 0; q < int64_t(job.meshes.size()); ++q) {
        if (q == pod) continue;
        if (job.meshes[size_t(q)] == own) {
          LineBytes twin = TwinBytes(groups, config, rank / own.tensor, codec);
          twin.rows = RowsBytesOf(config, job.spec, own);
          lines.sends[{q, rank}] = lines.receives[{q, rank}] = twin;
          continue;
        }
        const ExchangeLayout layout(config, /*layers=*/1, own, rank, job.meshes[size_t(q)]);
        for (int64_t g = 0; g < layout.groups(); ++g) {
          const auto add = [&](LineBytes& line, int64_t bytes, const MeshShape& sender) {
            line.Add(groups, g, bytes);
            if (g == groups.embedding()) line.rows = RowsBytesOf(config, job.spec, sender);
          };
          for (const ExchangePart& part : layout.sends(g)) {
            add(lines.sends[{q, part.rank}], PayloadBytes(part, true, codec), own);
          }
          for (const ExchangePart& part : layout.receives(g)) {
            add(lines.receives[{q, part.rank}], PayloadBytes(part, false, codec),
                job.meshes[size_t(q)]);
          }
        }
      }
    }
  }
  return ranks;
}

// What rank 0 of pod `from` tells each other pod's in a turn (PodSwap's cards).
int64_t CardBytes(const ModelConfig& config, const PlannedExchange& job, int64_t from) {
  constexpr int64_t kNumber = sizeof(double);
  if (!job.spec.gradients()) return kNumber;  // a word
  const int64_t card = 3 * kNumber;           // loss, labels, a word
  if (from != 0) return card;
  int64_t parameters = 0;
  const ParamGroups groups(config, ParamLayout(config, 0, 1), 0, 1, job.layers);
  for (int64_t g = 0; g < groups.count(); ++g)
    parameters += int64_t(groups.group(g).members.size());
  return card + kNumber * parameters * (job.adafactor ? 2 : 1);  // squares
}

int64_t Turns(const ExchangeSpec& spec) {
  return spec.mode == Mode::kStreaming ? spec.fragments : 1;
}

// Of the embedding's group the most that goes behind the lowest layer's: rows that tokens are of,
// and what else it has.
int64_t LateBytes(const ModelConfig& config, const PlannedExchange& job, const LineBytes& line) {
  if (line.rows == 0) return line.embedding;
  const ParamGroups groups = OneLayer(config, {1, 1, 1}, 0);
  const int64_t rows = job.tokens > 0 ? std::min(job.tokens, config.vocab) : config.vocab;
  const int64_t early = (config.vocab - rows) * config.dim;
  const int64_t late = groups.group(groups.embedding()).size - early;
  return std::min(line.embedding, CodeBytes(job.spec.codec, late));
}

// Of the rank's turn: layers turn, turn + turns, ..; the ends with the first (OuterExchange).
TurnBytes TurnOf(const ModelConfig& config, const RankLines& rank, const PlannedExchange& job,
                 int64_t turn, const std::vector<int64_t>& cards, bool first_rank, int64_t pod) {
  const int64_t turns = Turns(job.spec);
  const int64_t layers = (job.layers - turn + turns - 1) / turns;
  TurnBytes bytes;
  const auto add = [&](const auto& lines, int64_t& total, bool sends) {
    for (const auto& [peer, line] : lines) {
      const int64_t ends = turn == 0 ? line.embedding + line.head + line.rows : 0;
      int64_t all = layers * line.layer + ends;
      if (first_rank && peer.second == 0) all += cards[size_t(sends ? pod : peer.first)];
      total += all;
      if (all <= bytes.line) continue;
      bytes.line = all;
      bytes.last = turn == 0 ? LateBytes(config, job, line) : 0;
      bytes.first = ends - bytes.last;
    }
  };
  add(rank.sends, bytes.sent, true);
  add(rank.receives, bytes.received, false);
  return bytes;
}

double Hidden(double time, double behind) { return std::max(0.0, time - behind); }

}  // namespace

int64_t StepsOfRound(const ExchangeSpec& spec) { return spec.gradients() ? 1 : spec.every; }

std::vector<std::vector<TurnBytes>> PlanTurns(const ModelConfig& config, const PlannedExchange& job,
                                              int64_t pod) {
  TOROID_CHECK(job.meshes.size() > 1);
  std::vector<RankLines> ranks = LinesOf(config, job, pod);
  std::vector<int64_t> cards;
  for (size_t q = 0; q < job.meshes.size(); ++q)
    cards.push_back(CardBytes(config, job, int64_t(q)));
  for (int64_t q = 0; q < int64_t(job.meshes.size()); ++q) {
    if (q == pod) continue;
    (void)ranks[0].sends[{q, 0}];  // a line of cards alone, if nothing else is
    (void)ranks[0].receives[{q, 0}];
  }
  std::vector<std::vector<TurnBytes>> turns(size_t(Turns(job.spec)));
  for (size_t turn = 0; turn < turns.size(); ++turn) {
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      turns[turn].push_back(TurnOf(config, ranks[rank], job, int64_t(turn), cards, rank == 0, pod));
    }
  }
  return turns;
}

namespace {

// Seconds of a step's gradients that its backward does not cover. Between the first layer and the
// last what is left of either falls evenly, so that one of the two has most to wait for.
double BehindBackward(const TurnBytes& turn, int64_t layers, double bytes_per_s,
                      const StepSeconds& seconds) {
  if (bytes_per_s <= 0) return 0;
  const double of_layers = double(turn.line - turn.first - turn.last), count = double(layers);
  const double left = seconds.backward - seconds.head;
  return std::max({double(turn.line) / bytes_per_s - left,
                   (of_layers + double(turn.last)) / bytes_per_s - left * (1 - 1 / count),
                   (of_layers / count + double(turn.last)) / bytes_per_s});
}

// Of one pod.
ExchangeCost CostOfPod(const ModelConfig& config, const PlannedExchange& job, int64_t pod,
                       const PodLinkSpeed& link, const StepSeconds& seconds) {
  const ExchangeSpec& spec = job.spec;
  const double steps = double(StepsOfRound(spec)), c = seconds.step, b = seconds.backward;
  const auto on_link = [&](int64_t bytes) {
    return link.bytes_per_s > 0 ? double(bytes) / link.bytes_per_s : 0.0;
  };
  ExchangeCost cost;
  cost.spec = spec;
  double exposed = 0, longest = 0;
  std::vector<int64_t> round;  // bytes that each rank sends
  int64_t line = 0;
  for (const std::vector<TurnBytes>& turn : PlanTurns(config, job, pod)) {
    round.resize(turn.size());
    TurnBytes most;
    for (size_t rank = 0; rank < turn.size(); ++rank) {
      round[rank] += turn[rank].sent;
      cost.turn_bytes = std::max(cost.turn_bytes, turn[rank].sent);
      if (turn[rank].line > most.line) most = turn[rank];
    }
    line = std::max(line, most.line);
    const double T = on_link(most.line), l = link.latency_s;
    const double e = BehindBackward(most, job.layers, link.bytes_per_s, seconds) + 2 * l;
    longest = std::max(longest, T + l);
    switch (spec.mode) {
      case Mode::kExact:
        exposed += e;
        break;
      case Mode::kDelayed:
        exposed += std::max(Hidden(T, c), Hidden(e, c));
        break;
      case Mode::kDiLoCo:
        exposed += T + l;
        break;
      case Mode::kStreaming:
        exposed += Hidden(T + l, double(spec.tau) * c);
        break;
    }
  }
  cost.step_bytes = double(*std::max_element(round.begin(), round.end())) / steps;
  cost.turn_s = longest;
  cost.exposed_s = exposed / steps;
  if (c <= 0) return cost;
  cost.speed_up = double(job.meshes.size()) * c / (c + cost.exposed_s);
  const double behind = spec.mode == Mode::kExact     ? b
                        : spec.mode == Mode::kDelayed ? c
                        : spec.mode == Mode::kDiLoCo  ? kHidden * steps * c
                                                      : double(spec.tau) * c;
  if (behind > 0) cost.needed_bytes_per_s = double(line) / behind;
  if (spec.mode == Mode::kDiLoCo) {
    cost.least_every = std::max<int64_t>(1, int64_t(std::ceil(longest / (kHidden * c))));
  } else if (spec.mode == Mode::kStreaming) {
    cost.least_tau = int64_t(std::ceil(longest / c));
    cost.least_every = spec.fragments * (*cost.least_tau + 1);
  }
  return cost;
}

}  // namespace

ExchangeCost CostOf(const ModelConfig& config, const PlannedExchange& job, const PodLinkSpeed& link,
                    const StepSeconds& seconds) {
  ExchangeCost worst;
  for (int64_t pod = 0; pod < int64_t(job.meshes.size()); ++pod) {
    const ExchangeCost cost = CostOfPod(config, job, pod, link, seconds);
    if (pod == 0 || cost.exposed_s > worst.exposed_s ||
        (cost.exposed_s == worst.exposed_s && cost.turn_bytes > worst.turn_bytes)) {
      worst = cost;
    }
  }
  return worst;
}

std::optional<ExchangeCost> HiddenExchange(const ModelConfig& config, const PlannedExchange& job,
                                           const PodLinkSpeed& link, const StepSeconds& seconds) {
  constexpr int64_t kMostSteps = 10000;  // of a round, that anyone would try
  const auto hides = [&](const ExchangeSpec& spec) -> std::optional<ExchangeCost> {
    PlannedExchange changed = job;
    changed.spec = spec;
    const ExchangeCost cost = CostOf(config, changed, link, seconds);
    if (cost.exposed_s > kHidden * seconds.step || !Validate(spec).ok()) return std::nullopt;
    return cost;
  };
  if (const auto cost = hides(job.spec)) return cost;
  std::vector<ExchangeSpec> bases = {job.spec};  // with smaller codecs
  for (const Codec codec : {Codec::kBf16, Codec::kInt8}) {
    if (CodeBits(codec) >= CodeBits(job.spec.codec)) continue;
    bases.push_back(job.spec);
    bases.back().codec = codec;
    if (const auto cost = hides(bases.back())) return cost;
  }
  for (const Mode mode : {Mode::kDelayed, Mode::kStreaming, Mode::kDiLoCo}) {
    if (mode == Mode::kDelayed && !job.spec.gradients()) continue;
    for (ExchangeSpec spec : bases) {
      const bool same = spec.mode == mode;
      spec.mode = mode;
      if (mode == Mode::kStreaming && !same) {  // as a job's spec has them where it says nothing
        spec.fragments = std::min<int64_t>(4, job.layers);
        spec.alpha = 0.5;
        spec.outer_rate = 0.4;
      }
      if (mode != Mode::kDelayed) {
        if (!same) spec.every = std::max<int64_t>(100, spec.fragments);
        spec.tau = mode == Mode::kStreaming ? spec.tau : 0;
        PlannedExchange changed = job;
        changed.spec = spec;
        const ExchangeCost cost = CostOf(config, changed, link, seconds);
        if (cost.least_tau) spec.tau = std::max(spec.tau, *cost.least_tau);
        if (cost.least_every) spec.every = std::max(spec.every, *cost.least_every);
        if (mode == Mode::kStreaming)
          spec.every = std::max(spec.every, spec.fragments * (spec.tau + 1));
        if (spec.every > kMostSteps) continue;
      }
      if (const auto cost = hides(spec)) return cost;
    }
  }
  return std::nullopt;
}

}  // namespace toroid
