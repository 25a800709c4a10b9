#include "lib/report/peer_times.h"

#include <fmt/format.h>

#include "lib/config/json_reader.h"
#include "lib/core/error.h"

namespace s2o {

std::vector<PeerTime> read_peer_times(const std::filesystem::path& file) {
  const nlohmann::ordered_json document = read_json_file(file);
  const std::string path = file.string() + ": ";
  const JsonReader root(document, path, {"context", "rows"});
  const nlohmann::ordered_json& rows = root.at("rows");
  if (!rows.is_array()) throw_wrong_json(rows, root.path_of("rows"), "a list of rows");
  std::vector<PeerTime> times;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const JsonReader row(rows[i], json_element_path(root.path_of("rows"), i),
                         {"seqlen", "head_dim", "num_q_heads", "num_kv_heads", "dtype", "peer",
                          "ms", "p10_ms", "p90_ms", "tflops", "error"});
    if (row.at("ms").is_null()) continue;
    constexpr std::int64_t kMost = 1 << 20;
    times.push_back({.peer = row.get_string("peer"),
                     .seqlen = row.get_int("seqlen", {}, 1),
                     .num_q_heads = static_cast<int>(row.get_int("num_q_heads", {}, 1, kMost)),
                     .num_kv_heads = static_cast<int>(row.get_int("num_kv_heads", {}, 1, kMost)),
                     .head_dim = static_cast<int>(row.get_int("head_dim", {}, 1, kMost)),
                     .ms = row.get_real("ms", {}, 1e-9)});
  }
  if (times.empty()) throw ConfigError(fmt::format("{}no row has a time", path));
  return times;
}

}  // namespace s2o
