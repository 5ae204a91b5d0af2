// A batch for runs that are timed, weighed or compared with themselves: nothing to learn in it.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

#include "parallel/trainer.h"
#include "tests/support/engine_on_mesh.h"

namespace toroid {

// Packs of documents of these lengths; each pack is MixedIds cut into its documents.
inline TrainBatch MixedBatch(const std::vector<std::vector<int64_t>>& documents, int64_t vocab) {
  TrainBatch batch;
  batch.documents = documents;
  batch.read = [documents, vocab](int64_t p) -> absl::StatusOr<Pack> {
    Pack pack;
    pack.document_lengths = documents[size_t(p)];
    const auto& lengths = pack.document_lengths;
    pack.ids = MixedIds(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}), vocab);
    pack.labels.assign(pack.ids.begin() + 1, pack.ids.end());
    pack.labels.push_back(-1);
    int64_t end = 0;
    for (const int64_t length : lengths) pack.labels[size_t((end += length) - 1)] = -1;
    return pack;
  };
  return batch;
}

}  // namespace toroid
