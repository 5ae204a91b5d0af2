// A sandboxed subset of Jinja2, enough for chat templates, rendering byte for byte as jinja2 does
// with the settings of transformers: trim_blocks, lstrip_blocks, loop controls, tojson without
// escapes, raise_exception, strftime_now.
//
// Templates come with models, so they are hostile: there is no I/O, no clock (the caller gives the
// time), no way to change a value of the caller, and work, memory, output and depth are bounded.
// Missing from Jinja: inheritance, includes, imports, call blocks, recursive loops, big integers,
// str.format. Each is refused by name and line.
// A Template is immutable and thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "core/text/template_value.h"

namespace toroid {

struct TemplateTree;

struct TemplateLimits {
  int64_t steps = 5'000'000;       // nodes evaluated, items visited
  int64_t bytes = 256'000'000;     // of all texts made on the way
  size_t output_bytes = 64 << 20;  // of one text
};

struct TemplateTime {
  int year = 1970, month = 1, day = 1, hour = 0, minute = 0, second = 0;
};

class Template {
 public:
  // InvalidArgument or Unimplemented, naming the line and the construct.
  static absl::StatusOr<Template> Parse(std::string_view source);

  // `variables` are the names the template sees; `now` is what strftime_now formats.
  // InvalidArgument: the template fails on these values (raise_exception, an undefined value used),
  // with its line. ResourceExhausted: beyond a limit.
  absl::StatusOr<std::string> Render(const TemplateValue::Dict& variables,
                                     const TemplateTime& now = {},
                                     const TemplateLimits& limits = {}) const;

 private:
  explicit Template(std::shared_ptr<const TemplateTree> tree) : tree_(std::move(tree)) {}
  std::shared_ptr<const TemplateTree> tree_;
};

}  // namespace toroid
