#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/philox.h"
#include "kernels/sample.h"

namespace toroid {

namespace {

using Candidate = SampleRoom::Candidate;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLargestLogit = 1e300;  // beyond any float; penalties cannot make it infinite

// Falling z; among equals ascending id.
constexpr auto kBefore = [](const Candidate& a, const Candidate& b) {
  return a.z != b.z ? a.z > b.z : a.id < b.id;
};
constexpr auto kById = [](const Candidate& a, const Candidate& b) { return a.id < b.id; };

SampledRow Greedy(const std::vector<double>& logits) {
  SampledRow best;
  double first = logits[0], second = -kInfinity;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > first) {
      second = first;
      first = logits[i];
      best.id = int64_t(i);
    } else {
      second = std::max(second, logits[i]);
    }
  }
  best.margin = first - second;
  return best;
}

void KeepTopK(int64_t top_k, std::vector<Candidate>& candidates) {
  const auto end = candidates.begin() + top_k;
  std::nth_element(candidates.begin(), end, candidates.end(), kBefore);
  candidates.erase(end, candidates.end());
  std::sort(candidates.begin(), candidates.end(), kById);
}

// Halves the undecided range until nothing is undecided: linear time, where sorting would not be.
void KeepTopP(double top_p, std::vector<Candidate>& candidates) {
  double total = 0;
  for (const Candidate& c : candidates) total += c.weight;
  // Ids lighter than this weigh together less than (1 - top_p) total: none can stay.
  const double least = (1 - top_p) * total / double(candidates.size());
  std::erase_if(candidates, [&](const Candidate& c) { return c.weight < least; });
  // All before `begin`, whose mass is `mass`, stay; all from `end` on go.
  auto begin = candidates.begin(), end = candidates.end();
  double mass = 0;
  while (begin != end) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, kBefore);
    double half = 0;
    for (auto c = begin; c != middle; ++c) half += c->weight;
    if (mass + half >= top_p * total) {
      end = middle;
    } else {
      mass += half + middle->weight;
      begin = middle + 1;
    }
  }
  candidates.erase(end, candidates.end());
  std::sort(candidates.begin(), candidates.end(), kById);
}

SampledRow Draw(const SampleRow& row, SampleRoom& room) {
  const int64_t vocab = int64_t(room.logits.size());
  std::vector<Candidate>& candidates = room.candidates;
  // Relative to the largest before dividing: no temperature, however small, can overflow.
  const double largest = *std::max_element(room.logits.begin(), room.logits.end());
  candidates.clear();
  candidates.reserve(room.logits.size());
  for (int64_t i = 0; i < vocab; ++i) {
    candidates.push_back({int32_t(i), (room.logits[i] - largest) / row.temperature, 0});
  }
  if (row.top_k > 0 && row.top_k < vocab) KeepTopK(row.top_k, candidates);
  for (Candidate& c : candidates) c.weight = std::exp(c.z);
  if (row.top_p < 1) KeepTopP(row.top_p, candidates);
  // The largest weight is 1: e^0.
  std::erase_if(candidates, [&](const Candidate& c) { return c.weight < row.min_p; });

  double total = 0;
  for (const Candidate& c : candidates) total += c.weight;
  const double u = UniformDouble(Philox(row.seed, uint64_t(row.position), row.sequence));
  double edge = 0;
  size_t chosen = 0;
  while (chosen + 1 < candidates.size() && edge + candidates[chosen].weight <= u * total) {
    edge += candidates[chosen++].weight;
  }
  const bool first = chosen == 0, last = chosen + 1 == candidates.size();
  const double below = first ? kInfinity : u - edge / total;
  const double above = last ? kInfinity : (edge + candidates[chosen].weight) / total - u;
  return {candidates[chosen].id, 0, std::min(below, above)};
}

}  // namespace

template <typename T>
int64_t ReadLogits(const T* logits, int64_t vocab, SampleRoom& room, double* log_z) {
  room.logits.resize(size_t(vocab));
  double largest = -kInfinity;
  for (int64_t i = 0; i < vocab; ++i) {
    const double l = logits[i];
    if (!(std::abs(l) <= kLargestLogit)) return i;
    room.logits[i] = l;
    largest = std::max(largest, l);
  }
  double sum = 0;
  for (double l : room.logits) sum += std::exp(l - largest);
  *log_z = largest + std::log(sum);
  return -1;
}
template int64_t ReadLogits(const float*, int64_t, SampleRoom&, double*);
template int64_t ReadLogits(const double*, int64_t, SampleRoom&, double*);

SampledRow Choose(const SampleRow& row, SampleRoom& room) {
  return row.temperature == 0 ? Greedy(room.logits) : Draw(row, room);
}

template <typename T>
void Sample(const T* logits, int64_t stride, int64_t rows, int64_t vocab, const SampleRow* params,
            SampleRoom& room, SampledRow* out) {
  for (int64_t i = 0; i < rows; ++i, logits += stride) {
    double log_z = 0;
    const int64_t broken = ReadLogits(logits, vocab, room, &log_z);
    if (broken >= 0) {
      out[i] = {-1 - broken, double(logits[broken]), 0};
    } else {
      out[i] = Choose(params[i], room);
      out[i].log_p = double(logits[out[i].id]) - log_z;
    }
  }
}
template void Sample(const float*, int64_t, int64_t, int64_t, const SampleRow*, SampleRoom&,
                     SampledRow*);
template void Sample(const double*, int64_t, int64_t, int64_t, const SampleRow*, SampleRoom&,
                     SampledRow*);

}  // namespace toroid
