#include "tests/support/source_path.h"

namespace toroid {

std::string SourcePath(const std::string& relative) {
  return std::string(TOROID_SOURCE_DIR) + "/" + relative;
}

}  // namespace toroid
