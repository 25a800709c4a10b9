#include "lib/ranks/cell_queue.h"

#include <algorithm>
#include <functional>

namespace s2o {

CellQueue::CellQueue(std::size_t num_cells, std::size_t cells_per_input,
                     const std::function<bool(std::size_t)>& has_row,
                     const std::function<double(std::size_t)>& length) {
  if (num_cells == 0) return;
  inputs_.resize((num_cells + cells_per_input - 1) / cells_per_input);
  for (std::size_t input = 0; input < inputs_.size(); ++input) {
    inputs_[input].length = length(input * cells_per_input);
    order_.push_back(input);
  }
  std::ranges::stable_sort(order_, std::greater(),
                           [this](std::size_t input) { return inputs_[input].length; });
  for (std::size_t cell = 0; cell < num_cells; ++cell) {
    if (has_row(cell)) continue;
    inputs_[cell / cells_per_input].cells.push_back(cell);
    ++left_;
  }
}

int CellQueue::num_owners(std::size_t input) const {
  return static_cast<int>(
      std::ranges::count_if(owned_, [input](const auto& entry) { return entry.second == input; }));
}

double CellQueue::busy(std::size_t input) const {
  const Input& known = inputs_[input];
  const double mean = known.num_timed == 0 ? 1.0 : known.seconds / known.num_timed;
  return static_cast<double>(known.cells.size()) * mean / num_owners(input);
}

bool CellQueue::worth_sharing(std::size_t input) const {
  const Input& known = inputs_[input];
  if (known.num_timed == 0) return known.cells.size() >= 2;
  return known.seconds_with_load < busy(input);
}

std::size_t CellQueue::take(int rank, std::size_t input) {
  const std::size_t cell = inputs_[input].cells.front();
  inputs_[input].cells.pop_front();
  --left_;
  const auto owned = owned_.find(rank);
  in_hand_[rank] = {
      .cell = cell, .input = input, .loads = owned == owned_.end() || owned->second != input};
  owned_[rank] = input;
  return cell;
}

std::optional<std::size_t> CellQueue::next(int rank) {
  if (const auto own = owned_.find(rank);
      own != owned_.end() && !inputs_[own->second].cells.empty()) {
    return take(rank, own->second);
  }
  std::optional<std::size_t> busiest;
  for (const std::size_t input : order_) {
    if (inputs_[input].cells.empty()) continue;
    if (num_owners(input) == 0) return take(rank, input);
    if (worth_sharing(input) && (!busiest || busy(*busiest) < busy(input))) busiest = input;
  }
  return busiest ? std::optional(take(rank, *busiest)) : std::nullopt;
}

void CellQueue::finished(int rank, double seconds) {
  const auto found = in_hand_.find(rank);
  if (found == in_hand_.end()) return;
  Input& input = inputs_[found->second.input];
  if (!found->second.loads) {
    input.seconds += seconds;
    ++input.num_timed;
  } else if (input.seconds_with_load == 0.0 || seconds < input.seconds_with_load) {
    input.seconds_with_load = seconds;
  }
  in_hand_.erase(found);
}

void CellQueue::leave(int rank) {
  owned_.erase(rank);
  in_hand_.erase(rank);
}

std::optional<std::size_t> CellQueue::in_hand(int rank) const {
  const auto found = in_hand_.find(rank);
  return found == in_hand_.end() ? std::nullopt : std::optional(found->second.cell);
}

}  // namespace s2o
