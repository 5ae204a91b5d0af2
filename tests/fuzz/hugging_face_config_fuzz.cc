// Any text as config.json: what is accepted must be a valid configuration whose frequencies are
// finite.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/io/hugging_face_config.h"
#include "core/model/rope.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace toroid;
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  (void)HuggingFaceGeneration(text, "f");
  const auto config = HuggingFaceConfig(text, "f");
  if (!config.ok()) return 0;
  if (!config->Validate().ok()) __builtin_trap();
  for (const double frequency : Rope(*config, config->context).inv_freq) {
    if (!std::isfinite(frequency)) __builtin_trap();
  }
  return 0;
}
