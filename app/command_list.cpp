// `s2o list`: what this build holds and what this machine can run.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "app/commands.h"
#include "app/describe_methods.h"
#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/text.h"
#include "lib/eval/backend.h"
#include "lib/eval/config_schema.h"
#include "lib/input/formats/format.h"
#include "lib/metrics/metric.h"
#include "lib/prefill/columns.h"
#include "lib/prefill/prefill_backend.h"
#include "lib/prefill/prefill_schema.h"
#include "lib/ranks/mpi.h"
#include "lib/report/paper_table.h"
#include "lib/report/report_table.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

Json describe_config_methods() { return describe_methods(true); }

Json describe_prefill_columns() {
  Json items = Json::array();
  for (const MetricColumn& column : prefill_columns()) {
    items.push_back({{"name", column.name}, {"unit", column.unit}, {"summary", column.help}});
  }
  return items;
}

Json describe_metrics() {
  Json items = Json::array();
  for (const Metric* metric : all_metrics()) {
    for (const MetricColumn& column : metric->columns) {
      items.push_back({{"name", column.name},
                       {"unit", column.unit},
                       {"per_head", column.per_head},
                       {"is_column", column.is_column},
                       {"summary", column.help}});
    }
  }
  return items;
}

Json describe_formats() {
  Json items = Json::array();
  for (const Format* format : all_formats()) {
    items.push_back({{"name", format->name()},
                     {"extensions", join(format->extensions())},
                     {"can_write", format->can_write()},
                     {"summary", format->summary()}});
  }
  return items;
}

Json describe_tables() {
  Json items = Json::array();
  for (const PaperTable* table : all_paper_tables()) {
    items.push_back({{"name", table->name}, {"summary", table->summary}});
  }
  return items;
}

Json describe_backend_items(const std::vector<BackendItem>& list) {
  Json items = Json::array();
  for (const BackendItem& item : list) {
    items.push_back({{"name", item.name}, {"usable", item.usable}, {"detail", item.detail}});
  }
  return items;
}
Json describe_kernels() { return describe_backend_items(list_kernels()); }
Json describe_devices() {
  std::vector<BackendItem> items = list_devices();
  const MpiStatus mpi = query_mpi();
  items.push_back({.name = "mpi", .usable = mpi.usable, .detail = mpi.detail});
  const SumStatus nccl = query_sums();
  items.push_back({.name = "nccl", .usable = nccl.usable, .detail = nccl.detail});
  return describe_backend_items(items);
}

struct Topic {
  const char* name;
  const char* title;
  Json (*describe)();
  std::vector<std::string> text_columns;
};

const std::vector<Topic>& all_topics() {
  static const std::vector<Topic> kTopics = {
      {"methods", "Methods", describe_config_methods, {"name", "knob", "summary"}},
      {"metrics", "Metrics", describe_metrics, {"name", "unit", "per_head", "summary"}},
      {"prefill_columns",
       "Columns of s2o prefill",
       describe_prefill_columns,
       {"name", "unit", "summary"}},
      {"formats",
       "Tensor file formats",
       describe_formats,
       {"name", "extensions", "can_write", "summary"}},
      {"kernels", "Kernels", describe_kernels, {"name", "usable", "detail"}},
      {"tables", "Paper tables (s2o table --table NAME)", describe_tables, {"name", "summary"}},
      {"devices", "Devices", describe_devices, {"name", "usable", "detail"}}};
  return kTopics;
}

std::string cell_text(const Json& value) {
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) {
    std::vector<std::string> parts;
    for (const Json& element : value) parts.push_back(cell_text(element));
    return join(parts);
  }
  return value.is_null() ? "" : value.dump();
}

std::string render_text(const std::string& title, const Json& items,
                        const std::vector<std::string>& columns) {
  ReportTable table = {.title = title};
  for (const std::string& column : columns) {
    table.columns.push_back({.name = column, .left_aligned = true});
  }
  for (const Json& item : items) {
    std::vector<ReportCell> row;
    for (const std::string& column : columns) row.push_back(text_cell(cell_text(item[column])));
    table.rows.push_back(std::move(row));
  }
  return render_report({.view = {table}}, ReportFormat::kText);
}

// One method with its parameters.
std::string render_method(const Json& method) {
  std::string text = fmt::format("{}: {}\nSource: {}\nKnob: {}\n", cell_text(method["title"]),
                                 cell_text(method["summary"]), cell_text(method["source"]),
                                 method["knob"] == "" ? "none" : cell_text(method["knob"]));
  if (method["params"].empty()) return text + "Parameters: none\n";
  return text + "\n" +
         render_text("Parameters", method["params"],
                     {"name", "default", "type", "min", "max", "choices", "help"});
}

struct ListOptions {
  std::string topic;
  std::string method;
  std::string format = "text";
};

const Topic& find_topic(const std::string& name) {
  std::vector<std::string> names;
  for (const Topic& topic : all_topics()) {
    if (topic.name == name) return topic;
    names.emplace_back(topic.name);
  }
  throw ConfigError(fmt::format("list {}: unknown topic{}; topics: {}", name,
                                did_you_mean(name, names), join(names)));
}

int run_list(const ListOptions& options) {
  const bool as_json = parse_report_format(options.format, {"text", "json"}) == ReportFormat::kJson;
  if (options.topic == "schema") {
    print_result(config_schema().dump(2) + "\n");
    return kExitDone;
  }
  if (options.topic == "prefill_schema") {
    print_result(prefill_config_schema().dump(2) + "\n");
    return kExitDone;
  }
  std::vector<Topic> topics = all_topics();
  if (!options.topic.empty()) topics = {find_topic(options.topic)};
  if (!options.method.empty()) {
    if (options.topic != "methods") {
      throw ConfigError(
          fmt::format("list {} {}: only methods have details", options.topic, options.method));
    }
  }
  Json document = Json::object();
  std::vector<std::string> blocks;
  for (const Topic& topic : topics) {
    Json items = topic.describe();
    if (!options.method.empty()) {
      items = Json::array({describe_method(find_method(options.method), true)});
      blocks.push_back(render_method(items[0]));
    } else {
      blocks.push_back(render_text(topic.title, items, topic.text_columns));
    }
    document[topic.name] = std::move(items);
  }
  print_result(as_json ? document.dump(1) + "\n" : join(blocks, "\n"));
  return kExitDone;
}

}  // namespace

void add_list_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ListOptions>();
  CLI::App* command = add_command(app, "list", "What this build and this machine can do",
                                  "s2o list methods\n  s2o list methods s2o");
  command->add_option(
      "topic", options->topic,
      "methods, metrics, prefill_columns, formats, kernels, tables or devices [all]");
  command->add_option("method", options->method, "A method, to see its parameters");
  command->add_option("--format", options->format, "text or json")->capture_default_str();
  command->callback([options, &exit_code] { exit_code = run_list(*options); });
}

}  // namespace s2o
