#include "lib/report/results_file.h"

#include <fmt/format.h>

#include "lib/core/atomic_file.h"
#include "lib/core/error.h"
#include "lib/core/regular_file.h"
#include "lib/report/results_json.h"

namespace s2o {

void write_results_json(const std::filesystem::path& file, const ResultTable& table) {
  AtomicFile target(file);
  target.write(results_to_json(table));
  target.commit();
}

ResultTable read_results(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    for (const char* name : {kHdf5ResultsName, kJsonResultsName}) {
      if (std::filesystem::exists(path / name, ignored)) return read_results(path / name);
    }
    throw InputError(fmt::format("{}: holds neither {} nor {}", path.string(), kHdf5ResultsName,
                                 kJsonResultsName));
  }
  if (!std::filesystem::exists(path, ignored)) {
    throw InputError(fmt::format("{}: no such file or folder", path.string()));
  }
  const std::string extension = path.extension().string();
  if (extension == ".json") return results_from_json(read_whole_file(path), path.string());
  if (extension == ".h5" || extension == ".hdf5") return read_results_hdf5(path);
  throw InputError(fmt::format("{}: unknown extension '{}', expected .json, .h5, .hdf5 or a folder",
                               path.string(), extension));
}

}  // namespace s2o
