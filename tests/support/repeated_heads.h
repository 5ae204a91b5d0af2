// A model and the same with more KV heads than it needs: what pooling has to bring back.
#pragma once

#include <cstdint>
#include <string>

namespace toroid {

// Writes the Hugging Face directory of `model` (OpenModel with `seed`) with `kv_heads` KV heads,
// each of its own repeated kv_heads / G times: it computes the same. REQUIRES: kv_heads is a
// multiple of G and divides the query heads.
void WriteWithRepeatedKvHeads(const std::string& model, uint64_t seed, int64_t kv_heads,
                              const std::string& directory);

}  // namespace toroid
