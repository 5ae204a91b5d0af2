// What a GGUF file's name of its pre-tokenizer ("smollm", "llama-bpe") stands for.
#pragma once

#include <string_view>

namespace toroid {

struct GgufFamily {
  std::string_view name;
  std::string_view pattern;  // empty: GPT-2's own
  bool digits = false;       // digits one by one, before the pattern
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;  // unless the file says otherwise
};

// Null if there is none of this name.
const GgufFamily* FindGgufFamily(std::string_view name);

}  // namespace toroid
