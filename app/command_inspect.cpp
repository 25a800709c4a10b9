// `s2o inspect`: what a tensor file, a model directory or a results file holds.
#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <memory>

#include "app/commands.h"
#include "lib/core/error.h"
#include "lib/core/printable.h"
#include "lib/core/text.h"
#include "lib/input/formats/format.h"
#include "lib/model/model_config.h"
#include "lib/report/report_table.h"
#include "lib/report/results_file.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

bool file_exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// "key: value" lines.
std::string render_facts(const Json& facts) {
  std::string text;
  for (const auto& [name, value] : facts.items()) {
    if (value.is_null()) continue;
    text += fmt::format("{}: {}\n", printable(name),
                        printable(value.is_string() ? value.get<std::string>() : json_text(value)));
  }
  return text;
}

Json describe_tensors(const TensorFile& file) {
  Json tensors = Json::array();
  for (const TensorInfo& info : file.tensors()) {
    tensors.push_back({{"name", info.name},
                       {"dtype", dtype_name(info.dtype)},
                       {"shape", info.shape},
                       {"bytes", info.num_bytes}});
  }
  return tensors;
}

std::string render_tensors(const TensorFile& file) {
  ReportTable table = {.columns = {{.name = "tensor", .left_aligned = true},
                                   {.name = "dtype", .left_aligned = true},
                                   {.name = "shape", .left_aligned = true},
                                   {.name = "bytes"}}};
  std::size_t bytes = 0;
  for (const TensorInfo& info : file.tensors()) {
    table.rows.push_back({text_cell(info.name), text_cell(std::string(dtype_name(info.dtype))),
                          text_cell(shape_text(info.shape)),
                          integer_cell(static_cast<std::int64_t>(info.num_bytes))});
    bytes += info.num_bytes;
  }
  table.notes = {fmt::format("{} tensors, {} bytes ({})", file.tensors().size(), bytes,
                             bytes_text(static_cast<double>(bytes)))};
  return render_report({.view = {table}}, ReportFormat::kText);
}

std::string inspect_tensors(const fs::path& path, Json facts, bool as_json) {
  const std::unique_ptr<TensorFile> file = open_tensor_file(path);
  Json metadata = Json::object();
  for (const auto& [name, value] : file->metadata()) metadata[name] = value;
  if (as_json) {
    facts["metadata"] = metadata;
    facts["tensors"] = describe_tensors(*file);
    return json_text(facts, 1) + "\n";
  }
  for (const auto& [name, value] : metadata.items()) facts["metadata " + name] = value;
  return render_facts(facts) + "\n" + render_tensors(*file);
}

Json model_facts(const fs::path& folder) {
  const ModelConfig config = read_model_config(folder);
  return {{"model", folder.string()},
          {"architecture", config.architecture},
          {"num_layers", config.num_layers},
          {"hidden_size", config.hidden_size},
          {"num_q_heads", config.num_q_heads},
          {"num_kv_heads", config.num_kv_heads},
          {"head_dim", config.head_dim},
          {"vocab_size", config.vocab_size},
          {"max_position_embeddings", config.max_position_embeddings},
          {"sliding_window", config.sliding_window > 0 ? Json(config.sliding_window) : Json()},
          {"rope_type", rope_type_name(config.rope.type)},
          {"rope_theta", config.rope.theta}};
}

// Rows per value of a column, in order of appearance.
Json count_by(const ResultTable& table, const std::function<std::string(const ResultRow&)>& key) {
  Json counts = Json::object();
  for (const ResultRow& row : table.rows) {
    Json& count = counts[key(row)];
    count = count.is_null() ? 1 : count.get<int>() + 1;
  }
  return counts;
}

std::string counts_text(const Json& counts) {
  std::vector<std::string> parts;
  for (const auto& [name, count] : counts.items()) {
    parts.push_back(fmt::format("{} ({})", name, count.dump()));
  }
  return join(parts);
}

std::string inspect_results(const fs::path& path, bool as_json) {
  const ResultTable table = read_results(path);
  Json facts = {{"results", path.string()}};
  for (const auto& [name, value] : table.context.items()) {
    if (!value.is_structured()) facts[name] = value;
  }
  std::size_t failed = 0;
  std::size_t with_heads = 0;
  for (const ResultRow& row : table.rows) {
    failed += row.error ? 1 : 0;
    with_heads += row.per_head.empty() ? 0 : 1;
  }
  facts["rows"] = table.rows.size();
  facts["failed_rows"] = failed;
  facts["rows_with_per_head_values"] = with_heads;
  const Json inputs = count_by(table, [](const ResultRow& row) {
    return fmt::format("{} layer {} seqlen {}", row.input, row.layer, row.seqlen);
  });
  const Json methods = count_by(table, [](const ResultRow& row) { return row.method; });
  facts["inputs"] = as_json ? inputs : Json(counts_text(inputs));
  facts["methods"] = as_json ? methods : Json(counts_text(methods));
  return as_json ? json_text(facts, 1) + "\n" : render_facts(facts);
}

bool is_results(const fs::path& path) {
  if (is_folder(path)) {
    return file_exists(path / kHdf5ResultsName) || file_exists(path / kJsonResultsName);
  }
  return path.extension() == ".json" ? !path.string().ends_with(".safetensors.index.json")
                                     : is_results_hdf5(path);
}

int run_inspect(const std::string& name, const std::string& format) {
  const bool as_json = parse_report_format(format, {"text", "json"}) == ReportFormat::kJson;
  const fs::path path = name;
  if (!file_exists(path)) throw InputError(fmt::format("{}: no such file or folder", name));
  std::string text;
  if (is_results(path)) {
    text = inspect_results(path, as_json);
  } else if (is_folder(path) && file_exists(path / "config.json")) {
    text = inspect_tensors(path, model_facts(path), as_json);
  } else {
    text = inspect_tensors(path, {{"file", name}}, as_json);
  }
  print_result(text);
  return kExitDone;
}

}  // namespace

void add_inspect_command(CLI::App& app, int& exit_code) {
  struct InspectOptions {
    std::string path;
    std::string format = "text";
  };
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command =
      add_command(app, "inspect", "What a tensor file, a model directory or a results file holds",
                  "s2o inspect data/tiny-llama\n  s2o inspect results/quickstart/results.h5");
  command->add_option("path", options->path, "A file or a folder")->required();
  command->add_option("--format", options->format, "text or json")->capture_default_str();
  command->callback(
      [options, &exit_code] { exit_code = run_inspect(options->path, options->format); });
}

}  // namespace s2o
