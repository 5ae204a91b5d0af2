// What the parsers of a template share: the tokens still to come, the tree so far, the first error.
//
// After an error every loop over tokens ends, as the current one is the last; callers need not
// check. One parse, one thread.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "core/text/template_lexer.h"
#include "core/text/template_parser.h"

namespace toroid {

class TemplateReader {
 protected:
  using Node = TemplateNode;
  using Token = TemplateToken;
  using Body = std::vector<const Node*>;

  explicit TemplateReader(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& Now() const { return tokens_[at_]; }
  const Token& Ahead() const;
  void Advance();
  bool ok() const { return status_.ok(); }
  // The first error is kept, and nothing more is read: what is returned only keeps callers going.
  const Node* Stop(absl::StatusCode code, std::string what);
  const Node* Fail(std::string what);
  // Jinja, but not ours.
  const Node* Refuse(std::string what);
  bool IsOperator(const char* text) const;
  bool IsName(const char* text) const;
  // Whether it is the current token, which is then consumed.
  bool Take(const char* op);
  bool TakeName(const char* name);
  void Expect(const char* op);
  // "before ..", for messages.
  std::string Found() const;
  std::string ExpectName();
  void EndOfBlock();  // %}

  // A node of the tree; Finish once its children and bodies are in place.
  Node* New(Node::Type type, std::string text = "");
  const Node* Finish(Node* node);
  const Node* Make(Node::Type type, Body children, std::string text = "");
  const Node* Constant(TemplateValue value);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  absl::Status status_;
  TemplateTree tree_;
};

}  // namespace toroid
