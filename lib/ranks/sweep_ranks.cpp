#include "lib/ranks/sweep_ranks.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/core/failure.h"
#include "lib/core/log.h"
#include "lib/core/text.h"
#include "lib/ranks/cell_queue.h"
#include "lib/report/journal.h"
#include "lib/report/result_store.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

Json join_to_json(const RankJoin& join) {
  Json expected = Json::array();
  for (std::size_t cell = 0; cell < join.expected.size(); ++cell) {
    expected.push_back(entry_to_json({.cell = cell, .row = join.expected[cell]}));
  }
  return {{"host", join.host},
          {"pid", join.pid},
          {"device", join.device},
          {"device_ids", join.device_ids},
          {"context", join.context},
          {"cells_per_input", join.cells_per_input},
          {"expected", std::move(expected)}};
}

RankJoin join_from_json(const Json& json, const std::string& where) {
  RankJoin join = {.host = json.at("host").get<std::string>(),
                   .pid = json.at("pid").get<int>(),
                   .device = json.at("device").get<std::string>(),
                   .device_ids = json.at("device_ids").get<std::vector<std::string>>(),
                   .context = json.at("context"),
                   .cells_per_input = json.at("cells_per_input").get<std::size_t>()};
  for (const Json& entry : json.at("expected")) {
    join.expected.push_back(entry_from_json(entry, where).row);
  }
  return join;
}

// What two ranks must share.
const std::vector<std::string> kSameFields = {"s2o_version", "git_commit", "config", "inputs"};

}  // namespace

RankJoin describe_rank(std::string device) {
  std::array<char, 256> host = {};
  if (::gethostname(host.data(), host.size() - 1) != 0) host.fill('\0');
  return {.host = host.data(), .pid = ::getpid(), .device = std::move(device)};
}

void RankWorker::join(const RankJoin& join) {
  log_info("rank {} of {}: {} on {}, process {}", link_.place().rank, link_.place().size,
           join.device, join.host, join.pid);
  link_.send({.kind = FrameKind::kJoin, .json = join_to_json(join)});
}

std::optional<std::size_t> RankWorker::next() {
  const Frame frame = link_.receive();
  if (frame.kind == FrameKind::kEnd) return std::nullopt;
  if (frame.kind != FrameKind::kCell) throw Error("ranks: expected a cell");
  return frame.json.at("cell").get<std::size_t>();
}

void RankWorker::add(std::size_t cell, const ResultRow& row, const std::vector<float>& out) {
  Frame frame = {.kind = FrameKind::kRow, .json = entry_to_json({.cell = cell, .row = row})};
  frame.bytes.resize(out.size() * sizeof(float));
  if (!out.empty()) std::memcpy(frame.bytes.data(), out.data(), frame.bytes.size());
  link_.send(frame);
}

void RankWorker::done(const EvalSummary& summary) {
  Json json = {{"failed", summary.failed}, {"succeeded", summary.succeeded}};
  if (summary.first_failure) json["first_failure"] = failure_to_json(summary.first_failure);
  link_.send({.kind = FrameKind::kDone, .json = std::move(json)});
}

std::string RankLead::name_of(int rank) const {
  const auto index = static_cast<std::size_t>(rank);
  const bool known = index < joins_.size() && !joins_[index].host.empty();
  return known ? fmt::format("rank {} on {} ({})", rank, joins_[index].host, joins_[index].device)
               : fmt::format("rank {}", rank);
}

void RankLead::gather() {
  const auto size = static_cast<std::size_t>(hub_.size());
  joins_.resize(size);
  std::map<int, Json> failures;
  std::set<int> seen;
  while (seen.size() < size) {
    throw_if_cancelled();
    const std::optional<RankHub::Arrived> arrived = hub_.receive();
    if (!arrived || !seen.insert(arrived->from).second) continue;
    const Frame& frame = arrived->frame;
    if (frame.kind == FrameKind::kJoin) {
      joins_[static_cast<std::size_t>(arrived->from)] =
          join_from_json(frame.json, fmt::format("rank {}", arrived->from));
    } else if (frame.kind == FrameKind::kDied) {
      failures[arrived->from] = {{"type", "error"},
                                 {"text", "its process " + frame.json.value("text", "")}};
    } else {
      failures[arrived->from] = frame.json;
    }
  }
  if (!failures.empty()) {
    const auto& [rank, first] = *failures.begin();
    const bool all_same =
        failures.size() == size &&
        std::all_of(failures.begin(), failures.end(),
                    [&first = first](const auto& entry) { return entry.second == first; });
    std::rethrow_exception(
        failure_from_json(first, all_same ? "" : fmt::format("rank {}: ", rank)));
  }
  check_same();
  check_devices();
  context_ = joins_.front().context;
  Json ranks = Json::array();
  for (std::size_t rank = 0; rank < size; ++rank) {
    ranks.push_back({{"rank", rank}, {"host", joins_[rank].host}, {"device", joins_[rank].device}});
  }
  context_["ranks"] = std::move(ranks);
}

void RankLead::check_same() const {
  for (std::size_t rank = 1; rank < joins_.size(); ++rank) {
    for (const std::string& field : kSameFields) {
      const Json ours = joins_.front().context.value(field, Json());
      const Json theirs = joins_[rank].context.value(field, Json());
      if (ours == theirs) continue;
      const std::string found = ours.is_string()
                                    ? fmt::format("found {} and {}", ours.dump(), theirs.dump())
                                    : fmt::format("at {}", first_difference(ours, theirs));
      throw ConfigError(fmt::format(
          "{} and {} differ in {}: {}; all ranks need the same program, config and files",
          name_of(0), name_of(static_cast<int>(rank)), field, found));
    }
  }
}

void RankLead::check_devices() const {
  std::map<std::pair<std::string, std::string>, int> owners;
  for (std::size_t rank = 0; rank < joins_.size(); ++rank) {
    for (const std::string& id : joins_[rank].device_ids) {
      const auto [owner, is_new] = owners.insert({{joins_[rank].host, id}, static_cast<int>(rank)});
      if (is_new) continue;
      throw UnsupportedError(fmt::format(
          "{} and {} share a GPU ({}): start one rank for each GPU of a host, or run on the CPU "
          "(--device cpu)",
          name_of(owner->second), name_of(static_cast<int>(rank)), id));
    }
  }
}

EvalSummary RankLead::run(const Rows& rows) {
  CellQueue queue(
      joins_.front().expected.size(), joins_.front().cells_per_input, rows.has_row,
      [this](std::size_t cell) { return static_cast<double>(expected()[cell].seqlen); });
  std::map<int, Clock::time_point> given;  // when a rank got what it has in hand
  EvalSummary summary;
  std::set<int> waiting;  // without a cell
  std::set<int> working;
  const auto count_failure = [&summary](std::size_t cells, const std::exception_ptr& failure) {
    summary.failed += cells;
    if (!summary.first_failure) summary.first_failure = failure;
  };
  const auto serve = [&] {
    for (auto rank = waiting.begin(); rank != waiting.end();) {
      const std::optional<std::size_t> cell = queue.next(*rank);
      if (!cell && queue.left() > 0) {
        ++rank;
        continue;
      }
      given[*rank] = Clock::now();
      hub_.send(*rank, cell ? Frame{.kind = FrameKind::kCell, .json = {{"cell", *cell}}}
                            : Frame{.kind = FrameKind::kEnd});
      rank = waiting.erase(rank);
    }
  };
  const auto lose = [&](int rank, const std::string& text) {
    working.erase(rank);
    waiting.erase(rank);
    const std::optional<std::size_t> cell = queue.in_hand(rank);
    queue.leave(rank);
    const std::string what = fmt::format("{} {}", name_of(rank), text);
    log_error(cell ? fmt::format("{}; the cell in its hand is lost: {} on {}", what,
                                 expected()[*cell].method, expected()[*cell].input)
                   : what);
    count_failure(1, std::make_exception_ptr(Error(what)));
  };
  for (int rank = 0; rank < hub_.size(); ++rank) {
    working.insert(rank);
    waiting.insert(rank);
  }
  serve();
  while (!working.empty()) {
    throw_if_cancelled();
    const std::optional<RankHub::Arrived> arrived = hub_.receive();
    if (!arrived || !working.contains(arrived->from)) continue;
    const int from = arrived->from;
    const Frame& frame = arrived->frame;
    switch (frame.kind) {
      case FrameKind::kRow: {
        queue.finished(from, std::chrono::duration<double>(Clock::now() - given[from]).count());
        waiting.insert(from);
        serve();  // the rank goes on while its row is stored
        JournalEntry entry = entry_from_json(frame.json, name_of(from));
        entry.row.metrics["rank"] = from;
        std::vector<float> out(frame.bytes.size() / sizeof(float));
        if (!out.empty()) std::memcpy(out.data(), frame.bytes.data(), frame.bytes.size());
        rows.add(entry.cell, entry.row, out);
        break;
      }
      case FrameKind::kDone:
        working.erase(from);
        queue.leave(from);
        summary.succeeded += frame.json.value("succeeded", std::size_t{0});
        if (const auto failed = frame.json.value("failed", std::size_t{0}); failed > 0) {
          count_failure(failed, failure_from_json(frame.json.value("first_failure", Json())));
        }
        break;
      case FrameKind::kFail:
        if (frame.json.value("type", "") == "interrupted") throw InterruptedError();
        lose(from, frame.json.value("text", ""));
        break;
      case FrameKind::kDied:
        lose(from, frame.json.value("text", ""));
        break;
      default:
        throw Error(fmt::format("ranks: {} sent what nobody expects", name_of(from)));
    }
    serve();
  }
  if (queue.left() > 0) {
    throw Error(fmt::format("no rank is left; {} cells were not computed", queue.left()));
  }
  return summary;
}

}  // namespace s2o
