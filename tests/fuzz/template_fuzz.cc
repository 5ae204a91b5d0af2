// libFuzzer target of the chat template engine: any bytes are a template. The limits are small, so
// that an input which takes long or much memory is a finding.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/text/template.h"

namespace {

toroid::TemplateValue::Dict Variables() {
  const auto value = toroid::TemplateValue::FromJson(
      R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hé"}],
          "tools": null, "bos_token": "<s>", "eos_token": "</s>", "n": 3, "f": 1.5,
          "l": [3, "a", null, [1]], "add_generation_prompt": true})");
  return value->dict();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* variables = new toroid::TemplateValue::Dict(Variables());
  const auto parsed =
      toroid::Template::Parse(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!parsed.ok()) return 0;
  toroid::TemplateLimits limits;
  limits.steps = 50000;
  limits.bytes = 1 << 20;
  limits.output_bytes = 1 << 18;
  (void)parsed->Render(*variables, {2024, 2, 29, 1, 2, 3}, limits);
  return 0;
}
