// Whether a text is well-formed markup: what a browser and an XML parser agree on. Written for the tests, and sharing
// nothing with what writes such texts.
#pragma once

#include <cctype>
#include <string>
#include <string_view>
#include <vector>

namespace deviceloop::testing {

/// What is wrong with it, and where; empty if nothing is. Tags must be closed in order, attributes quoted, and every &
/// begin one of XML's own references. Declarations (<!...>) are only allowed at the start.
inline std::string markup_problem(std::string_view text) {
  std::vector<std::string> open;
  bool has_root = false;
  const auto problem = [&](const std::string& what, std::size_t at) {
    return what + " at: " + std::string(text.substr(at, 60));
  };
  const auto is_reference = [&](std::size_t at) {
    for (const std::string_view reference : {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"})
      if (text.substr(at, reference.size()) == reference) return true;
    return false;
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte < 0x20 && byte != '\n') return problem("a control character", i);
    if (text[i] == '&' && !is_reference(i)) return problem("a bare &", i);
    if (text[i] == '>') return problem("a bare >", i);
    if (text[i] != '<') {
      if (open.empty() && text[i] != '\n') return problem("text outside of the root", i);
      continue;
    }
    if (text.substr(i, 2) == "<!") {
      if (has_root || text.substr(i, 4) == "<!--") return problem("a declaration or comment", i);
      i = text.find('>', i);
      continue;
    }
    std::size_t at = i + 1;
    const bool closes = text[at] == '/';
    if (closes) ++at;
    std::string name;
    while (at < text.size() && (std::isalnum(static_cast<unsigned char>(text[at])) != 0)) name += text[at++];
    if (name.empty()) return problem("a bare <", i);
    if (closes) {
      if (open.empty() || open.back() != name) return problem("</" + name + "> closes nothing", i);
      if (text[at] != '>') return problem("a wrong end tag", i);
      open.pop_back();
      i = at;
      continue;
    }
    if (open.empty() && has_root) return problem("a second root", i);
    has_root = true;
    // name="value" ...
    while (text.substr(at, 1) == " ") {
      ++at;
      const std::size_t equals = text.find('=', at);
      if (equals == text.npos || text.substr(equals + 1, 1) != "\"") return problem("an attribute without quotes", i);
      const std::size_t end = text.find('"', equals + 2);
      if (end == text.npos) return problem("an attribute that does not end", i);
      for (std::size_t j = equals + 2; j < end; ++j)
        if (text[j] == '<' || text[j] == '>' || (text[j] == '&' && !is_reference(j)) || text[j] == '\n')
          return problem("a bare character in an attribute", j);
      at = end + 1;
    }
    const bool is_empty = text.substr(at, 2) == "/>";
    if (!is_empty && text.substr(at, 1) != ">") return problem("a wrong tag", i);
    if (!is_empty) open.push_back(name);
    i = at + (is_empty ? 1 : 0);
  }
  if (!open.empty()) return "<" + open.back() + "> is not closed";
  return has_root ? "" : "nothing is there";
}

/// How often `part` is in `text`.
inline int count_of(std::string_view text, std::string_view part) {
  int count = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

}  // namespace deviceloop::testing
