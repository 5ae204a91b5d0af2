// libFuzzer target of the tokenizer: any bytes are a tokenizer.json. One that loads must encode and
// decode without a crash, stream and whole decoding must agree.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "core/text/stream_decoder.h"
#include "core/text/tokenizer.h"
#include "core/text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tokenizer = toroid::Tokenizer::FromHuggingFace(
      std::string_view(reinterpret_cast<const char*>(data), size), R"({"eos_token": "a"})");
  if (!tokenizer.ok()) return 0;
  std::vector<int32_t> ids;
  for (std::string_view text : {"Hello 123 wörld", "<s>a  \n b", "\xF0\x9F\x98\x80\t"}) {
    const auto encoded = (*tokenizer)->Encode(text);
    if (encoded.ok()) ids.insert(ids.end(), encoded->begin(), encoded->end());
  }
  for (int32_t id = -1; id < 300; ++id) ids.push_back(id);
  const std::string whole = (*tokenizer)->Decode(ids);
  toroid::StreamDecoder decoder(tokenizer->get());
  std::string streamed;
  for (int32_t id : ids) streamed += decoder.Push(id);
  streamed += decoder.Finish();
  TOROID_CHECK(streamed == whole);
  TOROID_CHECK(toroid::IsValidUtf8(whole));
  return 0;
}
