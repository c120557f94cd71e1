#include "suggestion.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "text.h"

namespace deviceloop {
namespace {

// Levenshtein's distance.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string suggestion(std::string_view word, const std::vector<std::string>& known) {
  word = word.substr(0, std::min(word.find('='), std::size_t{64}));
  const std::size_t letters = word.size() - std::min(word.find_first_not_of('-'), word.size());
  std::size_t least = std::min(letters / 2, std::size_t{2}) + 1;
  const std::string* nearest = nullptr;
  for (const std::string& name : known) {
    // The names of a file may be long and many; the distance is at least that of the lengths.
    if (std::max(name.size(), word.size()) - std::min(name.size(), word.size()) >= least) continue;
    const std::size_t to_name = distance(word, name);
    if (to_name >= least) continue;
    least = to_name;
    nearest = &name;
  }
  return nearest == nullptr ? "" : " (did you mean '" + *nearest + "'?)";
}

std::string list_in_quotes(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 10;
  const std::size_t shown = names.size() > kShown + 1 ? kShown : names.size();  // "and 1 more" is no shorter
  std::string text;
  for (std::size_t i = 0; i < shown; ++i)
    text += (i == 0 ? "" : i + 1 == names.size() ? " and " : ", ") + ("'" + printable(names[i], 40) + "'");
  return shown < names.size() ? text + " and " + std::to_string(names.size() - shown) + " more" : text;
}

}  // namespace deviceloop
