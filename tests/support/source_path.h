// Where the checkout lies that a test was built from. One file knows, so that the objects of all
// others are those of any other checkout.
#pragma once

#include <string>

namespace toroid {

// SourcePath("tests/golden/rope.json"): absolute.
std::string SourcePath(const std::string& relative);

}  // namespace toroid
