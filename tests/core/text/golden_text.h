// Reads tests/golden/text: the small tokenizers and what `tokenizers` and jinja2 make of texts.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/source_path.h"

namespace toroid {

// The bytes of tests/golden/text/NAME; a test failure if it is missing.
inline std::string ReadTextGolden(const std::string& name) {
  std::ifstream file(SourcePath("tests/golden/text/" + name), std::ios::binary);
  EXPECT_TRUE(file.good()) << "tests/golden/text/" << name << " cannot be read";
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline nlohmann::json ReadTextGoldenJson(const std::string& name) {
  return nlohmann::json::parse(ReadTextGolden(name));
}

}  // namespace toroid
