// Jinja's tests: `x is defined` and its kin.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/text/template_interpreter.h"

namespace toroid {
namespace {

using Kind = TemplateValue::Kind;

constexpr std::string_view kTests[] = {
    "boolean", "callable", "defined",  "divisibleby", "eq",          "equalto",
    "even",    "false",    "float",    "ge",          "greaterthan", "gt",
    "in",      "integer",  "iterable", "le",          "lessthan",    "lower",
    "lt",      "mapping",  "ne",       "none",        "number",      "odd",
    "sameas",  "sequence", "string",   "true",        "undefined",   "upper",
    "==",      "!=",       "<",        "<=",          ">",           ">="};

}  // namespace

bool IsTemplateTest(std::string_view name) { return std::ranges::count(kTests, name) > 0; }

bool TemplateInterpreter::Test(const Node& node) {
  const Value input = Evaluate(*node.children[0]);
  const Arguments arguments = EvaluateArguments(node, 1);
  line_ = node.line;
  return ok() && ApplyTest(node.text, input, arguments);
}

bool TemplateInterpreter::ApplyTest(const std::string& name, const Value& input,
                                    const Arguments& arguments) {
  if (name == "defined") return !input.Is(Kind::kUndefined);
  if (name == "undefined") return input.Is(Kind::kUndefined);
  if (name == "none") return input.Is(Kind::kNone);
  if (name == "string") return input.Is(Kind::kString);
  if (name == "mapping") return input.Is(Kind::kDict);
  if (name == "iterable" || name == "sequence") {
    return input.IsSequence() || input.Is(Kind::kString) || input.Is(Kind::kDict) ||
           input.Is(Kind::kUndefined);
  }
  if (name == "number") return input.IsNumber();
  if (name == "integer") return input.Is(Kind::kInt);
  if (name == "float") return input.Is(Kind::kFloat);
  if (name == "boolean") return input.Is(Kind::kBool);
  if (name == "true") return input.Is(Kind::kBool) && input.boolean();
  if (name == "false") return input.Is(Kind::kBool) && !input.boolean();
  if (name == "callable") return input.Is(Kind::kCallable);
  if (name == "lower") return CallMethod("islower", MakeString(Str(input)), {}).Truth();
  if (name == "upper") return CallMethod("isupper", MakeString(Str(input)), {}).Truth();
  if (name == "odd" || name == "even") {
    const Value rest = Arithmetic("%", input, Value::Int(2));
    return ok() && (rest.number() == 1) == (name == "odd");
  }
  const Value* other = arguments.Get(0, "");
  if (other == nullptr) {
    Fail(absl::StrCat("the test '", name, "' wants a value"));
    return false;
  }
  if (name == "divisibleby") {
    const Value rest = Arithmetic("%", input, *other);
    return ok() && rest.number() == 0;
  }
  if (name == "in") return Contains(*other, input);
  if (name == "sameas") return input.kind() == other->kind() && Equal(input, *other);
  if (name == "eq" || name == "equalto" || name == "==") return Equal(input, *other);
  if (name == "ne" || name == "!=") return !Equal(input, *other);
  const int order = Compare(input, *other);
  if (name == "lt" || name == "lessthan" || name == "<") return order < 0;
  if (name == "le" || name == "<=") return order <= 0;
  if (name == "gt" || name == "greaterthan" || name == ">") return order > 0;
  return order >= 0;
}

}  // namespace toroid
