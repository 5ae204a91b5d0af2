// Cuts a Jinja template into tokens, with the white space rules of trim_blocks and lstrip_blocks
// (both on, as transformers sets them), "-" and "+" at tags, {% raw %} and comments.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace toroid {

struct TemplateToken {
  enum Kind {
    kText,      // outside of tags
    kPrint,     // {{
    kPrintEnd,  // }}
    kBlock,     // {%
    kBlockEnd,  // %}
    kName,
    kString,
    kInt,
    kFloat,
    kOperator,
    kEnd
  } kind = kEnd;
  std::string text;  // decoded, for strings
  int line = 1;
};

// InvalidArgument naming the line.
absl::StatusOr<std::vector<TemplateToken>> LexTemplate(std::string_view source);

}  // namespace toroid
