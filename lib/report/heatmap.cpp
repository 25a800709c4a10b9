#include "lib/report/heatmap.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"

namespace s2o {
namespace {

constexpr int kPanelsPerRow = 4;
constexpr int kMargin = 24;
constexpr int kTitleHeight = 32;
constexpr int kLabelHeight = 48;  // two lines above each panel
constexpr int kLegendHeight = 84;
constexpr int kTextScale = 2;
constexpr int kLineHeight = 20;

// The mass of a pixel is shown over this many decades.
constexpr double kMassDecades = 4.0;

constexpr Color kNothing{222, 222, 222};  // no causal pair here
constexpr Color kStopLine{214, 39, 40};
constexpr Color kFixedLine{255, 255, 255};
constexpr Color kFrame{120, 120, 120};

DenseReference dense_reference(const AttentionInput& input) {
  const Problem& problem = input.problem;
  const SparsePlan plan = find_method("dense").plan_cpu({input, {}}, ParamSet());
  const auto rows =
      static_cast<std::size_t>(problem.num_q_heads) * static_cast<std::size_t>(problem.seqlen);
  DenseReference reference;
  reference.out.resize(rows * static_cast<std::size_t>(problem.head_dim));
  reference.lse.resize(rows);
  attention_ref(problem, PlanPointers(plan).view(), input.q.data(), input.k.data(), input.v.data(),
                reference.out.data(), reference.lse.data(), nullptr);
  return reference;
}

bool has_early_stop(const SparsePlan& plan) {
  for (const PlanPass& pass : plan.passes) {
    for (const PlanItem& item : pass.items) {
      if (item.stoppable) return true;
    }
  }
  return false;
}

// Shows values in [floor, top] on a log scale; top is nearly the largest value, so that a few
// bright pixels (the first tokens attend to few keys) do not darken the rest.
struct MassScale {
  double top = 0.0;                       // log10
  double operator()(double mass) const {  // 0..1
    return mass <= 0.0 ? 0.0 : 1.0 + (std::log10(mass) - top) / kMassDecades;
  }
};

MassScale mass_scale(const PixelGrid& grid) {
  std::vector<double> masses;
  for (double value : grid.values) {
    if (value > 0.0) masses.push_back(value);
  }
  if (masses.empty()) return {};
  const auto rank = static_cast<std::ptrdiff_t>(0.995 * static_cast<double>(masses.size() - 1));
  std::nth_element(masses.begin(), masses.begin() + rank, masses.end());
  return {std::log10(masses[static_cast<std::size_t>(rank)])};
}

template <class ColorOf>
void draw_grid(Image& image, PanelPlace place, int pixels, const PixelGrid& grid,
               ColorOf&& color_of) {
  for (int y = 0; y < pixels; ++y) {
    const int row = static_cast<int>(static_cast<std::int64_t>(y) * grid.rows / pixels);
    for (int x = 0; x < pixels; ++x) {
      const int column = static_cast<int>(static_cast<std::int64_t>(x) * grid.columns / pixels);
      const double value = grid.at(row, column);
      image.set(place.x + x, place.y + y, value == kNoValue ? kNothing : color_of(value));
    }
  }
  image.frame(place.x, place.y, pixels, pixels, kFrame);
}

void draw_label(Image& image, PanelPlace place, int pixels, const std::string& first,
                const std::string& second) {
  const auto fitting = static_cast<std::size_t>(pixels / text_width("x", kTextScale));
  const auto cut = [fitting](const std::string& text) {
    return text.size() <= fitting ? text : text.substr(0, fitting - 2) + "..";
  };
  image.text(place.x, place.y - 2 * kLineHeight - 2, cut(first), kTextScale, kInk);
  image.text(place.x, place.y - kLineHeight - 2, cut(second), kTextScale, kInk);
}

// A vertical step line through one value per grid row.
void draw_step_line(Image& image, PanelPlace place, int pixels, const VisitingView& view,
                    const std::vector<int>& steps, Color color, int width) {
  const auto x_of = [&](int row) {
    return place.x +
           static_cast<int>(static_cast<std::int64_t>(steps[static_cast<std::size_t>(row)]) *
                            pixels / view.mass.columns);
  };
  int previous_x = x_of(0);
  for (int y = 0; y < pixels; ++y) {
    const int row = static_cast<int>(static_cast<std::int64_t>(y) * view.mass.rows / pixels);
    const int x = x_of(row);
    const int from = std::min(previous_x, x);
    const int length = std::max(previous_x, x) - from + width;
    const int left = std::clamp(from - width / 2, place.x, place.x + pixels - width);
    image.fill(left, place.y + y, std::min(length, place.x + pixels - left), 1, color);
    previous_x = x;
  }
}

void draw_visiting(Image& image, PanelPlace place, int pixels, const VisitingView& view,
                   const MassScale& scale) {
  draw_grid(image, place, pixels, view.mass,
            [&scale](double mass) { return map_color(ColorMap::kMass, scale(mass)); });
  draw_step_line(image, place, pixels, view, view.fixed, kFixedLine, 2);
  draw_step_line(image, place, pixels, view, view.executed, kStopLine, 3);
}

void draw_bar(Image& image, int x, int y, ColorMap map, const std::string& title,
              const std::string& low, const std::string& high) {
  constexpr int kBarWidth = 200;
  constexpr int kBarHeight = 16;
  image.text(x, y, title, kTextScale, kInk);
  for (int i = 0; i < kBarWidth; ++i) {
    image.fill(x + i, y + kLineHeight, 1, kBarHeight, map_color(map, i / (kBarWidth - 1.0)));
  }
  image.frame(x, y + kLineHeight, kBarWidth, kBarHeight, kFrame);
  const int below = y + kLineHeight + kBarHeight + 4;
  image.text(x, below, low, kTextScale, kInk);
  image.text(x + kBarWidth - text_width(high, kTextScale), below, high, kTextScale, kInk);
}

int num_drawn_panels(const Heatmap& heatmap) {
  int panels = 1;
  for (const HeatmapPanel& panel : heatmap.panels) panels += panel.visiting ? 2 : 1;
  return panels;
}

std::string power_text(double exponent) { return fmt::format("{:.0e}", std::pow(10.0, exponent)); }

void draw_legend(Image& image, const Heatmap& heatmap, const MassScale& scale, int y) {
  draw_bar(image, kMargin, y, ColorMap::kMass, "attention mass",
           power_text(scale.top - kMassDecades), power_text(scale.top));
  draw_bar(image, kMargin + 260, y, ColorMap::kShare, "pairs visited", "0", "1");
  const int x = kMargin + 520;
  image.text(x, y, "rows: queries, columns: keys", kTextScale, kInk);
  const bool any_visiting =
      std::any_of(heatmap.panels.begin(), heatmap.panels.end(),
                  [](const HeatmapPanel& panel) { return panel.visiting.has_value(); });
  if (!any_visiting) return;
  const int line = y + kLineHeight + 2;
  image.fill(x, line + 6, 24, 3, kStopLine);
  image.text(x + 32, line, "early stop", kTextScale, kInk);
  image.fill(x, line + kLineHeight, 24, 16, kFrame);
  image.fill(x, line + kLineHeight + 7, 24, 2, kFixedLine);
  image.text(x + 32, line + kLineHeight, "end of own segment", kTextScale, kInk);
}

}  // namespace

Heatmap compute_heatmap(const AttentionInput& input, int q_head,
                        const std::vector<HeatmapMethod>& methods, int pixels) {
  const std::vector<float> lse = dense_lse(input, q_head);
  Heatmap heatmap{fmt::format("{}  layer {}  head {}  seqlen {}", input.name, input.layer, q_head,
                              input.problem.seqlen),
                  pooled_attention(input, q_head, lse, pixels),
                  {}};
  DenseReference reference;
  const bool needs_reference =
      std::any_of(methods.begin(), methods.end(),
                  [](const HeatmapMethod& method) { return method.method->info().is_oracle; });
  if (needs_reference) reference = dense_reference(input);
  for (const HeatmapMethod& method : methods) {
    const SparsePlan plan = method.method->plan_cpu({input, reference}, method.params);
    const ExecutedHead head = execute_head(input, plan, q_head);
    HeatmapPanel panel{method.label, head.work.compute_density(), visited_share(head, pixels), {}};
    if (has_early_stop(plan)) panel.visiting = visiting_view(head, lse);
    heatmap.panels.push_back(std::move(panel));
  }
  return heatmap;
}

PanelPlace panel_place(int index, int pixels) {
  const int column = index % kPanelsPerRow;
  const int row = index / kPanelsPerRow;
  return {kMargin + column * (pixels + kMargin),
          kMargin + kTitleHeight + kLabelHeight + row * (pixels + kLabelHeight + kMargin)};
}

Image draw_heatmap(const Heatmap& heatmap, int pixels) {
  const int panels = num_drawn_panels(heatmap);
  const PanelPlace widest = panel_place(std::min(panels, kPanelsPerRow) - 1, pixels);
  const PanelPlace lowest = panel_place(panels - 1, pixels);
  // The legend needs room for its three parts, however few panels there are.
  const int width = std::max(widest.x + pixels + kMargin, kMargin + 880);
  const int legend_y = lowest.y + pixels + kMargin;
  Image image(width, legend_y + kLegendHeight);
  image.text(kMargin, kMargin / 2, heatmap.title, kTextScale, kInk);

  const MassScale scale = mass_scale(heatmap.attention);
  PanelPlace place = panel_place(0, pixels);
  draw_label(image, place, pixels, "attention", "softmax mass, log scale");
  draw_grid(image, place, pixels, heatmap.attention,
            [&scale](double mass) { return map_color(ColorMap::kMass, scale(mass)); });
  int index = 1;
  for (const HeatmapPanel& panel : heatmap.panels) {
    place = panel_place(index++, pixels);
    draw_label(image, place, pixels, panel.label,
               fmt::format("density {:.3f}", panel.compute_density));
    draw_grid(image, place, pixels, panel.share,
              [](double share) { return map_color(ColorMap::kShare, share); });
    if (!panel.visiting) continue;
    place = panel_place(index++, pixels);
    const MassScale step_scale = mass_scale(panel.visiting->mass);
    draw_label(image, place, pixels, panel.label,
               fmt::format("steps: mass {} to {}", power_text(step_scale.top - kMassDecades),
                           power_text(step_scale.top)));
    draw_visiting(image, place, pixels, *panel.visiting, step_scale);
  }
  draw_legend(image, heatmap, scale, legend_y);
  return image;
}

}  // namespace s2o
