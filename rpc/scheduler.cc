#include "rpc/scheduler.h"

#include <algorithm>
#include <tuple>

namespace toroid {
namespace {

bool Has(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Takes part in any case.
bool Named(const Waiting& item, const std::string& name) {
  return (!item.any_pod && item.pod_meshes.count(name) > 0) || Has(item.must, name);
}

size_t CountNamed(const Waiting& item) {
  size_t named = item.any_pod ? 0 : item.pod_meshes.size();
  for (const std::string& name : item.must) {
    named += item.any_pod || item.pod_meshes.count(name) == 0;
  }
  return named;
}

// Smaller is better: named; preferred; free, ending, idle for longest; then the tightest fit, the
// name.
auto Cost(const PodView& pod, const Waiting& item) {
  const int kind = pod.state == PodView::State::kFree     ? 0
                   : pod.state == PodView::State::kEnding ? 1
                                                          : 2;
  const absl::Time idle = kind == 2 ? pod.idle_since : absl::InfinitePast();
  return std::make_tuple(!Named(item, pod.name), pod.name != item.prefers, kind, idle, pod.slots,
                         pod.name);
}

}  // namespace

std::vector<Assignment> Schedule(const std::vector<PodView>& pods, std::vector<Waiting> waiting) {
  std::stable_sort(waiting.begin(), waiting.end(), [](const Waiting& a, const Waiting& b) {
    return a.priority != b.priority ? a.priority > b.priority : a.order < b.order;
  });
  std::vector<bool> taken(pods.size(), false);
  std::vector<Assignment> out;
  for (const Waiting& item : waiting) {
    const size_t wanted = static_cast<size_t>(item.pods);
    const size_t least = item.least == 0 ? wanted : static_cast<size_t>(item.least);
    const size_t must = CountNamed(item);
    std::vector<size_t> fit;
    size_t able = 0, named = 0;  // those that are busy or taken included
    for (size_t i = 0; i < pods.size(); ++i) {
      const PodView& pod = pods[i];
      if (pod.state == PodView::State::kClosed || (!item.pod.empty() && item.pod != pod.name) ||
          (!item.among.empty() && !Has(item.among, pod.name)) ||
          !ResolveMesh(MeshOn(pod.name, item.mesh, item.pod_meshes), pod.slots).ok()) {
        continue;
      }
      ++able;
      named += Named(item, pod.name);
      if (!taken[i] && pod.state != PodView::State::kBusy) fit.push_back(i);
    }
    if (able < least || named < must || must > wanted) continue;
    std::sort(fit.begin(), fit.end(),
              [&](size_t a, size_t b) { return Cost(pods[a], item) < Cost(pods[b], item); });
    // Those that are not named leave room for the named ones that are not free yet.
    const auto others =
        std::find_if(fit.begin(), fit.end(), [&](size_t i) { return !Named(item, pods[i].name); });
    const size_t room = size_t(others - fit.begin()) + wanted - must;
    fit.resize(std::min(fit.size(), room));
    using State = PodView::State;
    size_t free = 0, free_named = 0;
    for (const size_t i : fit) {
      if (pods[i].state != State::kFree) continue;
      ++free;
      free_named += Named(item, pods[i].name);
    }
    const bool starts = free >= least && free_named == must;
    for (const size_t i : fit) {
      taken[i] = true;
      using Action = Assignment::Action;
      out.push_back({item.key, pods[i].name,
                     pods[i].state == State::kIdleKept         ? Action::kEvict
                     : starts && pods[i].state == State::kFree ? Action::kStart
                                                               : Action::kWait});
    }
  }
  return out;
}

}  // namespace toroid
