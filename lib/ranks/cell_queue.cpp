#include "lib/ranks/cell_queue.h"

#include <algorithm>

namespace s2o {

CellQueue::CellQueue(std::size_t num_cells, std::size_t cells_per_input,
                     const std::function<bool(std::size_t)>& has_row) {
  if (num_cells == 0) return;
  inputs_.resize((num_cells + cells_per_input - 1) / cells_per_input);
  for (std::size_t cell = 0; cell < num_cells; ++cell) {
    if (has_row(cell)) continue;
    inputs_[cell / cells_per_input].push_back(cell);
    ++left_;
  }
}

bool CellQueue::has_owner(std::size_t input) const {
  return std::any_of(owned_.begin(), owned_.end(),
                     [input](const auto& entry) { return entry.second == input; });
}

std::size_t CellQueue::take(int rank, std::size_t input) {
  const std::size_t cell = inputs_[input].front();
  inputs_[input].pop_front();
  --left_;
  owned_[rank] = input;
  in_hand_[rank] = cell;
  return cell;
}

std::optional<std::size_t> CellQueue::next(int rank) {
  if (const auto own = owned_.find(rank); own != owned_.end() && !inputs_[own->second].empty()) {
    return take(rank, own->second);
  }
  std::size_t longest = 0;
  for (std::size_t input = 0; input < inputs_.size(); ++input) {
    if (inputs_[input].empty()) continue;
    if (!has_owner(input)) return take(rank, input);
    if (inputs_[longest].size() < inputs_[input].size()) longest = input;
  }
  if (left_ == 0 || inputs_[longest].size() < 2) return std::nullopt;
  return take(rank, longest);
}

void CellQueue::leave(int rank) {
  owned_.erase(rank);
  in_hand_.erase(rank);
}

std::optional<std::size_t> CellQueue::in_hand(int rank) const {
  const auto found = in_hand_.find(rank);
  return found == in_hand_.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace s2o
