// The expressions of a template: tokens -> nodes, by recursive descent, one function a level of
// binding. The statements around them are read in template_parser.cc.
#pragma once

#include <vector>

#include "core/text/template_reader.h"

namespace toroid {

class TemplateExpressionParser : protected TemplateReader {
 protected:
  static constexpr int kMaxNesting = 64;  // of the parser's own recursion

  explicit TemplateExpressionParser(std::vector<Token> tokens)
      : TemplateReader(std::move(tokens)) {}

  // One expression, or several with commas: a tuple. `with_condition`: a if b else c is allowed
  // without parentheses.
  const Node* Tuple(bool with_condition);
  const Node* Expression();
  // |filter, "is" tests and calls that follow `value`, if any; one filter's name and arguments.
  const Node* Filters(const Node* value);
  const Node* OneFilter(const Node* input);

  int nesting_ = 0;

 private:
  bool AtTupleEnd() const;
  // From the loosest binding to the tightest.
  const Node* Or();
  const Node* And();
  const Node* Not();
  const Node* Compare();
  const Node* Sum();
  const Node* Concat();
  const Node* Product();
  const Node* Power();
  const Node* Unary(bool with_filters);
  const Node* Primary();
  const Node* Number(const Token& token);
  const Node* ListLiteral();
  const Node* DictLiteral();
  const Node* Postfix(const Node* value);
  const Node* Subscript(const Node* object);
  // ( arguments ), appended to the node's children and names.
  void Arguments(Node* node);
  const Node* Call(const Node* callee);
  const Node* Test(const Node* input);
  // Whether a test takes the next token as its argument without parentheses.
  bool StartsArgument() const;
};

}  // namespace toroid
