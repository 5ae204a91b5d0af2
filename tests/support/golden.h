// Reads what tests/golden/make_*.py wrote: the numbers of an oracle that is not ours.
//
// A golden NAME is tests/golden/models/NAME.json and, if it has arrays, NAME.bin beside it. What
// each golden holds is told in tests/golden/README.md. A file that is missing or does not fit its
// table ends the test program with a line that names it. Immutable after loading: any thread may
// read it.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace toroid {

class Golden {
 public:
  // `name` is relative to tests/golden/models, without suffix: "llama/expected", "smollm2/score".
  static Golden Load(const std::string& name);

  // The fields of NAME.json: golden["mean_nll"].get<double>().
  const nlohmann::json& operator[](const std::string& field) const;
  // A field that is a list of token ids.
  std::vector<int32_t> Ids(const std::string& field) const;

  // An array of NAME.bin, row-major. Float32 arrays are widened exactly.
  std::vector<double> Array(const std::string& name) const;
  std::vector<int64_t> Shape(const std::string& name) const;

 private:
  std::string path_;  // without suffix
  nlohmann::json fields_;
  std::string bytes_;
};

// tests/golden/models/NAME: a model directory or file of the goldens.
std::string GoldenModelPath(const std::string& name);

// A model, and the golden that holds its ids and logits.
struct GoldenModel {
  std::string model, golden;
  bool gguf() const { return model.find("gguf/") == 0; }
  // Weights of another golden, read under another configuration.
  bool variant() const;
  // The model as the name of a test.
  std::string TestName() const;
};

void PrintTo(const GoldenModel& model, std::ostream* out);

// Every random model that has logits and that `wanted` takes, by name.
std::vector<GoldenModel> GoldenModels(bool (*wanted)(const GoldenModel&) = nullptr);

}  // namespace toroid
