#include "core/text/template_parser.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/template_lexer.h"

namespace toroid {
namespace {

using Node = TemplateNode;
using Token = TemplateToken;
using Body = std::vector<const Node*>;

constexpr int kMaxNesting = 64;  // of the parser's own recursion
constexpr int kMaxDepth = 200;   // of the tree

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<TemplateTree> Parse() {
    tree_.body = Statements({});
    if (!status_.ok()) return status_;
    return std::move(tree_);
  }

 private:
  // ---- Tokens and errors. After an error every loop ends, as the current token is the last one.

  const Token& Now() const { return tokens_[at_]; }
  const Token& Ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void Advance() {
    if (at_ + 1 < tokens_.size()) ++at_;
  }
  bool ok() const { return status_.ok(); }
  const Node* Stop(absl::StatusCode code, std::string what) {
    if (status_.ok()) {
      status_ = absl::Status(code, absl::StrCat("template line ", Now().line, ": ", what));
    }
    at_ = tokens_.size() - 1;
    return Finish(New(Node::kConstant));
  }
  const Node* Fail(std::string what) {
    return Stop(absl::StatusCode::kInvalidArgument, std::move(what));
  }
  const Node* Refuse(std::string what) {
    return Stop(absl::StatusCode::kUnimplemented,
                absl::StrCat(what, " is not in the subset of Jinja that toroid renders"));
  }
  bool IsOperator(const char* text) const {
    return Now().kind == Token::kOperator && Now().text == text;
  }
  bool IsName(const char* text) const { return Now().kind == Token::kName && Now().text == text; }
  bool Take(const char* op) {
    if (!IsOperator(op)) return false;
    Advance();
    return true;
  }
  bool TakeName(const char* name) {
    if (!IsName(name)) return false;
    Advance();
    return true;
  }
  void Expect(const char* op) {
    if (!Take(op)) Fail(absl::StrCat("expected '", op, "' ", Found()));
  }
  std::string Found() const {
    if (Now().kind == Token::kEnd) return "before the end of the template";
    if (Now().kind == Token::kBlockEnd) return "before %}";
    if (Now().kind == Token::kPrintEnd) return "before }}";
    return absl::StrCat("before '", Now().text.substr(0, 40), "'");
  }
  std::string ExpectName() {
    if (Now().kind != Token::kName) {
      Fail(absl::StrCat("expected a name ", Found()));
      return "";
    }
    std::string name = Now().text;
    Advance();
    return name;
  }
  void EndOfBlock() {
    if (Now().kind != Token::kBlockEnd) {
      Fail(absl::StrCat("expected the end of the block ", Found()));
      return;
    }
    Advance();
  }

  // ---- Nodes.

  Node* New(Node::Type type, std::string text = "") {
    tree_.arena.push_back(std::make_unique<Node>());
    Node* node = tree_.arena.back().get();
    node->type = type;
    node->line = Now().line;
    node->text = std::move(text);
    return node;
  }
  const Node* Finish(Node* node) {
    for (const Node* child : node->children) {
      node->depth = std::max(node->depth, child->depth + 1);
    }
    for (const Body& body : node->bodies) {
      for (const Node* statement : body) node->depth = std::max(node->depth, statement->depth + 1);
    }
    if (node->depth > kMaxDepth && ok()) Fail("nested too deeply");
    return node;
  }
  const Node* Make(Node::Type type, Body children, std::string text = "") {
    Node* node = New(type, std::move(text));
    node->children = std::move(children);
    return Finish(node);
  }
  const Node* Constant(TemplateValue value) {
    Node* node = New(Node::kConstant);
    node->constant = std::move(value);
    return node;
  }

  // ---- Statements.

  // Up to a block whose first name is one of `ends` (its {% and name not consumed), or to the end.
  Body Statements(std::initializer_list<const char*> ends) {
    Body body;
    if (++nesting_ > kMaxNesting) Fail("blocks are nested too deeply");
    while (Now().kind != Token::kEnd) {
      if (Now().kind == Token::kText) {
        body.push_back(Make(Node::kText, {}, Now().text));
        Advance();
      } else if (Now().kind == Token::kPrint) {
        Advance();
        const Node* value = Tuple(true);
        body.push_back(Make(Node::kPrint, {value}));
        if (Now().kind != Token::kPrintEnd) {
          Fail(absl::StrCat("expected }} ", Found()));
        } else {
          Advance();
        }
      } else {  // {%
        const Token& name = Ahead();
        if (name.kind == Token::kName &&
            std::any_of(ends.begin(), ends.end(),
                        [&](const char* end) { return name.text == end; })) {
          break;
        }
        Advance();
        Statement(&body);
      }
    }
    if (Now().kind == Token::kEnd && ends.size() > 0) {
      Fail(absl::StrCat("the block is not closed: expected {% ", *(ends.end() - 1), " %}"));
    }
    --nesting_;
    return body;
  }
  // The {% name that Statements stopped at.
  std::string End() {
    Advance();
    return ExpectName();
  }
  // {% name %}
  void CloseBlock() {
    End();
    EndOfBlock();
  }

  void Statement(Body* body) {
    const std::string name = ExpectName();
    if (!ok()) return;
    if (name == "if") return body->push_back(If());
    if (name == "for") return body->push_back(For());
    if (name == "set") return body->push_back(Set());
    if (name == "macro") return body->push_back(Macro());
    if (name == "with") return body->push_back(With());
    if (name == "filter") {
      Node* node = New(Node::kFilterBlock);
      node->children.push_back(FilterChain());
      EndOfBlock();
      node->bodies.push_back(Statements({"endfilter"}));
      CloseBlock();
      return body->push_back(Finish(node));
    }
    if (name == "generation") {  // transformers' mark of what the assistant wrote
      Node* node = New(Node::kScope);
      EndOfBlock();
      node->bodies.push_back(Statements({"endgeneration"}));
      CloseBlock();
      return body->push_back(Finish(node));
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) Fail(absl::StrCat("{% ", name, " %} outside of a loop"));
      body->push_back(Make(name == "break" ? Node::kBreak : Node::kContinue, {}));
      return EndOfBlock();
    }
    for (const char* known : {"block", "extends", "include", "import", "from", "call", "do",
                              "autoescape", "trans", "debug"}) {
      if (name == known) {
        Refuse(absl::StrCat("{% ", name, " %}"));
        return;
      }
    }
    Fail(absl::StrCat("unknown or misplaced block {% ", name, " %}"));
  }

  const Node* If() {
    Node* node = New(Node::kIf);
    node->children.push_back(Tuple(false));
    EndOfBlock();
    while (ok()) {
      node->bodies.push_back(Statements({"elif", "else", "endif"}));
      const std::string end = End();
      if (end == "elif") {
        node->children.push_back(Tuple(false));
        EndOfBlock();
        continue;
      }
      EndOfBlock();
      if (end == "else") {
        node->bodies.push_back(Statements({"endif"}));
        CloseBlock();
      }
      break;
    }
    return Finish(node);
  }

  const Node* For() {
    Node* node = New(Node::kFor);
    node->children.push_back(Target(/*with_namespace=*/false));
    if (!TakeName("in")) Fail(absl::StrCat("expected 'in' ", Found()));
    node->children.push_back(Tuple(false));
    if (TakeName("if")) node->children.push_back(Expression());
    if (IsName("recursive")) Refuse("a recursive loop");
    EndOfBlock();
    ++loops_;
    node->bodies.push_back(Statements({"else", "endfor"}));
    --loops_;
    const std::string end = End();
    EndOfBlock();
    node->bodies.emplace_back();
    if (end == "else") {
      node->bodies.back() = Statements({"endfor"});
      CloseBlock();
    }
    return Finish(node);
  }

  // A name, several names, or ns.name.
  const Node* Target(bool with_namespace) {
    const bool parenthesis = !with_namespace && Take("(");
    Body names;
    do {
      if (names.size() > 0 && (Now().kind != Token::kName || IsName("in"))) break;
      const std::string name = ExpectName();
      const Node* target = Make(Node::kName, {}, name);
      if (with_namespace && Take(".")) target = Make(Node::kAttribute, {target}, ExpectName());
      names.push_back(target);
    } while (ok() && Take(","));
    if (parenthesis) Expect(")");
    const bool comma = tokens_[at_ - 1].text == "," && tokens_[at_ - 1].kind == Token::kOperator;
    return names.size() == 1 && !comma ? names[0] : Make(Node::kTuple, std::move(names));
  }

  const Node* Set() {
    Node* node = New(Node::kSet);
    node->children.push_back(Target(/*with_namespace=*/true));
    if (Take("=")) {
      node->children.push_back(Tuple(true));
      EndOfBlock();
      return Finish(node);
    }
    node->type = Node::kSetBlock;
    if (IsOperator("|")) node->children.push_back(Filters(Make(Node::kName, {}, "")));
    EndOfBlock();
    node->bodies.push_back(Statements({"endset"}));
    CloseBlock();
    return Finish(node);
  }

  const Node* Macro() {
    Node* node = New(Node::kMacro, ExpectName());
    Expect("(");
    while (ok() && !IsOperator(")")) {
      if (!node->names.empty()) Expect(",");
      if (IsOperator(")")) break;
      node->names.push_back(ExpectName());
      if (Take("=")) {
        node->children.push_back(Expression());
      } else if (!node->children.empty()) {
        Fail("a parameter without a default follows one with a default");
      }
    }
    Expect(")");
    EndOfBlock();
    const int loops = std::exchange(loops_, 0);
    node->bodies.push_back(Statements({"endmacro"}));
    loops_ = loops;
    CloseBlock();
    node->number = static_cast<int>(tree_.macros.size());
    tree_.macros.push_back(node);
    return Finish(node);
  }

  const Node* With() {
    Node* node = New(Node::kWith);
    while (ok() && Now().kind != Token::kBlockEnd) {
      if (!node->children.empty()) Expect(",");
      node->children.push_back(Make(Node::kName, {}, ExpectName()));
      Expect("=");
      node->children.push_back(Expression());
    }
    EndOfBlock();
    node->bodies.push_back(Statements({"endwith"}));
    CloseBlock();
    return Finish(node);
  }

  // name(arguments)|name ... of {% filter %}
  const Node* FilterChain() { return Filters(OneFilter(Make(Node::kName, {}, ""))); }

  // ---- Expressions, from the loosest binding to the tightest.

  // One expression, or several with commas: a tuple. `with_condition`: a if b else c is allowed
  // without parentheses.
  const Node* Tuple(bool with_condition) {
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
  bool AtTupleEnd() const {
    return Now().kind == Token::kPrintEnd || Now().kind == Token::kBlockEnd || IsOperator(")");
  }

  const Node* Expression() {
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
  const Node* Or() {
    const Node* left = And();
    while (TakeName("or")) left = Make(Node::kOr, {left, And()});
    return left;
  }
  const Node* And() {
    const Node* left = Not();
    while (TakeName("and")) left = Make(Node::kAnd, {left, Not()});
    return left;
  }
  const Node* Not() {
    int count = 0;
    while (TakeName("not")) ++count;
    const Node* value = Compare();
    for (; count > 0 && ok(); --count) value = Make(Node::kNot, {value});
    return value;
  }
  const Node* Compare() {
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
  const Node* Sum() {
    const Node* left = Concat();
    while (IsOperator("+") || IsOperator("-")) {
      std::string op = Now().text;
      Advance();
      const Node* right = Concat();
      left = Make(Node::kBinary, {left, right}, std::move(op));
    }
    return left;
  }
  const Node* Concat() {
    Body operands = {Product()};
    while (Take("~")) operands.push_back(Product());
    return operands.size() == 1 ? operands[0] : Make(Node::kConcat, std::move(operands));
  }
  const Node* Product() {
    const Node* left = Power();
    while (IsOperator("*") || IsOperator("/") || IsOperator("//") || IsOperator("%")) {
      std::string op = Now().text;
      Advance();
      const Node* right = Power();
      left = Make(Node::kBinary, {left, right}, std::move(op));
    }
    return left;
  }
  const Node* Power() {
    const Node* left = Unary(true);
    while (Take("**")) {
      const Node* right = Unary(true);
      left = Make(Node::kBinary, {left, right}, "**");
    }
    return left;
  }
  const Node* Unary(bool with_filters) {
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

  const Node* Primary() {
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
  const Node* Number(const Token& token) {
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
  const Node* ListLiteral() {
    Body items;
    while (ok() && !IsOperator("]")) {
      if (!items.empty()) Expect(",");
      if (IsOperator("]")) break;
      items.push_back(Expression());
    }
    Expect("]");
    return Make(Node::kList, std::move(items));
  }
  const Node* DictLiteral() {
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

  const Node* Postfix(const Node* value) {
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
  const Node* Subscript(const Node* object) {
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
  // ( arguments ), appended to the node's children and names.
  void Arguments(Node* node) {
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
  const Node* Call(const Node* callee) {
    Node* node = New(Node::kCall);
    node->children.push_back(callee);
    Arguments(node);
    return Finish(node);
  }

  const Node* Filters(const Node* value) {
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
  const Node* OneFilter(const Node* input) {
    Node* node = New(Node::kFilter, ExpectName());
    if (ok() && !IsTemplateFilter(node->text)) {
      return Refuse(absl::StrCat("the filter '", node->text, "'"));
    }
    node->children.push_back(input);
    if (IsOperator("(")) Arguments(node);
    return Finish(node);
  }
  const Node* Test(const Node* input) {
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
  // Whether a test takes the next token as its argument without parentheses.
  bool StartsArgument() const {
    if (Now().kind == Token::kName) {
      return Now().text != "else" && Now().text != "or" && Now().text != "and";
    }
    return Now().kind == Token::kString || Now().kind == Token::kInt ||
           Now().kind == Token::kFloat || IsOperator("[") || IsOperator("{");
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;
  absl::Status status_;
  TemplateTree tree_;
};

}  // namespace

absl::StatusOr<TemplateTree> ParseTemplate(std::string_view source) {
  auto tokens = LexTemplate(source);
  if (!tokens.ok()) return tokens.status();
  return Parser(*std::move(tokens)).Parse();
}

}  // namespace toroid
