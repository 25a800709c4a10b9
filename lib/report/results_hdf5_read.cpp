// results.h5, read back. The layout is described in results_file.h.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <map>

#include "lib/core/error.h"
#include "lib/core/hdf5_handle.h"
#include "lib/core/isolated.h"
#include "lib/core/regular_file.h"
#include "lib/core/strict_json.h"
#include "lib/report/journal.h"
#include "lib/report/results_file.h"
#include "lib/report/results_hdf5_columns.h"
#include "lib/report/results_json.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

// The library follows the lengths and offsets of a damaged file without much care; see
// lib/input/formats/hdf5.cpp. A row is some KiB here and not much more as text.
std::uint64_t max_seconds(std::uint64_t file_bytes) { return 5 + file_bytes / 1'000'000; }
std::uint64_t max_bytes(std::uint64_t file_bytes) { return (256 << 20) + 64 * file_bytes; }

class Reader {
 public:
  explicit Reader(const std::filesystem::path& file) : name_(file.string()) {
    file_bytes_ = require_regular_file(file);
    file_ = Hdf5Handle(H5Fopen(file.c_str(), H5F_ACC_RDONLY, hdf5_file_access().get()));
    if (!file_) fail("no HDF5 file");
  }

  // False also for what a soft or external link leads to: another file is none of ours.
  bool has(const std::string& path) const {
    // A link is asked for level by level: H5Lexists fails where a parent misses.
    for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
      const std::string level = path.substr(0, end);
      if (H5Lexists(file_.get(), level.c_str(), H5P_DEFAULT) <= 0) return false;
      H5L_info_t info{};
      if (H5Lget_info(file_.get(), level.c_str(), &info, H5P_DEFAULT) < 0) return false;
      if (info.type != H5L_TYPE_HARD) return false;
      if (end == std::string::npos) return true;
    }
  }

  std::vector<std::string> members(const std::string& path) const {
    require(path);
    const Hdf5Handle group = check(H5Gopen2(file_.get(), path.c_str(), H5P_DEFAULT), path);
    std::vector<std::string> names;
    const auto collect = [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
      static_cast<std::vector<std::string>*>(out)->emplace_back(name);
      return 0;
    };
    if (H5Literate(group.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, collect, &names) < 0) {
      fail(path);
    }
    return names;
  }

  template <class T>
  std::vector<T> numbers(const std::string& path, hid_t type) const {
    const Hdf5Handle dataset = open_dataset(path);
    std::vector<T> values(count(dataset.get(), sizeof(T), path));
    if (H5Dread(dataset.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0) fail(path);
    return values;
  }

  std::vector<std::string> texts(const std::string& path) const {
    const Hdf5Handle dataset = open_dataset(path);
    const Hdf5Handle type = check(H5Dget_type(dataset.get()), path);
    if (H5Tget_class(type.get()) != H5T_STRING || H5Tis_variable_str(type.get()) != 0) {
      throw InputError(fmt::format("{}: {}: expected fixed-length text", name_, path));
    }
    const std::size_t width = H5Tget_size(type.get());
    std::vector<char> bytes(count(dataset.get(), width, path) * width);
    if (H5Dread(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()) < 0) {
      fail(path);
    }
    std::vector<std::string> values;
    for (std::size_t i = 0; i < bytes.size(); i += width) {
      values.emplace_back(bytes.data() + i, strnlen(bytes.data() + i, width));
    }
    return values;
  }

  std::int64_t schema_version() const {
    std::int64_t value = 0;
    const Hdf5Handle attribute(
        H5Aopen_by_name(file_.get(), "/", "schema_version", H5P_DEFAULT, H5P_DEFAULT));
    if (!attribute || H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) < 0) {
      throw InputError(
          fmt::format("{}: no attribute schema_version, this is no results file of s2o", name_));
    }
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(fmt::format("{}: {}: {}", name_, what, hdf5_error_text()));
  }
  Hdf5Handle check(hid_t id, const std::string& path) const {
    if (id < 0) fail(path);
    return Hdf5Handle(id);
  }
  void require(const std::string& path) const {
    if (!has(path)) {
      throw InputError(fmt::format("{}: {}: is missing, or a link to something else", name_, path));
    }
  }
  Hdf5Handle open_dataset(const std::string& path) const {
    require(path);
    Hdf5Handle dataset = check(H5Dopen2(file_.get(), path.c_str(), H5P_DEFAULT), path);
    const Hdf5Handle layout = check(H5Dget_create_plist(dataset.get()), path);
    if (H5Pget_layout(layout.get()) == H5D_VIRTUAL || H5Pget_external_count(layout.get()) > 0) {
      throw InputError(fmt::format("{}: {}: data lies in other files", name_, path));
    }
    return dataset;
  }
  // Elements of a dataset. Ours are stored plainly, so a length that the file cannot hold is wrong.
  std::size_t count(hid_t dataset, std::size_t element_bytes, const std::string& path) const {
    const Hdf5Handle space = check(H5Dget_space(dataset), path);
    const hssize_t elements = H5Sget_simple_extent_npoints(space.get());
    if (elements < 0) fail(path);
    if (static_cast<std::uintmax_t>(elements) > file_bytes_ / element_bytes) {
      throw InputError(fmt::format("{}: {}: {} elements do not fit into a file of {} bytes", name_,
                                   path, elements, file_bytes_));
    }
    return static_cast<std::size_t>(elements);
  }

  std::string name_;
  std::uintmax_t file_bytes_ = 0;
  Hdf5Handle file_;
};

Json parse_text(const std::string& text, const std::string& where) {
  try {
    return parse_strict_json(text);
  } catch (const JsonTextError& error) {
    throw InputError(fmt::format("{}: {}", where, error.what()));
  }
}

// The table as one JSON object per row, as row_from_json wants it.
std::vector<Json> read_table(const Reader& reader, const std::string& file) {
  std::vector<Json> rows;
  bool first = true;
  for (const std::string& name : reader.members("/table")) {
    const std::string path = "/table/" + name;
    std::vector<Json> values;
    if (kTextColumns.contains(name)) {
      for (const std::string& text : reader.texts(path)) {
        if (kJsonColumns.contains(name)) {
          values.push_back(text.empty() ? Json() : parse_text(text, file + ": " + path));
        } else {
          const bool is_null = text.empty() && kNullableColumns.contains(name);
          values.push_back(is_null ? Json() : Json(text));
        }
      }
    } else if (kIntegerColumns.contains(name)) {
      for (const auto value : reader.numbers<std::int64_t>(path, H5T_NATIVE_INT64)) {
        values.emplace_back(value);
      }
    } else {
      for (const double value : reader.numbers<double>(path, H5T_NATIVE_DOUBLE)) {
        values.push_back(std::isfinite(value) ? Json(value) : Json());
      }
    }
    if (first) rows.resize(values.size(), Json::object());
    first = false;
    if (values.size() != rows.size()) {
      throw InputError(fmt::format("{}: {}: has {} rows, the columns before it have {}", file, path,
                                   values.size(), rows.size()));
    }
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i][name] = std::move(values[i]);
  }
  return rows;
}

// The members of a group, which need not be there.
std::map<std::string, std::vector<double>> read_vectors(const Reader& reader,
                                                        const std::string& group) {
  std::map<std::string, std::vector<double>> vectors;
  if (!reader.has(group)) return vectors;
  for (const std::string& name : reader.members(group)) {
    vectors[name] = reader.numbers<double>(group + "/" + name, H5T_NATIVE_DOUBLE);
  }
  return vectors;
}

// In a process of its own (core/isolated.h).
ResultTable read_here(const std::filesystem::path& file) {
  const Hdf5QuietErrors quiet;
  const Reader reader(file);
  if (reader.schema_version() != kResultSchemaVersion) {
    throw InputError(fmt::format("{}: schema_version is {}, expected {}", file.string(),
                                 reader.schema_version(), kResultSchemaVersion));
  }
  ResultTable table;
  const std::vector<std::string> context = reader.texts("/context/json");
  table.context = parse_text(context.empty() ? "" : context[0], file.string() + ": /context/json");
  for (const Json& object : read_table(reader, file.string())) {
    const std::size_t i = table.rows.size();
    ResultRow row = row_from_json(object, fmt::format("{}: row {}", file.string(), i));
    const std::string path = fmt::format("/rows/{}", i);
    row.per_head = read_vectors(reader, path + "/per_head");
    row.prefill.per_layer = read_vectors(reader, path + "/per_layer");
    if (reader.has(path + "/stop_steps")) {
      row.stop_steps = reader.numbers<std::int32_t>(path + "/stop_steps", H5T_NATIVE_INT32);
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

}  // namespace

ResultTable read_results_hdf5(const std::filesystem::path& file) {
  const std::uint64_t file_bytes = require_regular_file(file);
  const std::string text = run_isolated(
      file.string(), max_seconds(file_bytes), [&file] { return journal_text(read_here(file)); },
      max_bytes(file_bytes));
  JournalContent content = parse_journal(text, file.string());
  ResultTable table{.context = std::move(content.context), .rows = {}};
  for (JournalEntry& entry : content.entries) table.rows.push_back(std::move(entry.row));
  return table;
}

bool is_results_hdf5(const std::filesystem::path& file) {
  const auto ask = [&file]() -> std::string {
    const Hdf5QuietErrors quiet;
    if (H5Fis_hdf5(file.c_str()) <= 0) return "no";
    const Reader reader(file);
    return reader.has("/context/json") && reader.has("/table") ? "yes" : "no";
  };
  try {
    const std::uint64_t file_bytes = require_regular_file(file);
    return run_isolated(file.string(), max_seconds(file_bytes), ask, max_bytes(file_bytes)) ==
           "yes";
  } catch (const InputError&) {
    return false;
  }
}

}  // namespace s2o
