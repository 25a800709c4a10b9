// results.h5, written and read. The layout is described in results_file.h.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "lib/core/atomic_file.h"
#include "lib/core/error.h"
#include "lib/core/hdf5_handle.h"
#include "lib/core/strict_json.h"
#include "lib/report/results_file.h"
#include "lib/report/results_json.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

const std::set<std::string> kTextColumns = {"input",   "method",  "params", "kernel",
                                            "backend", "planner", "error"};
const std::set<std::string> kIntegerColumns = {"layer", "seqlen", "num_q_heads", "num_kv_heads",
                                               "head_dim"};

std::string dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// ---- writing ----

class Writer {
 public:
  explicit Writer(const std::filesystem::path& file) : name_(file.string()) {}

  // Opens `path`, which is to become the file that messages name.
  void open(const std::filesystem::path& path) {
    file_ = check(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
    // Equal results give equal bytes: no creation times.
    dataset_properties_ = check(H5Pcreate(H5P_DATASET_CREATE));
    check_status(H5Pset_obj_track_times(dataset_properties_.get(), false));
    group_properties_ = check(H5Pcreate(H5P_GROUP_CREATE));
    check_status(H5Pset_obj_track_times(group_properties_.get(), false));
    link_properties_ = check(H5Pcreate(H5P_LINK_CREATE));
    check_status(H5Pset_create_intermediate_group(link_properties_.get(), 1));
  }

  void group(const std::string& path) {
    check(H5Gcreate2(file_.get(), path.c_str(), link_properties_.get(), group_properties_.get(),
                     H5P_DEFAULT));
  }

  void numbers(const std::string& path, hid_t type, const std::vector<hsize_t>& shape,
               const void* data) {
    const Hdf5Handle space =
        check(H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr));
    write(path, type, space.get(), data);
  }

  // A list of texts as fixed-length strings, padded with NUL.
  void texts(const std::string& path, const std::vector<std::string>& values) {
    std::size_t width = 1;
    for (const std::string& value : values) width = std::max(width, value.size());
    std::vector<char> bytes(values.size() * width, '\0');
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::memcpy(bytes.data() + i * width, values[i].data(), values[i].size());
    }
    const Hdf5Handle type = text_type(width);
    numbers(path, type.get(), {values.size()}, bytes.data());
  }

  void text(const std::string& path, const std::string& value) {
    const std::string padded = value.empty() ? std::string(1, '\0') : value;
    const Hdf5Handle type = text_type(padded.size());
    const Hdf5Handle space = check(H5Screate(H5S_SCALAR));
    write(path, type.get(), space.get(), padded.data());
  }

  void text_attribute(const std::string& object, const std::string& name,
                      const std::string& value) {
    const std::string padded = value.empty() ? std::string(1, '\0') : value;
    const Hdf5Handle type = text_type(padded.size());
    attribute(object, name, type.get(), padded.data());
  }
  void integer_attribute(const std::string& object, const std::string& name, std::int64_t value) {
    attribute(object, name, H5T_NATIVE_INT64, &value);
  }

  void close() {
    if (!file_.reset()) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw UnsupportedError(fmt::format("{}: writing failed: {}", name_, hdf5_error_text()));
  }
  Hdf5Handle check(hid_t id) const {
    if (id < 0) fail();
    return Hdf5Handle(id);
  }
  void check_status(herr_t status) const {
    if (status < 0) fail();
  }
  Hdf5Handle text_type(std::size_t width) const {
    Hdf5Handle type = check(H5Tcopy(H5T_C_S1));
    check_status(H5Tset_size(type.get(), width));
    check_status(H5Tset_strpad(type.get(), H5T_STR_NULLPAD));
    check_status(H5Tset_cset(type.get(), H5T_CSET_UTF8));
    return type;
  }
  void write(const std::string& path, hid_t type, hid_t space, const void* data) {
    const Hdf5Handle dataset =
        check(H5Dcreate2(file_.get(), path.c_str(), type, space, link_properties_.get(),
                         dataset_properties_.get(), H5P_DEFAULT));
    check_status(H5Dwrite(dataset.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data));
  }
  void attribute(const std::string& object, const std::string& name, hid_t type, const void* data) {
    const Hdf5Handle space = check(H5Screate(H5S_SCALAR));
    const Hdf5Handle created =
        check(H5Acreate_by_name(file_.get(), object.c_str(), name.c_str(), type, space.get(),
                                H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    check_status(H5Awrite(created.get(), type, data));
  }

  std::string name_;
  Hdf5Handle file_;
  Hdf5Handle dataset_properties_;
  Hdf5Handle group_properties_;
  Hdf5Handle link_properties_;
};

void write_context(Writer& writer, const Json& context) {
  writer.group("/context");
  // A dataset: an attribute would have to stay below 64 KiB.
  writer.text("/context/json", dump(context));
  for (const auto& [name, value] : context.items()) {
    if (value.is_string()) writer.text_attribute("/context", name, value.get<std::string>());
    if (value.is_number_integer()) {
      writer.integer_attribute("/context", name, value.get<std::int64_t>());
    }
  }
}

// The columns of all rows: those of this build, then others that the rows bring along.
std::vector<std::string> table_columns(const std::vector<Json>& rows) {
  std::vector<std::string> columns = result_columns();
  for (const Json& row : rows) {
    for (const auto& [name, value] : row.items()) {
      if (std::find(columns.begin(), columns.end(), name) == columns.end()) columns.push_back(name);
    }
  }
  return columns;
}

void write_column(Writer& writer, const std::string& name, const std::vector<Json>& rows) {
  const std::string path = "/table/" + name;
  if (kTextColumns.contains(name)) {
    std::vector<std::string> texts;
    for (const Json& row : rows) {
      const Json& value = row[name];
      texts.push_back(value.is_null()     ? ""
                      : value.is_string() ? value.get<std::string>()
                                          : dump(value));
    }
    writer.texts(path, texts);
  } else if (kIntegerColumns.contains(name)) {
    std::vector<std::int64_t> integers;
    for (const Json& row : rows) {
      integers.push_back(row[name].is_null() ? 0 : row[name].get<std::int64_t>());
    }
    writer.numbers(path, H5T_NATIVE_INT64, {integers.size()}, integers.data());
  } else {
    std::vector<double> numbers;
    for (const Json& row : rows) {
      const bool known = row.contains(name) && row[name].is_number();
      numbers.push_back(known ? row[name].get<double>() : std::numeric_limits<double>::quiet_NaN());
    }
    writer.numbers(path, H5T_NATIVE_DOUBLE, {numbers.size()}, numbers.data());
  }
}

void write_row(Writer& writer, std::size_t index, const ResultRow& row,
               const std::vector<float>& out) {
  const std::string path = fmt::format("/rows/{}", index);
  writer.group(path);
  for (const auto& [name, values] : row.per_head) {
    writer.numbers(path + "/per_head/" + name, H5T_NATIVE_DOUBLE, {values.size()}, values.data());
  }
  if (!row.stop_steps.empty()) {
    writer.numbers(path + "/stop_steps", H5T_NATIVE_INT32, {row.stop_steps.size()},
                   row.stop_steps.data());
  }
  if (!out.empty()) {
    writer.numbers(path + "/out", H5T_NATIVE_FLOAT,
                   {static_cast<hsize_t>(row.num_q_heads), static_cast<hsize_t>(row.seqlen),
                    static_cast<hsize_t>(row.head_dim)},
                   out.data());
  }
}

// ---- reading ----

class Reader {
 public:
  explicit Reader(const std::filesystem::path& file) : name_(file.string()) {
    std::error_code error;
    file_bytes_ = std::filesystem::file_size(file, error);
    if (error) throw InputError(fmt::format("{}: {}", name_, error.message()));
    file_ = Hdf5Handle(H5Fopen(file.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
    if (!file_) fail("no HDF5 file");
  }

  bool has(const std::string& path) const {
    // A link is asked for level by level: H5Lexists fails where a parent misses.
    for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
      if (H5Lexists(file_.get(), path.substr(0, end).c_str(), H5P_DEFAULT) <= 0) return false;
      if (end == std::string::npos) return true;
    }
  }

  std::vector<std::string> members(const std::string& path) const {
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
    const Hdf5Handle dataset = check(H5Dopen2(file_.get(), path.c_str(), H5P_DEFAULT), path);
    std::vector<T> values(count(dataset.get(), sizeof(T), path));
    if (H5Dread(dataset.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0) fail(path);
    return values;
  }

  std::vector<std::string> texts(const std::string& path) const {
    const Hdf5Handle dataset = check(H5Dopen2(file_.get(), path.c_str(), H5P_DEFAULT), path);
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
        if (name == "params") {
          values.push_back(parse_text(text, file + ": " + path));
        } else {
          values.push_back(name == "error" && text.empty() ? Json() : Json(text));
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

}  // namespace

void write_results_hdf5(const std::filesystem::path& file, const ResultTable& table,
                        const RowOutputs& outputs) {
  const Hdf5QuietErrors quiet;
  AtomicFile target(file);
  Writer writer(file);
  writer.open(target.temporary_path());
  writer.integer_attribute("/", "schema_version", kResultSchemaVersion);
  write_context(writer, table.context);
  std::vector<Json> rows;
  for (const ResultRow& row : table.rows) rows.push_back(row_to_json(row));
  writer.group("/table");
  for (const std::string& name : table_columns(rows)) write_column(writer, name, rows);
  writer.group("/rows");
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    write_row(writer, i, table.rows[i], outputs ? outputs(i) : std::vector<float>{});
  }
  writer.close();
  target.commit();
}

ResultTable read_results_hdf5(const std::filesystem::path& file) {
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
    if (reader.has(path + "/per_head")) {
      for (const std::string& name : reader.members(path + "/per_head")) {
        row.per_head[name] = reader.numbers<double>(path + "/per_head/" + name, H5T_NATIVE_DOUBLE);
      }
    }
    if (reader.has(path + "/stop_steps")) {
      row.stop_steps = reader.numbers<std::int32_t>(path + "/stop_steps", H5T_NATIVE_INT32);
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

bool is_results_hdf5(const std::filesystem::path& file) {
  const Hdf5QuietErrors quiet;
  if (H5Fis_hdf5(file.c_str()) <= 0) return false;
  try {
    const Reader reader(file);
    return reader.has("/context/json") && reader.has("/table");
  } catch (const InputError&) {
    return false;
  }
}

}  // namespace s2o
