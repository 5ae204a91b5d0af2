#include "core/text/json_scan.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace toroid {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 32;

// SAX handler. `where_` says whether we are in one of the two tables; elsewhere the tree grows.
class Scanner : public nlohmann::json_sax<json> {
 public:
  explicit Scanner(size_t input_size) : values_left_(4096 + input_size / 8) {}

  absl::StatusOr<ScannedTokenizer> Take(bool ok) {
    if (!ok) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.json: ", error_.empty() ? "not valid JSON" : error_));
    }
    if (!out_.rest.is_object()) {
      return absl::InvalidArgumentError("tokenizer.json is not a JSON object");
    }
    return std::move(out_);
  }

  bool null() override { return Value(nullptr); }
  bool boolean(bool v) override { return Value(v); }
  bool number_integer(int64_t v) override { return where_ == kVocabulary ? AddToken(v) : Value(v); }
  bool number_unsigned(uint64_t v) override {
    if (where_ != kVocabulary) return Value(v);
    return AddToken(v > std::numeric_limits<int32_t>::max() ? -1 : static_cast<int64_t>(v));
  }
  bool number_float(double v, const std::string&) override { return Value(v); }
  bool binary(json::binary_t&) override { return Fail("binary data"); }
  bool string(std::string& v) override {
    if (where_ == kMerges) return AddOldMerge(v);
    if (where_ == kPair) return AddPart(v);
    return Value(std::move(v));
  }
  bool key(std::string& v) override {
    key_ = std::move(v);
    return true;
  }

  bool start_object(size_t) override {
    if (where_ != kTree) return Fail("a table of the model holds an object");
    if (InModel() && key_ == "vocab") {
      if (std::exchange(out_.has_vocabulary, true)) return Fail("model.vocab is there twice");
      where_ = kVocabulary;
      return true;
    }
    return Open(json::object());
  }
  bool end_object() override {
    if (where_ == kVocabulary) {
      where_ = kTree;
    } else {
      Close();
    }
    return true;
  }
  bool start_array(size_t) override {
    if (where_ == kTree && InModel() && key_ == "merges") {
      if (std::exchange(out_.has_merges, true)) return Fail("model.merges is there twice");
      where_ = kMerges;
      return true;
    }
    if (where_ == kMerges) {
      where_ = kPair;
      parts_ = 0;
      return true;
    }
    if (where_ != kTree) return Fail("a table of the model holds an array");
    return Open(json::array());
  }
  bool end_array() override {
    if (where_ == kPair) {
      if (parts_ != 2) return Fail("a merge is not a pair");
      where_ = kMerges;
    } else if (where_ == kMerges) {
      where_ = kTree;
    } else {
      Close();
    }
    return true;
  }
  bool parse_error(size_t at, const std::string&, const json::exception&) override {
    return Fail(absl::StrCat("not valid JSON near byte ", at));
  }

 private:
  enum Where { kTree, kVocabulary, kMerges, kPair };

  bool Fail(std::string what) {
    if (error_.empty()) error_ = std::move(what);
    return false;
  }
  // The open containers are the document and its "model".
  bool InModel() const { return stack_.size() == 2 && model_open_; }

  // Puts a value into the tree, returning where it lies; null on failure.
  json* Put(json value) {
    if (values_left_ == 0) {
      Fail("too many values for its size");
      return nullptr;
    }
    --values_left_;
    if (stack_.empty()) {
      out_.rest = std::move(value);
      return &out_.rest;
    }
    json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }
  bool Value(json value) {
    if (where_ != kTree) return Fail("a table of the model holds a value of a wrong type");
    return Put(std::move(value)) != nullptr;
  }
  bool Open(json container) {
    if (stack_.size() >= kMaxDepth) return Fail("nested too deeply");
    if (stack_.size() == 1) model_open_ = container.is_object() && key_ == "model";
    json* placed = Put(std::move(container));
    if (placed == nullptr) return false;
    stack_.push_back(placed);
    return true;
  }
  void Close() {
    stack_.pop_back();
    if (stack_.size() < 2) model_open_ = false;
  }

  bool Append(std::string_view text) {
    if (out_.texts.size() + text.size() > std::numeric_limits<uint32_t>::max()) {
      return Fail("more than 4 GiB of tokens");
    }
    out_.texts.append(text);
    return true;
  }
  bool AddToken(int64_t id) {
    const auto begin = static_cast<uint32_t>(out_.texts.size());
    if (!Append(key_)) return false;
    out_.vocabulary.push_back({begin, static_cast<uint32_t>(key_.size()), id});
    return true;
  }
  bool AddOldMerge(const std::string& text) {
    if (text.compare(0, 8, "#version") == 0) return true;
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      return Fail(absl::StrCat("the merge ", out_.merges.size(), " is not two tokens"));
    }
    const auto begin = static_cast<uint32_t>(out_.texts.size());
    if (!Append(std::string_view(text).substr(0, space))) return false;
    if (!Append(std::string_view(text).substr(space + 1))) return false;
    out_.merges.push_back(
        {begin, static_cast<uint32_t>(space), static_cast<uint32_t>(text.size() - space - 1)});
    return true;
  }
  bool AddPart(const std::string& text) {
    if (parts_ == 2) return Fail("a merge is not a pair");
    if (parts_ == 0) {
      out_.merges.push_back({static_cast<uint32_t>(out_.texts.size()), 0, 0});
    }
    auto& merge = out_.merges.back();
    (parts_++ == 0 ? merge.left_length : merge.right_length) = static_cast<uint32_t>(text.size());
    return Append(text);
  }

  ScannedTokenizer out_;
  Where where_ = kTree;
  std::vector<json*> stack_;  // open containers of the tree
  std::string key_;
  std::string error_;
  bool model_open_ = false;
  int parts_ = 0;
  size_t values_left_;
};

}  // namespace

absl::StatusOr<ScannedTokenizer> ScanTokenizerJson(std::string_view text) {
  Scanner scanner(text.size());
  const bool ok = json::sax_parse(text.begin(), text.end(), &scanner);
  return scanner.Take(ok);
}

}  // namespace toroid
