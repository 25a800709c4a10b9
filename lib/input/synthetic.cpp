#include "lib/input/synthetic.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/core/random.h"

namespace s2o {
namespace {

constexpr int kNumSinks = 4;
constexpr int kStripeSpacing = 128;
constexpr int kSlashPlanes = 48;
constexpr int kSlashesPerHead = 4;
constexpr int kNeedleRun = 64;
constexpr int kNumTopics = 64;
constexpr std::int64_t kPartTokens = 8192;  // filled by one thread; whole runs of needles
static_assert(kPartTokens % kNeedleRun == 0);

// Streams of the counter-based generator, one per independent quantity.
enum Stream : std::uint64_t {
  kStreamQ = 1,
  kStreamK,
  kStreamV,
  kStreamKeyNorm,
  kStreamDirection,
  kStreamStripe,
  kStreamSlash,
  kStreamNeedle,
  kStreamTopic,
  kStreamTopicValue,
  kStreamTopicDirection,
};

struct Rotation {
  double cosine;
  double sine;
};
int slash_planes(int head_dim) { return std::min(kSlashPlanes, head_dim / 2); }
bool has_slashes(const std::string& pattern) { return pattern == "slashes" || pattern == "mixed"; }

class Synthesizer {
 public:
  Synthesizer(const ParamSet& params, std::uint64_t seed)
      : seed_(seed),
        pattern_(params.get_choice("pattern")),
        // Parts add up in "mixed": a smaller boost each keeps its maps from collapsing to a few
        // keys.
        strength_(params.get_real("strength") * (pattern_ == "mixed" ? 0.6 : 1.0)),
        noise_(params.get_real("noise")) {
    input_.name = "synthetic/" + pattern_;
    input_.dtype = StorageDType::kF32;
    input_.problem.seqlen = params.get_int("seqlen");
    input_.problem.num_q_heads = static_cast<int>(params.get_int("num_q_heads"));
    input_.problem.num_kv_heads = static_cast<int>(params.get_int("num_kv_heads"));
    input_.problem.head_dim = static_cast<int>(params.get_int("head_dim"));
    check_synthetic(params, "synthetic");
  }

  AttentionInput make() {
    const Problem& problem = input_.problem;
    const auto kv_size = static_cast<std::size_t>(problem.num_kv_heads * problem.seqlen) *
                         static_cast<std::size_t>(problem.head_dim);
    input_.k.resize(kv_size);
    input_.v.resize(kv_size);
    input_.q.resize(kv_size * static_cast<std::size_t>(problem.group_size()));
    draw_topics();
    if (has_slashes(pattern_)) make_rotations();
    for_each_part(problem.num_kv_heads,
                  [this](int head, const Tokens& tokens) { fill_keys_and_values(head, tokens); });
    if (has("needles")) {
      parallel_for(problem.num_kv_heads,
                   [this](std::int64_t head) { add_needles(static_cast<int>(head)); });
    }
    for_each_part(problem.num_q_heads,
                  [this](int head, const Tokens& tokens) { fill_queries(head, tokens); });
    return std::move(input_);
  }

 private:
  struct Tokens {
    std::int64_t begin;
    std::int64_t end;
  };
  // Calls body(head, tokens) for all tokens of all heads, in parallel.
  template <class Body>
  void for_each_part(int num_heads, const Body& body) const {
    const std::int64_t n = input_.problem.seqlen;
    const std::int64_t parts = (n + kPartTokens - 1) / kPartTokens;
    parallel_for(num_heads * parts, [&](std::int64_t i) {
      const std::int64_t begin = i % parts * kPartTokens;
      body(static_cast<int>(i / parts), Tokens{begin, std::min(begin + kPartTokens, n)});
    });
  }

  bool has(const char* pattern) const { return pattern_ == pattern || pattern_ == "mixed"; }

  // Amplitude that two aligned unit vectors need so that they add `boost` to the scaled logit.
  double amplitude(double boost) const {
    return std::sqrt(boost * std::sqrt(static_cast<double>(input_.problem.head_dim)));
  }

  // A unit direction shared by queries and keys of a KV head; different `id`s are independent.
  std::vector<double> direction(Stream stream, std::uint64_t id) const {
    const int d = input_.problem.head_dim;
    const CounterRandom random(seed_, stream);
    std::vector<double> values(static_cast<std::size_t>(d));
    double norm = 0.0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = random.normal(id * static_cast<std::uint64_t>(d) + i);
      norm += values[i] * values[i];
    }
    for (double& value : values) value /= std::sqrt(norm);
    return values;
  }

  static void add(float* row, const std::vector<double>& unit, double scale) {
    for (std::size_t i = 0; i < unit.size(); ++i) row[i] += static_cast<float>(scale * unit[i]);
  }

  void draw_topics() {
    std::vector<double> cumulative(kNumTopics);
    double total = 0.0;
    for (int topic = 0; topic < kNumTopics; ++topic) {
      total += 1.0 / (topic + 1);
      cumulative[static_cast<std::size_t>(topic)] = total;
    }
    const CounterRandom random(seed_, kStreamTopic);
    topic_.resize(static_cast<std::size_t>(input_.problem.seqlen));
    for (std::size_t x = 0; x < topic_.size(); ++x) {
      topic_[x] = static_cast<int>(
          std::lower_bound(cumulative.begin(), cumulative.end(), random.uniform(x) * total) -
          cumulative.begin());
    }
  }

  // Directions of the topics of a KV head.
  std::vector<std::vector<double>> topic_directions(int kv_head) const {
    std::vector<std::vector<double>> directions;
    for (int topic = 0; topic < kNumTopics; ++topic) {
      directions.push_back(direction(kStreamTopicDirection, topic_id(kv_head, topic)));
    }
    return directions;
  }
  // Means of the values of the topics of a KV head, [kNumTopics, head_dim].
  std::vector<double> topic_values(int kv_head) const {
    const auto d = static_cast<std::size_t>(input_.problem.head_dim);
    const CounterRandom random(seed_, kStreamTopicValue);
    const std::uint64_t first = topic_id(kv_head, 0) * d;
    std::vector<double> values(kNumTopics * d);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = random.normal(first + i);
    return values;
  }

  bool is_stripe(int kv_head, std::int64_t x) const {
    const CounterRandom random(seed_, kStreamStripe);
    return random.below(static_cast<std::uint64_t>(kv_head) << 40 | static_cast<std::uint64_t>(x),
                        kStripeSpacing) == 0;
  }

  // Rotating planes: key x carries phase w_f x, query t carries the sum over its distances delta of
  // phase w_f (t - delta), so that their product peaks where t - x = delta.
  void add_rotation(float* row, std::int64_t position, double scale) const {
    const std::size_t planes = static_cast<std::size_t>(num_planes_);
    const double root = std::sqrt(static_cast<double>(planes));
    const double sine_sign = position < 0 ? -1.0 : 1.0;
    const Rotation* const turned =
        &rotations_[static_cast<std::size_t>(std::abs(position)) * planes];
    for (std::size_t f = 0; f < planes; ++f) {
      row[2 * f] += static_cast<float>(scale * turned[f].cosine / root);
      row[2 * f + 1] += static_cast<float>(scale * (sine_sign * turned[f].sine) / root);
    }
  }
  // Every head turns by the same angles.
  void make_rotations() {
    const std::int64_t n = input_.problem.seqlen;
    num_planes_ = slash_planes(input_.problem.head_dim);
    rotations_.resize(static_cast<std::size_t>(n * num_planes_));
    std::vector<double> frequencies;
    for (int f = 0; f < num_planes_; ++f) {
      frequencies.push_back(std::numbers::pi *
                            std::pow(1.0e-2, static_cast<double>(f) / num_planes_));
    }
    for_each_part(1, [&](int, const Tokens& tokens) {
      Rotation* turned = &rotations_[static_cast<std::size_t>(tokens.begin * num_planes_)];
      for (std::int64_t x = tokens.begin; x < tokens.end; ++x) {
        for (const double frequency : frequencies) {
          const double phase = frequency * static_cast<double>(x);
          *turned++ = {std::cos(phase), std::sin(phase)};
        }
      }
    });
  }

  // Key of needle n of a KV head and the first query of its run.
  struct Needle {
    std::int64_t key;
    std::int64_t first_query;
  };
  Needle needle(int kv_head, std::int64_t n) const {
    const CounterRandom random(seed_, kStreamNeedle);
    const std::uint64_t base =
        static_cast<std::uint64_t>(kv_head) << 40 | static_cast<std::uint64_t>(2 * n);
    const std::int64_t first_query = n * kNeedleRun;
    return {.key = random.below(base, std::max<std::int64_t>(first_query, 1)),
            .first_query = first_query};
  }

  void fill_keys_and_values(int kv_head, const Tokens& tokens) {
    const Problem& problem = input_.problem;
    const int d = problem.head_dim;
    const CounterRandom key_random(seed_, kStreamK);
    const CounterRandom norm_random(seed_, kStreamKeyNorm);
    const CounterRandom value_random(seed_, kStreamV);
    const auto shared = direction(kStreamDirection, static_cast<std::uint64_t>(kv_head));
    const auto topics = topic_directions(kv_head);
    const std::vector<double> topic_means = topic_values(kv_head);
    // q and k noise: the scaled logit has standard deviation noise * key norm.
    const double noise = pattern_ == "uniform" ? 0.0 : std::sqrt(noise_);
    for (std::int64_t x = tokens.begin; x < tokens.end; ++x) {
      float* k = input_.k.data() + problem.row_offset(kv_head, x);
      float* v = input_.v.data() + problem.row_offset(kv_head, x);
      const auto row = static_cast<std::uint64_t>(problem.row_offset(kv_head, x));
      const double key_norm =
          std::exp(0.5 * norm_random.normal(row / static_cast<std::uint64_t>(d)));
      const auto topic = static_cast<std::size_t>(topic_[static_cast<std::size_t>(x)]);
      const double* const mean = topic_means.data() + topic * static_cast<std::size_t>(d);
      const bool sink = has("sinks") && x < kNumSinks;
      for (int i = 0; i < d; ++i) {
        const auto c = static_cast<std::uint64_t>(i);
        k[i] = static_cast<float>(noise * key_norm * key_random.normal(row + c));
        v[i] = static_cast<float>((sink ? 0.05 : 1.0) * (value_random.normal(row + c) + mean[i]));
      }
      if (sink || (has("stripes") && is_stripe(kv_head, x))) add(k, shared, amplitude(strength_));
      if (has_slashes(pattern_)) add_rotation(k, x, amplitude(strength_));
      if (has("heavy_tail")) add(k, topics[topic], amplitude(strength_));
    }
  }

  void add_needles(int kv_head) {
    const Problem& problem = input_.problem;
    for (std::int64_t i = 1; i * kNeedleRun < problem.seqlen; ++i) {
      add(input_.k.data() + problem.row_offset(kv_head, needle(kv_head, i).key),
          direction(kStreamNeedle, needle_id(kv_head, i)), amplitude(1.5 * strength_));
    }
  }

  void fill_queries(int q_head, const Tokens& tokens) {
    const Problem& problem = input_.problem;
    const int kv_head = q_head / problem.group_size();
    const int d = problem.head_dim;
    const CounterRandom query_random(seed_, kStreamQ);
    const auto shared = direction(kStreamDirection, static_cast<std::uint64_t>(kv_head));
    const auto topics = topic_directions(kv_head);
    std::vector<double> needle_direction;  // of the run that t is in
    const bool has_shared = has("sinks") || has("stripes");
    const double noise = pattern_ == "uniform" ? 0.0 : std::sqrt(noise_);
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
      float* q = input_.q.data() + problem.row_offset(q_head, t);
      const auto row = static_cast<std::uint64_t>(problem.row_offset(q_head, t));
      for (int i = 0; i < d; ++i) {
        q[i] = static_cast<float>(noise * query_random.normal(row + static_cast<std::uint64_t>(i)));
      }
      if (has_shared) add(q, shared, amplitude(strength_));
      if (has_slashes(pattern_)) add_slashes(q_head, t, q);
      if (has("heavy_tail")) {
        const int topic = topic_[static_cast<std::size_t>(t)];
        add(q, topics[static_cast<std::size_t>(topic)], amplitude(strength_));
      }
      if (has("needles") && t >= kNeedleRun) {
        if (t % kNeedleRun == 0) {
          needle_direction = direction(kStreamNeedle, needle_id(kv_head, t / kNeedleRun));
        }
        add(q, needle_direction, amplitude(1.5 * strength_));
      }
    }
  }

  void add_slashes(int q_head, std::int64_t t, float* q) const {
    const CounterRandom random(seed_, kStreamSlash);
    for (int s = 0; s < kSlashesPerHead; ++s) {
      const auto counter = static_cast<std::uint64_t>(q_head * kSlashesPerHead + s);
      const std::int64_t distance = s == 0 ? 0 : random.below(counter, input_.problem.seqlen);
      add_rotation(q, t - distance, amplitude(strength_));
    }
  }

  static std::uint64_t topic_id(int kv_head, int topic) {
    return static_cast<std::uint64_t>(kv_head * kNumTopics + topic);
  }
  static std::uint64_t needle_id(int kv_head, std::int64_t n) {
    return (1ull << 32) + (static_cast<std::uint64_t>(kv_head) << 24) +
           static_cast<std::uint64_t>(n);
  }

  const std::uint64_t seed_;
  const std::string pattern_;
  const double strength_;
  const double noise_;
  AttentionInput input_;
  std::vector<int> topic_;  // [seqlen]
  int num_planes_ = 0;
  std::vector<Rotation> rotations_;  // [seqlen, num_planes]
};

}  // namespace

const std::vector<ParamSpec>& synthetic_param_specs() {
  static const std::vector<ParamSpec> kSpecs = {
      ParamSpec::choice(
          "pattern", "mixed",
          {"sinks", "stripes", "slashes", "needles", "heavy_tail", "mixed", "uniform"},
          "structure of the attention map"),
      ParamSpec::integer("seqlen", 8192, "tokens", 1, 1 << 24),
      ParamSpec::integer("num_q_heads", 8, "query heads", 1, 4096),
      ParamSpec::integer("num_kv_heads", 2, "KV heads; a divisor of num_q_heads", 1, 4096),
      ParamSpec::integer("head_dim", 128, "a multiple of 2", 2, 1024),
      ParamSpec::real("strength", 5.0, "logit boost of a structure over the noise", 0.0, 100.0),
      ParamSpec::real("noise", 1.0, "standard deviation of the noise logits", 0.0, 100.0),
  };
  return kSpecs;
}

void check_synthetic(const ParamSet& params, const std::string& path) {
  const auto require_multiple = [&](const char* name, std::int64_t factor, const char* of) {
    const std::int64_t value = params.get_int(name);
    if (value % factor == 0) return;
    throw ConfigError(
        fmt::format("{}.{}: found {}, expected a multiple of {}{}", path, name, value, of, factor));
  };
  require_multiple("num_q_heads", params.get_int("num_kv_heads"), "num_kv_heads ");
  require_multiple("head_dim", 2, "");
}

std::uint64_t synthetic_bytes(const ParamSet& params) {
  // The parameters' ranges keep the products below 2^64.
  const auto head_dim = params.get_int("head_dim");
  const auto heads = params.get_int("num_q_heads") + 2 * params.get_int("num_kv_heads");
  auto per_token = sizeof(float) * static_cast<std::uint64_t>(heads * head_dim);
  if (has_slashes(params.get_choice("pattern"))) {
    per_token +=
        sizeof(Rotation) * static_cast<std::uint64_t>(slash_planes(static_cast<int>(head_dim)));
  }
  return per_token * static_cast<std::uint64_t>(params.get_int("seqlen"));
}

AttentionInput make_synthetic(const ParamSet& params, std::uint64_t seed) {
  return Synthesizer(params, seed).make();
}

}  // namespace s2o
