// results.h5, written; results_hdf5_read.cpp reads it. The layout is described in results_file.h.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "lib/core/atomic_file.h"
#include "lib/core/error.h"
#include "lib/core/hdf5_handle.h"
#include "lib/core/printable.h"
#include "lib/report/results_file.h"
#include "lib/report/results_hdf5_columns.h"
#include "lib/report/results_json.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

class Writer {
 public:
  explicit Writer(const std::filesystem::path& file) : name_(file.string()) {}

  // Opens `path`, which is to become the file that messages name.
  void open(const std::filesystem::path& path) {
    file_ = check(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, hdf5_file_access().get()));
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
    std::string bytes;
    for (const std::string& value : values)
      bytes += value + std::string(width - value.size(), '\0');
    const Hdf5Handle type = text_type(width);
    numbers(path, type.get(), {values.size()}, bytes.data());
  }

  void text(const std::string& path, const std::string& value) {
    const Hdf5Handle type = text_type(value.size());
    const Hdf5Handle space = check(H5Screate(H5S_SCALAR));
    write(path, type.get(), space.get(), value.c_str());
  }

  void text_attribute(const std::string& object, const std::string& name,
                      const std::string& value) {
    attribute(object, name, text_type(value.size()).get(), value.c_str());
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
  // Text of at least one byte, be it the NUL behind an empty one.
  Hdf5Handle text_type(std::size_t width) const {
    Hdf5Handle type = check(H5Tcopy(H5T_C_S1));
    check_status(H5Tset_size(type.get(), std::max<std::size_t>(width, 1)));
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
  writer.text("/context/json", json_text(context));
  for (const auto& [name, value] : context.items()) {
    if (value.is_string()) writer.text_attribute("/context", name, value.get<std::string>());
    if (value.is_number_integer()) {
      writer.integer_attribute("/context", name, value.get<std::int64_t>());
    }
  }
}

// The columns of all rows: those of this build, then others that the rows bring along.
std::vector<std::string> table_columns(const std::vector<Json>& rows, RowKind kind) {
  std::vector<std::string> columns = result_columns(kind);
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
                                          : json_text(value));
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
  for (const auto& [name, values] : row.prefill.per_layer) {
    writer.numbers(path + "/per_layer/" + name, H5T_NATIVE_DOUBLE, {values.size()}, values.data());
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
  const RowKind kind = table.rows.empty() ? RowKind::kAttention : table.rows.front().kind;
  for (const std::string& name : table_columns(rows, kind)) write_column(writer, name, rows);
  writer.group("/rows");
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    write_row(writer, i, table.rows[i], outputs ? outputs(i) : std::vector<float>{});
  }
  writer.close();
  target.commit();
}

}  // namespace s2o
