#include "lib/report/paper_table.h"

#include <fmt/format.h>

#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/text.h"

namespace s2o {

#define S2O_TABLE(name) const PaperTable& table_##name();
#include "lib/report/tables.def"
#undef S2O_TABLE

const std::vector<const PaperTable*>& all_paper_tables() {
  static const std::vector<const PaperTable*> tables = {
#define S2O_TABLE(name) &table_##name(),
#include "lib/report/tables.def"
#undef S2O_TABLE
  };
  return tables;
}

const PaperTable& find_paper_table(const std::string& name) {
  std::vector<std::string> names;
  for (const PaperTable* table : all_paper_tables()) {
    if (table->name == name) return *table;
    names.push_back(table->name);
  }
  throw ConfigError(fmt::format("unknown table '{}'{}; tables: {}", name, did_you_mean(name, names),
                                join(names)));
}

}  // namespace s2o
