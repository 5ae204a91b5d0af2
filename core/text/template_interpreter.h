// Evaluates a TemplateTree. After the first error nothing more is evaluated: functions return
// undefined and callers need not check, except in loops. Used by Template::Render only; one thread.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "core/text/template.h"
#include "core/text/template_parser.h"
#include "core/text/template_value.h"

namespace toroid {

class TemplateInterpreter {
 public:
  using Value = TemplateValue;
  using Node = TemplateNode;
  using Body = std::vector<const Node*>;

  TemplateInterpreter(const TemplateTree& tree, const Value::Dict& variables,
                      const TemplateTime& now, const TemplateLimits& limits);
  absl::StatusOr<std::string> Run();

 private:
  static constexpr int kMaxDepth = 600;  // of evaluation, macros included
  enum class Flow { kNext, kBreak, kContinue };
  using Frame = absl::flat_hash_map<std::string, Value>;

  // The arguments of a call, positional ones first.
  struct Arguments {
    std::vector<Value> positional;
    std::vector<std::pair<std::string, Value>> named;
    // Argument `position`, or the one called `name`; null if neither is given.
    const Value* Get(size_t position, std::string_view name) const;
    // It is given and true.
    bool IsTrue(size_t position, std::string_view name) const;
  };

  bool ok() const { return status_.ok(); }
  Value Fail(std::string what);
  // Counts work; false once a limit is passed.
  bool Spend(int64_t steps, size_t bytes = 0);
  Value MakeString(std::string text);
  Value MakeList(Value::List list);
  Value MakeTuple(Value::List list);
  Value MakeDict(Value::Dict dict);
  std::string Str(const Value& value);
  bool Equal(const Value& a, const Value& b);
  // Fails if the two have no order.
  int Compare(const Value& a, const Value& b);

  // template_execute.cc
  Flow Execute(const Body& body);
  Flow ExecuteOne(const Node& node);
  Flow If(const Node& node);
  Flow For(const Node& node);
  Flow RunLoop(const Node& node, const Value::List& items);
  void SetStatement(const Node& node);
  void Assign(const Node& target, Value value);
  Flow With(const Node& node);
  std::string Capture(const Body& body, Flow* flow);
  void Emit(std::string_view text);
  Value CallMacro(const Node& macro, const Arguments& arguments);

  // template_evaluate.cc
  Value Evaluate(const Node& node);
  Value EvaluateInner(const Node& node);
  Value Lookup(const std::string& name);
  Value DictLiteral(const Node& node);
  Value Attribute(const Value& object, const std::string& name);
  Value Item(const Value& object, const Value& key);
  Value Slice(const Node& node);
  // The items of what can be iterated. Fails for what cannot.
  Value::List Iterate(const Value& value);

  // template_operators.cc
  Value Binary(const Node& node);
  Value Add(const Value& a, const Value& b);
  Value Multiply(const Value& a, const Value& b);
  Value Arithmetic(std::string_view op, const Value& a, const Value& b);
  Value IntegerArithmetic(std::string_view op, int64_t a, int64_t b);
  Value Concat(const Node& node);
  Value Comparison(const Node& node);
  bool CompareOnce(const std::string& op, const Value& a, const Value& b);
  bool Contains(const Value& container, const Value& item);

  // template_calls.cc
  Arguments EvaluateArguments(const Node& node, size_t first);
  Value Call(const Node& node);
  Value CallValue(const Value& callee, const Arguments& arguments);
  Value CallGlobal(const std::string& name, const Arguments& arguments);
  Value Range(const Arguments& arguments);
  Value CallLoop(const std::string& name, const Value& self, const Arguments& arguments);
  std::string FormatTime(const std::string& format);

  // template_filters.cc
  Value Filter(const Node& node);
  Value ApplyFilter(const std::string& name, const Value& input, const Arguments& arguments);
  Value Length(const Value& input);
  Value NumberFilter(const std::string& name, const Value& input, const Arguments& arguments);
  Value ToJson(const Value& input, const Arguments& arguments);
  Value Indent(const Value& input, const Arguments& arguments);
  Value ByPath(const Value& value, const Value& path);

  // template_list_filters.cc
  Value ListFilter(const std::string& name, const Value& input, const Arguments& arguments);
  Value Map(const Value& input, const Arguments& arguments);
  Value Select(const Value& input, const Arguments& arguments, bool by_attribute, bool keep);
  int CompareFolded(const Value& a, const Value& b);
  Value Sort(const Value& input, const Arguments& arguments);
  Value SortItems(Value::List items, const Value& attribute, bool reverse, bool case_sensitive);

  // template_is_tests.cc
  bool Test(const Node& node);
  bool ApplyTest(const std::string& name, const Value& input, const Arguments& arguments);

  // template_methods.cc
  bool HasMethod(const Value& object, std::string_view name) const;
  Value CallMethod(const std::string& name, const Value& self, const Arguments& arguments);
  Value StringMethod(const std::string& name, const std::string& self, const Arguments& arguments);
  Value DictMethod(const std::string& name, const Value& self, const Arguments& arguments);
  Value Split(const std::string& self, const Arguments& arguments, bool from_right);
  Value Replace(const std::string& self, const Arguments& arguments);

  const TemplateTree& tree_;
  const Value::Dict& variables_;
  const TemplateTime now_;
  const TemplateLimits limits_;
  TemplateBudget budget_;
  absl::Status status_;
  int line_ = 1;
  int depth_ = 0;
  std::vector<Frame> frames_;
  size_t base_ = 0;  // frames below it, but for the first, are not seen: we are in a macro
  std::string* out_ = nullptr;
};

}  // namespace toroid
