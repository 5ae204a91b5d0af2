// Any text as manifest.json, with the hash in its first line made right: what is accepted covers
// every parameter once and is written and read again as it is.
#include <cstddef>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "core/io/checkpoint_directory.h"
#include "core/io/checkpoint_manifest.h"
#include "core/io/fingerprint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace toroid;
  const absl::string_view rest(reinterpret_cast<const char*>(data), size);
  CheckpointEntry entry;
  (void)ParseCheckpointName(rest, entry);
  (void)CheckpointManifest::Parse(rest, "f");
  FingerprintHash hash;
  hash.Text(rest);
  const std::string text =
      absl::StrCat("{\"hash\":\"", absl::Hex(hash.value(), absl::kZeroPad16), "\",\n", rest);
  const auto manifest = CheckpointManifest::Parse(text, "f");
  if (!manifest.ok()) return 0;
  if (!CoversOnce(manifest->parameters, manifest->shards).ok()) __builtin_trap();
  const std::string written = manifest->ToText();
  const auto again = CheckpointManifest::Parse(written, "f");
  if (!again.ok() || again->ToText() != written) __builtin_trap();
  return 0;
}
