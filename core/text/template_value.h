// The values of a template: Python's, as far as chat templates see them, with Python's rules of
// truth, equality, order and printing. Values are immutable and cheap to copy (shared), except the
// namespace, which only {% set ns.x = ... %} changes; so no cycle can be built.
// Not thread-safe to share while a template that holds a namespace is rendered.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

namespace toroid {

class TemplateValue {
 public:
  enum class Kind {
    kUndefined,
    kNone,
    kBool,
    kInt,
    kFloat,
    kString,
    kList,
    kTuple,
    kDict,
    kNamespace,
    kCallable
  };
  using List = std::vector<TemplateValue>;
  // Keeps the order of insertion.
  struct Dict {
    std::vector<std::pair<TemplateValue, TemplateValue>> items;
    absl::flat_hash_map<std::string, size_t> index;  // DictKey -> items

    void Set(const TemplateValue& key, TemplateValue value);
    void Set(std::string_view key, TemplateValue value);
    const TemplateValue* Find(const TemplateValue& key) const;
    const TemplateValue* Find(std::string_view key) const;
  };
  // What a callable is, is the interpreter's business: a macro, a global or a bound method.
  struct Callable {
    std::string name;
    int32_t macro = -1;                         // index of the macro in its template
    std::shared_ptr<const TemplateValue> self;  // of a method
  };

  TemplateValue() = default;  // undefined
  static TemplateValue Undefined(std::string name);
  static TemplateValue None();
  static TemplateValue Bool(bool b);
  static TemplateValue Int(int64_t i);
  static TemplateValue Float(double d);
  static TemplateValue String(std::string s);
  static TemplateValue MakeList(List list);
  static TemplateValue MakeTuple(List list);
  static TemplateValue MakeDict(Dict dict);
  static TemplateValue MakeNamespace();
  static TemplateValue MakeCallable(Callable callable);
  // InvalidArgument if `json` is not JSON or nested more than 64 deep.
  static absl::StatusOr<TemplateValue> FromJson(std::string_view json);

  Kind kind() const { return kind_; }
  bool Is(Kind kind) const { return kind_ == kind; }
  bool IsSequence() const { return kind_ == Kind::kList || kind_ == Kind::kTuple; }
  bool IsNumber() const {
    return kind_ == Kind::kBool || kind_ == Kind::kInt || kind_ == Kind::kFloat;
  }

  // REQUIRES the kind.
  bool boolean() const { return int_ != 0; }
  int64_t integer() const { return int_; }  // of kBool too
  double number() const { return kind_ == Kind::kFloat ? float_ : static_cast<double>(int_); }
  const std::string& string() const { return *std::get<std::shared_ptr<const std::string>>(data_); }
  const List& list() const { return *std::get<std::shared_ptr<const List>>(data_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<Dict>>(data_); }
  Dict& mutable_namespace() const { return *std::get<std::shared_ptr<Dict>>(data_); }
  const Callable& callable() const { return *std::get<std::shared_ptr<const Callable>>(data_); }
  const std::string& undefined_name() const;

  // How deep containers are nested: 0 for scalars.
  int depth() const { return depth_; }
  // Python's bool(x).
  bool Truth() const;
  // The name of the Python type.
  std::string_view TypeName() const;

 private:
  using Data =
      std::variant<std::monostate, std::shared_ptr<const std::string>, std::shared_ptr<const List>,
                   std::shared_ptr<Dict>, std::shared_ptr<const Callable>>;
  Kind kind_ = Kind::kUndefined;
  int32_t depth_ = 0;
  int64_t int_ = 0;
  double float_ = 0;
  Data data_;
};

// Bounds the work of walking values: a small value can share its parts into an exponential one.
struct TemplateBudget {
  int64_t steps;
  int64_t bytes;
  bool Step(int64_t n = 1) { return (steps -= n) >= 0; }
  bool Bytes(size_t n) { return (bytes -= static_cast<int64_t>(n)) >= 0; }
  bool exhausted() const { return steps < 0 || bytes < 0; }
};

// str(x) and repr(x). Once the budget is exhausted the text is cut short.
std::string TemplateStr(const TemplateValue& value, TemplateBudget* budget);
std::string TemplateRepr(const TemplateValue& value, TemplateBudget* budget);
// json.dumps(x, ensure_ascii=False). indent < 0: one line. False if something in it has no JSON.
bool TemplateJson(const TemplateValue& value, int indent, bool sort_keys, TemplateBudget* budget,
                  std::string* out);
bool TemplateEqual(const TemplateValue& a, const TemplateValue& b, TemplateBudget* budget);
// -1, 0, 1; false if Python has no order for the two.
bool TemplateCompare(const TemplateValue& a, const TemplateValue& b, TemplateBudget* budget,
                     int* order);

}  // namespace toroid
