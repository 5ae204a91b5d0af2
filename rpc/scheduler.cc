#include "rpc/scheduler.h"

#include <algorithm>
#include <tuple>

namespace toroid {
namespace {

// Smaller is better: free, ending, idle for longest; then the tightest fit, then the name.
auto Cost(const PodView& pod) {
  const int kind = pod.state == PodView::State::kFree     ? 0
                   : pod.state == PodView::State::kEnding ? 1
                                                          : 2;
  const absl::Time idle = kind == 2 ? pod.idle_since : absl::InfinitePast();
  return std::make_tuple(kind, idle, pod.slots, pod.name);
}

}  // namespace

std::vector<Assignment> Schedule(const std::vector<PodView>& pods, std::vector<Waiting> waiting) {
  std::sort(waiting.begin(), waiting.end(), [](const Waiting& a, const Waiting& b) {
    return a.priority != b.priority ? a.priority > b.priority : a.order < b.order;
  });
  std::vector<bool> taken(pods.size(), false);
  std::vector<Assignment> out;
  for (const Waiting& item : waiting) {
    size_t best = pods.size();
    for (size_t i = 0; i < pods.size(); ++i) {
      const PodView& pod = pods[i];
      if (taken[i] || pod.state == PodView::State::kBusy || pod.state == PodView::State::kClosed ||
          (!item.pod.empty() && item.pod != pod.name) || !ResolveMesh(item.mesh, pod.slots).ok()) {
        continue;
      }
      if (best == pods.size() || Cost(pod) < Cost(pods[best])) best = i;
    }
    if (best == pods.size()) continue;
    taken[best] = true;
    using Action = Assignment::Action;
    const PodView::State state = pods[best].state;
    out.push_back({item.key, pods[best].name,
                   state == PodView::State::kFree       ? Action::kStart
                   : state == PodView::State::kIdleKept ? Action::kEvict
                                                        : Action::kWait});
  }
  return out;
}

}  // namespace toroid
