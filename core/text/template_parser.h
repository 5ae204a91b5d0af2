// Jinja source -> tree. The tree lives in an arena, its depth is bounded, so no walk over it and no
// destructor can run out of stack. Immutable after parsing, hence thread-safe.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/text/template_value.h"

namespace toroid {

struct TemplateNode {
  enum Type {
    // Expressions; `children` in this order.
    kConstant,
    kName,       // text
    kList,       // items
    kTuple,      // items
    kDict,       // key, value, key, value ...
    kNot,        // operand
    kNegate,     // operand
    kPlus,       // operand
    kBinary,     // left, right; text: + - * / // % **
    kConcat,     // operands of ~
    kAnd,        // left, right
    kOr,         // left, right
    kCompare,    // a, b, c ...; names: the operators between them
    kCondition,  // test, value, otherwise (may be missing)
    kAttribute,  // object; text
    kItem,       // object, key
    kSlice,      // object, start, stop, step (constant None where missing)
    kCall,       // callee, arguments; names: per argument, empty if positional
    kFilter,     // input, arguments; text, names
    kTest,       // input, arguments; text, names
    // Statements; `bodies` hold statements.
    kText,         // text
    kPrint,        // expression
    kIf,           // tests; bodies: one per test, then perhaps the else
    kFor,          // target, iterable, filter (may be missing); bodies: loop, else
    kSet,          // target, value
    kSetBlock,     // target, filters' chain ending in a kName "" (may be missing); bodies: one
    kMacro,        // defaults of the last parameters; names: parameters; number; bodies: one
    kWith,         // target, value, target, value ...; bodies: one
    kFilterBlock,  // filters' chain ending in a kName ""; bodies: one
    kScope,        // bodies: one
    kBreak,
    kContinue
  } type = kConstant;
  int line = 0;
  int depth = 1;
  int number = 0;  // of a macro
  std::string text;
  TemplateValue constant;
  std::vector<const TemplateNode*> children;
  std::vector<std::string> names;
  std::vector<std::vector<const TemplateNode*>> bodies;
};

struct TemplateTree {
  std::vector<std::unique_ptr<TemplateNode>> arena;
  std::vector<const TemplateNode*> body;
  std::vector<const TemplateNode*> macros;
};

// InvalidArgument for what is not Jinja, Unimplemented for what is not in our subset; both name the
// line and the construct.
absl::StatusOr<TemplateTree> ParseTemplate(std::string_view source);

// Whether the interpreter knows a filter or test of this name.
bool IsTemplateFilter(std::string_view name);
bool IsTemplateTest(std::string_view name);

}  // namespace toroid
