// toroid: one binary, one verb per file. verbs.cc has the table.
#include "launcher/verbs.h"

int main(int argc, char** argv) {
  return toroid::RunToroid(std::vector<std::string>(argv + 1, argv + argc));
}
