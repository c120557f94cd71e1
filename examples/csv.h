// What the examples read: a .csv file with the names of the columns in its first line
// and a number in every field.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

struct Table {
  std::vector<std::string> names;
  std::vector<double> values;  // row by row

  std::size_t columns() const { return names.size(); }
  std::size_t rows() const { return values.size() / columns(); }
  double at(std::size_t row, std::size_t column) const {
    return values[row * columns() + column];
  }
};

/// Throws std::runtime_error, naming the file and the line.
inline Table read_csv(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + " cannot be opened");
  Table table;
  std::string line;
  for (std::size_t number = 1; std::getline(file, line); ++number) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() && number > 1) continue;
    const auto refuse = [&](const std::string& what) {
      throw std::runtime_error(path + ", line " + std::to_string(number) + ": " + what);
    };
    std::size_t fields = 0;
    for (std::size_t begin = 0; begin <= line.size(); ++fields) {
      const std::size_t end = std::min(line.find(',', begin), line.size());
      const std::string field = line.substr(begin, end - begin);
      begin = end + 1;
      if (number == 1) {
        table.names.push_back(field);
        continue;
      }
      double value = 0;
      const auto [rest, error] =
          std::from_chars(field.data(), field.data() + field.size(), value);
      if (error != std::errc() || rest != field.data() + field.size() ||
          !std::isfinite(value))
        refuse("'" + field + "' is not a number");
      table.values.push_back(value);
    }
    if (fields != table.columns())
      refuse(std::to_string(fields) + " fields, but line 1 names " +
             std::to_string(table.columns()) + " columns");
  }
  if (table.values.empty())
    throw std::runtime_error(path + " has no rows below the names of its columns");
  return table;
}

/// The column of that name. Throws std::runtime_error, naming the columns there are.
inline std::size_t find_column(const Table& table, const std::string& name) {
  std::string names;
  for (std::size_t column = 0; column < table.columns(); ++column) {
    if (table.names[column] == name) return column;
    names += (column == 0 ? "" : ", ") + table.names[column];
  }
  throw std::runtime_error("no column is called '" + name + "'; there are " + names);
}
