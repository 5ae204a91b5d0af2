#include "core/text/template_expression_parser.h"

#include <charconv>
#include <utility>

#include "absl/strings/str_cat.h"

namespace toroid {
namespace {

using Node = TemplateNode;

}  // namespace

const Node* TemplateExpressionParser::Tuple(bool with_condition) {
  Body items;
  bool comma = false;
  while (ok()) {
    if (comma && AtTupleEnd()) break;
    items.push_back(with_condition ? Expression() : Or());
    if (!Take(",")) break;
    comma = true;
  }
  if (!comma && !items.empty()) return items[0];
  return Make(Node::kTuple, std::move(items));
}

bool TemplateExpressionParser::AtTupleEnd() const {
  return Now().kind == Token::kPrintEnd || Now().kind == Token::kBlockEnd || IsOperator(")");
}

const Node* TemplateExpressionParser::Expression() {
  if (++nesting_ > kMaxNesting) return Fail("expressions are nested too deeply");
  const Node* value = Or();
  while (TakeName("if")) {
    const Node* test = Or();
    Body children = {test, value};
    if (TakeName("else")) children.push_back(Expression());
    value = Make(Node::kCondition, std::move(children));
  }
  --nesting_;
  return value;
}

const Node* TemplateExpressionParser::Or() {
  const Node* left = And();
  while (TakeName("or")) left = Make(Node::kOr, {left, And()});
  return left;
}

const Node* TemplateExpressionParser::And() {
  const Node* left = Not();
  while (TakeName("and")) left = Make(Node::kAnd, {left, Not()});
  return left;
}

const Node* TemplateExpressionParser::Not() {
  int count = 0;
  while (TakeName("not")) ++count;
  const Node* value = Compare();
  for (; count > 0 && ok(); --count) value = Make(Node::kNot, {value});
  return value;
}

const Node* TemplateExpressionParser::Compare() {
  const Node* left = Sum();
  Body operands = {left};
  std::vector<std::string> operators;
  while (ok()) {
    std::string op;
    if (Now().kind == Token::kOperator &&
        (Now().text == "==" || Now().text == "!=" || Now().text == "<" || Now().text == ">" ||
         Now().text == "<=" || Now().text == ">=")) {
      op = Now().text;
      Advance();
    } else if (IsName("in")) {
      op = "in";
      Advance();
    } else if (IsName("not") && Ahead().kind == Token::kName && Ahead().text == "in") {
      op = "not in";
      Advance();
      Advance();
    } else {
      break;
    }
    operators.push_back(std::move(op));
    operands.push_back(Sum());
  }
  if (operators.empty()) return left;
  Node* node = New(Node::kCompare);
  node->children = std::move(operands);
  node->names = std::move(operators);
  return Finish(node);
}

const Node* TemplateExpressionParser::Sum() {
  const Node* left = Concat();
  while (IsOperator("+") || IsOperator("-")) {
    std::string op = Now().text;
    Advance();
    const Node* right = Concat();
    left = Make(Node::kBinary, {left, right}, std::move(op));
  }
  return left;
}

const Node* TemplateExpressionParser::Concat() {
  Body operands = {Product()};
  while (Take("~")) operands.push_back(Product());
  return operands.size() == 1 ? operands[0] : Make(Node::kConcat, std::move(operands));
}

const Node* TemplateExpressionParser::Product() {
  const Node* left = Power();
  while (IsOperator("*") || IsOperator("/") || IsOperator("//") || IsOperator("%")) {
    std::string op = Now().text;
    Advance();
    const Node* right = Power();
    left = Make(Node::kBinary, {left, right}, std::move(op));
  }
  return left;
}

const Node* TemplateExpressionParser::Power() {
  const Node* left = Unary(true);
  while (Take("**")) {
    const Node* right = Unary(true);
    left = Make(Node::kBinary, {left, right}, "**");
  }
  return left;
}

const Node* TemplateExpressionParser::Unary(bool with_filters) {
  if (++nesting_ > kMaxNesting) return Fail("expressions are nested too deeply");
  const Node* value;
  if (Take("-")) {
    value = Make(Node::kNegate, {Unary(false)});
  } else if (Take("+")) {
    value = Make(Node::kPlus, {Unary(false)});
  } else {
    value = Primary();
  }
  value = Postfix(value);
  if (with_filters) value = Filters(value);
  --nesting_;
  return value;
}

const Node* TemplateExpressionParser::Primary() {
  const Token token = Now();
  switch (token.kind) {
    case Token::kName:
      Advance();
      if (token.text == "true" || token.text == "True") {
        return Constant(TemplateValue::Bool(true));
      }
      if (token.text == "false" || token.text == "False") {
        return Constant(TemplateValue::Bool(false));
      }
      if (token.text == "none" || token.text == "None") return Constant(TemplateValue::None());
      return Make(Node::kName, {}, token.text);
    case Token::kString: {
      std::string text;
      while (Now().kind == Token::kString) {
        text += Now().text;
        Advance();
      }
      return Constant(TemplateValue::String(std::move(text)));
    }
    case Token::kInt:
    case Token::kFloat:
      return Number(token);
    default:
      break;
  }
  if (Take("(")) {
    const Node* value = IsOperator(")") ? Make(Node::kTuple, {}) : Tuple(true);
    Expect(")");
    return value;
  }
  if (Take("[")) return ListLiteral();
  if (Take("{")) return DictLiteral();
  return Fail(absl::StrCat("expected an expression ", Found()));
}

const Node* TemplateExpressionParser::Number(const Token& token) {
  const char* begin = token.text.data();
  const char* end = begin + token.text.size();
  int64_t integer = 0;
  double number = 0;
  const bool is_int = token.kind == Token::kInt;
  const auto result =
      is_int ? std::from_chars(begin, end, integer) : std::from_chars(begin, end, number);
  if (result.ec != std::errc() || result.ptr != end) return Fail("a number is too large");
  Advance();
  return Constant(is_int ? TemplateValue::Int(integer) : TemplateValue::Float(number));
}

const Node* TemplateExpressionParser::ListLiteral() {
  Body items;
  while (ok() && !IsOperator("]")) {
    if (!items.empty()) Expect(",");
    if (IsOperator("]")) break;
    items.push_back(Expression());
  }
  Expect("]");
  return Make(Node::kList, std::move(items));
}

const Node* TemplateExpressionParser::DictLiteral() {
  Body items;
  while (ok() && !IsOperator("}")) {
    if (!items.empty()) Expect(",");
    if (IsOperator("}")) break;
    items.push_back(Expression());
    Expect(":");
    items.push_back(Expression());
  }
  Expect("}");
  return Make(Node::kDict, std::move(items));
}

const Node* TemplateExpressionParser::Postfix(const Node* value) {
  while (ok()) {
    if (Take(".")) {
      if (Now().kind == Token::kInt) {
        const Node* key = Number(Now());
        value = Make(Node::kItem, {value, key});
      } else {
        value = Make(Node::kAttribute, {value}, ExpectName());
      }
    } else if (Take("[")) {
      value = Subscript(value);
    } else if (IsOperator("(")) {
      value = Call(value);
    } else {
      break;
    }
  }
  return value;
}

const Node* TemplateExpressionParser::Subscript(const Node* object) {
  const auto part = [&]() -> const Node* {
    if (IsOperator(":") || IsOperator("]")) return Constant(TemplateValue::None());
    return Expression();
  };
  const Node* start = part();
  if (!IsOperator(":")) {
    if (IsOperator(",")) return Refuse("a subscript with several keys");
    Expect("]");
    return Make(Node::kItem, {object, start});
  }
  Expect(":");
  const Node* stop = part();
  const Node* step = Take(":") ? part() : Constant(TemplateValue::None());
  Expect("]");
  return Make(Node::kSlice, {object, start, stop, step});
}

void TemplateExpressionParser::Arguments(Node* node) {
  Expect("(");
  bool first = true;
  while (ok() && !IsOperator(")")) {
    if (!first) Expect(",");
    first = false;
    if (IsOperator(")")) break;
    if (IsOperator("*") || IsOperator("**")) {
      Refuse("a call with * or **");
      return;
    }
    std::string name;
    if (Now().kind == Token::kName && Ahead().kind == Token::kOperator && Ahead().text == "=") {
      name = ExpectName();
      Advance();
    } else if (!node->names.empty() && !node->names.back().empty()) {
      Fail("a positional argument follows a named one");
    }
    node->children.push_back(Expression());
    node->names.push_back(std::move(name));
  }
  Expect(")");
}

const Node* TemplateExpressionParser::Call(const Node* callee) {
  Node* node = New(Node::kCall);
  node->children.push_back(callee);
  Arguments(node);
  return Finish(node);
}

const Node* TemplateExpressionParser::Filters(const Node* value) {
  while (ok()) {
    if (Take("|")) {
      value = OneFilter(value);
    } else if (IsName("is")) {
      value = Test(value);
    } else if (IsOperator("(")) {
      value = Call(value);
    } else {
      break;
    }
  }
  return value;
}

const Node* TemplateExpressionParser::OneFilter(const Node* input) {
  Node* node = New(Node::kFilter, ExpectName());
  if (ok() && !IsTemplateFilter(node->text)) {
    return Refuse(absl::StrCat("the filter '", node->text, "'"));
  }
  node->children.push_back(input);
  if (IsOperator("(")) Arguments(node);
  return Finish(node);
}

const Node* TemplateExpressionParser::Test(const Node* input) {
  Advance();
  const bool negated = TakeName("not");
  Node* node = New(Node::kTest, ExpectName());
  if (ok() && !IsTemplateTest(node->text)) {
    return Refuse(absl::StrCat("the test '", node->text, "'"));
  }
  node->children.push_back(input);
  if (IsOperator("(")) {
    Arguments(node);
  } else if (StartsArgument()) {
    if (IsName("is")) return Fail("a test follows a test: use parentheses");
    node->children.push_back(Postfix(Primary()));
    node->names.emplace_back();
  }
  const Node* test = Finish(node);
  return negated ? Make(Node::kNot, {test}) : test;
}

bool TemplateExpressionParser::StartsArgument() const {
  if (Now().kind == Token::kName) {
    return Now().text != "else" && Now().text != "or" && Now().text != "and";
  }
  return Now().kind == Token::kString || Now().kind == Token::kInt || Now().kind == Token::kFloat ||
         IsOperator("[") || IsOperator("{");
}

}  // namespace toroid
