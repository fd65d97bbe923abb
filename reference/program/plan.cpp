#include "program/plan.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

namespace carve::program {

namespace {

namespace st = safetensors;

/// Tokens of a sequence of the dump: those from `first` on, and beginning with
/// the one after `turned` of them.
struct source {
  index_t sequence = 0, first = 0, tokens = 0, turned = 0;
};

/// How sequences lie in a planned dump.
enum class form { batch, packed, padded };

form form_of(const dump& d) {
  return d.in.cu_seqlens.empty() ? form::batch : form::packed;
}

/// Every sequence, whole.
std::vector<source> all_of(const dump& d) {
  std::vector<source> s;
  for (index_t n = 0; n < d.size.N; ++n) s.push_back({n, 0, length_of(d, n)});
  return s;
}

/// The same, and more sequences made of the first by turning it until there are
/// `least`.
std::vector<source> several_of(const dump& d, index_t least) {
  std::vector<source> s = all_of(d);
  const index_t made = least - static_cast<index_t>(s.size());
  for (index_t i = 1; i <= made; ++i) {
    s.push_back({0, 0, length_of(d, 0), i * length_of(d, 0) / (made + 1)});
  }
  return s;
}

/// The part from `first` to `last` of each.
std::vector<source> part_of(std::vector<source> all,
                            const std::function<index_t(index_t)>& first,
                            const std::function<index_t(index_t)>& last) {
  for (source& s : all) {
    const index_t from = first(s.tokens), to = last(s.tokens);
    s.first += from, s.tokens = to - from;
  }
  return all;
}

/// Heads that heads of all tensors belong to: as many as the fewest have.
index_t groups_of(const dump& d) { return std::min(d.size.H, d.size.VH); }

std::vector<index_t> all_groups(const dump& d) {
  std::vector<index_t> groups(static_cast<std::size_t>(groups_of(d)));
  std::iota(groups.begin(), groups.end(), index_t{0});
  return groups;
}

/// Which heads of a tensor those of `groups` are, in the order of the new one.
std::vector<index_t> heads_in(const dump& d, index_t heads,
                              const std::vector<index_t>& groups) {
  const index_t each = heads / groups_of(d);
  std::vector<index_t> found;
  if (d.in.tiled_heads) {
    for (index_t m = 0; m < each; ++m) {
      for (const index_t g : groups) found.push_back(m * groups_of(d) + g);
    }
    return found;
  }
  for (const index_t g : groups) {
    for (index_t m = 0; m < each; ++m) found.push_back(g * each + m);
  }
  return found;
}

/// The dump of these sequences and heads; padding is zeros, decays of one.
dump take(const dump& d, const std::vector<source>& sequences,
          const std::vector<index_t>& groups, form as) {
  dump y;
  y.in = d.in, y.dtype = d.dtype, y.file_names = d.file_names;
  y.in.cu_seqlens.clear();
  index_t longest = 0, sum = 0;
  for (const source& s : sequences) {
    longest = std::max(longest, s.tokens), sum += s.tokens;
  }
  const auto N = static_cast<index_t>(sequences.size());
  if (as == form::packed) {
    y.in.cu_seqlens.push_back(0);
    for (const source& s : sequences) {
      y.in.cu_seqlens.push_back(y.in.cu_seqlens.back() + s.tokens);
    }
  }
  const index_t B = as == form::packed ? 1 : N;
  const index_t T = as == form::packed ? sum : longest;
  const auto tokens = [&](const tensor<double>& x, double nothing) {
    if (!x.present()) return x;
    const std::vector<index_t> heads = heads_in(d, x.dim(2), groups);
    const index_t rows = x.dim(1) / d.size.T;
    index_t width = 1;
    for (index_t i = 3; i < x.rank(); ++i) width *= x.dim(i);
    tensor<double> z = x;
    z.shape[0] = B, z.shape[1] = T * rows;
    z.shape[2] = static_cast<index_t>(heads.size());
    z.data.assign(element_count(z.shape), nothing);
    index_t row = 0;
    for (index_t n = 0; n < N; ++n) {
      const source& s = sequences[static_cast<std::size_t>(n)];
      const bool packed = !d.in.cu_seqlens.empty();
      const index_t all = length_of(d, s.sequence);
      const index_t start =
          packed ? d.in.cu_seqlens[static_cast<std::size_t>(s.sequence)]
                 : s.sequence * d.size.T;
      if (as != form::packed) row = n * T * rows;
      for (index_t t = 0; t < s.tokens; ++t) {
        const index_t token = start + (s.first + t + s.turned) % all;
        for (index_t r = 0; r < rows; ++r, ++row) {
          for (std::size_t h = 0; h < heads.size(); ++h) {
            const auto from =
                x.data.begin() +
                ((token * rows + r) * x.dim(2) + heads[h]) * width;
            std::copy(from, from + width,
                      z.data.begin() +
                          (row * z.dim(2) + static_cast<index_t>(h)) * width);
          }
        }
      }
    }
    return z;
  };
  const auto states = [&](const tensor<double>& x) {
    if (!x.present()) return x;
    const std::vector<index_t> heads = heads_in(d, d.size.HV, groups);
    const index_t width = x.dim(2) * x.dim(3);
    tensor<double> z = x;
    z.shape[0] = N, z.shape[1] = static_cast<index_t>(heads.size());
    z.data.clear();
    for (const source& s : sequences) {
      for (const index_t h : heads) {
        const auto from = x.data.begin() + (s.sequence * d.size.HV + h) * width;
        z.data.insert(z.data.end(), from, from + width);
      }
    }
    return z;
  };
  const auto parameters = [&](const tensor<double>& x) {
    if (!x.present()) return x;
    const std::vector<index_t> heads = heads_in(d, d.size.HV, groups);
    const auto width = static_cast<index_t>(x.data.size()) / x.dim(0);
    tensor<double> z = x;
    z.shape[0] = static_cast<index_t>(heads.size());
    z.data.clear();
    for (const index_t h : heads) {
      const auto from = x.data.begin() + h * width;
      z.data.insert(z.data.end(), from, from + width);
    }
    return z;
  };
  for (const auto& m : tensors<double>::members()) {
    const tensor<double>& x = d.in.in.*m.at;
    const bool linear = d.in.act.domain == decay_domain::linear;
    const bool decay = m.name == "g" || m.name == "gd";
    y.in.in.*m.at = m.role == tensor_role::token
                        ? tokens(x, decay && linear ? 1 : 0)
                    : m.role == tensor_role::state ? states(x)
                                                   : parameters(x);
  }
  y.cotangents.o = tokens(d.cotangents.o, 0);
  y.cotangents.final_state = states(d.cotangents.final_state);
  y.size = check(y.in);
  return y;
}

/// The inputs for outputs alone.
dump forward_only(dump d) {
  d.cotangents = {};
  return d;
}

/// A sequence of at least so many tokens.
void expect_tokens(const dump& d, index_t least, std::string_view name) {
  index_t most = 0;
  for (index_t n = 0; n < d.size.N; ++n) most = std::max(most, length_of(d, n));
  if (most >= least) return;
  throw error(name, ": expected a sequence of at least ", least,
              " tokens, got ", most);
}

/// Pieces of all sequences, cut at `cuts(tokens)`, with the whole before them.
plan in_pieces(const dump& d, const std::vector<std::string>& names,
               const std::function<std::vector<index_t>(index_t)>& cuts) {
  plan p{{"whole",
          "all tokens at once",
          forward_only(take(d, all_of(d), all_groups(d), form_of(d))),
          {}}};
  for (std::size_t i = 0; i < names.size(); ++i) {
    const auto cut = [&](std::size_t k, index_t tokens) {
      const std::vector<index_t> at = cuts(tokens);
      return k == 0 ? 0 : k > at.size() ? tokens : at[k - 1];
    };
    dump piece =
        forward_only(take(d,
                          part_of(
                              all_of(d), [&](index_t n) { return cut(i, n); },
                              [&](index_t n) { return cut(i + 1, n); }),
                          all_groups(d), form_of(d)));
    if (i > 0) piece.in.in.initial_state = {};
    p.push_back({names[i],
                 i == 0 ? "the first tokens"
                        : "the next; give it final_state of " + names[i - 1] +
                              " as its initial_state",
                 std::move(piece),
                 {}});
  }
  return p;
}

}  // namespace

plan plan_repeat(const dump& d) {
  const dump once = take(d, all_of(d), all_groups(d), form_of(d));
  return {{"once", "the dump", once, {}}, {"again", "the same", once, {}}};
}

plan plan_causal(const dump& d) {
  expect_tokens(d, 2, "causal");
  dump whole = forward_only(take(d, all_of(d), all_groups(d), form_of(d)));
  dump other = whole;
  // Other tokens, and strong decays: a kernel that looks ahead of itself, if
  // only to scale by a later decay, then has other numbers before them.
  const activations& act = d.in.act;
  const double strong = act.decay != decay_activation::none  ? 20
                        : act.domain == decay_domain::linear ? std::exp2(-28)
                        : act.domain == decay_domain::log2   ? -28
                                                             : -20;
  for (index_t n = 0; n < d.size.N; ++n) {
    const index_t tokens = length_of(d, n);
    index_t t = std::max<index_t>(2 * tokens / 3, 1);
    // Within a block of 16, with most of the block after it.
    if (tokens >= 24) t = t / 16 * 16 + 5;
    const auto& cu = whole.in.cu_seqlens;
    const index_t start =
        cu.empty() ? n * whole.size.T : cu[static_cast<std::size_t>(n)];
    for (const auto& m : tensors<double>::members()) {
      tensor<double>& x = other.in.in.*m.at;
      if (m.role != tensor_role::token || !x.present()) continue;
      const index_t width =
          static_cast<index_t>(x.data.size()) / (whole.size.B * whole.size.T);
      const bool decay = m.name == "g" || m.name == "gd";
      for (index_t s = t; s < tokens; ++s) {
        for (index_t i = 0; i < width; ++i) {
          const tensor<double>& from = whole.in.in.*m.at;
          x.data[static_cast<std::size_t>((start + s) * width + i)] =
              decay ? strong
                    : from.data[static_cast<std::size_t>(
                          (start + (s - t) % t) * width + i)];
        }
      }
    }
  }
  return {{"whole", "the dump", std::move(whole), {}},
          {"changed",
           "other tokens and strong decays in its last third",
           std::move(other),
           {}}};
}

plan plan_split(const dump& d) {
  expect_tokens(d, 3, "split");
  return in_pieces(d, {"piece_1", "piece_2", "piece_3"}, [](index_t tokens) {
    // At a chunk's end, where there is one, and within a chunk.
    const index_t first = tokens > 96 ? 64 : tokens / 3;
    return std::vector<index_t>{first, first + (tokens - first) * 2 / 5};
  });
}

plan plan_decode(const dump& d) {
  expect_tokens(d, 2, "decode");
  constexpr index_t steps = 4;
  std::vector<std::string> names{"prefill"};
  index_t longest = 0;
  for (index_t n = 0; n < d.size.N; ++n) {
    longest = std::max(longest, length_of(d, n));
  }
  const index_t count = std::min(steps, longest - 1);
  for (index_t i = 1; i <= count; ++i) names.push_back(text("step_", i));
  return in_pieces(d, names, [count](index_t tokens) {
    std::vector<index_t> cuts;
    for (index_t i = count; i > 0; --i) {
      cuts.push_back(std::max<index_t>(tokens - i, 0));
    }
    return cuts;
  });
}

plan plan_alone(const dump& d) {
  const std::vector<source> among = several_of(d, 3);
  // The last of the longest.
  std::size_t at = 0;
  for (std::size_t n = 0; n < among.size(); ++n) {
    if (among[n].tokens >= among[at].tokens) at = n;
  }
  const index_t last = groups_of(d) - 1;
  plan p{{"among",
          text(among.size(), " sequences"),
          take(d, among, all_groups(d), form_of(d)),
          {}},
         {"sequence",
          text("sequence ", at, " of them alone"),
          take(d, {among[at]}, all_groups(d), form::batch),
          {}}};
  if (last > 0) {
    p.push_back({"head",
                 text("their last query head alone"),
                 take(d, among, {last}, form_of(d)),
                 {}});
  }
  return p;
}

plan plan_pack(const dump& d) {
  expect_tokens(d, 2, "pack");
  std::vector<source> ragged = several_of(d, 3);
  if (d.in.cu_seqlens.empty()) {
    // Of several lengths; the first has all its tokens.
    for (std::size_t n = 1; n < ragged.size(); ++n) {
      ragged[n].tokens -= ragged[n].tokens * static_cast<index_t>(n) /
                          static_cast<index_t>(ragged.size() + 1);
    }
  }
  return {{"packed",
           "sequences one after the other, with cu_seqlens",
           take(d, ragged, all_groups(d), form::packed),
           {}},
          {"padded",
           "the same, each with zeros after it",
           take(d, ragged, all_groups(d), form::padded),
           {}}};
}

plan plan_permute(const dump& d) {
  const std::vector<source> all = several_of(d, 3);
  std::vector<source> turned = all;
  std::rotate(turned.begin(), turned.begin() + 1, turned.end());
  std::vector<index_t> groups = all_groups(d);
  std::rotate(groups.begin(), groups.begin() + 1, groups.end());
  plan p{{"ordered",
          text(all.size(), " sequences"),
          take(d, all, all_groups(d), form_of(d)),
          {}},
         {"sequences",
          "the same sequences, the first of them last",
          take(d, turned, all_groups(d), form_of(d)),
          {}}};
  if (groups.size() > 1) {
    p.push_back({"heads",
                 "the same with the first query head last",
                 take(d, all, groups, form_of(d)),
                 {}});
  }
  return p;
}

plan plan_rollback(const dump& d) {
  expect_tokens(d, 2, "rollback");
  constexpr index_t drafts = 3;
  const auto accepted = [](index_t tokens) {
    return tokens < 2 ? tokens : std::max<index_t>(tokens - drafts, 1);
  };
  plan p{{"accepted",
          "the accepted tokens alone",
          forward_only(take(d,
                            part_of(
                                all_of(d), [](index_t) { return 0; }, accepted),
                            all_groups(d), form_of(d))),
          {}},
         {"drafted",
          "the same and drafts after them, all rejected: final_state is to be "
          "the state after num_accepted_tokens tokens",
          forward_only(take(d, all_of(d), all_groups(d), form_of(d))),
          {}}};
  for (index_t n = 0; n < d.size.N; ++n) {
    p[1].integers["num_accepted_tokens"].push_back(accepted(length_of(d, n)));
  }
  return p;
}

plan plan_pool(const dump& d) {
  dump ordered =
      forward_only(take(d, several_of(d, 3), all_groups(d), form_of(d)));
  const dimensions& n = ordered.size;
  const bool v_first = d.in.state_v_first;
  const tensor_shape shape{n.N, n.HV, v_first ? n.V : n.K, v_first ? n.K : n.V};
  tensor<double>& states = ordered.in.in.initial_state;
  // Numbers that bf16 holds, where the dump has no states.
  const auto number = [](std::size_t i) {
    return static_cast<double>(static_cast<int>(i * 37 % 61) - 30) / 64;
  };
  if (!states.present()) {
    states = tensor<double>(shape);
    for (std::size_t i = 0; i < states.data.size(); ++i) {
      states.data[i] = number(i);
    }
  }
  dump pooled = ordered;
  std::vector<std::int64_t> rows;
  const index_t size = 2 * n.N + 1;
  tensor_shape pool_shape = shape;
  pool_shape[0] = size;
  tensor<double> pool(pool_shape);
  for (std::size_t i = 0; i < pool.data.size(); ++i)
    pool.data[i] = number(i + 7);
  const auto width = static_cast<std::ptrdiff_t>(states.data.size() /
                                                 static_cast<std::size_t>(n.N));
  for (index_t i = 0; i < n.N; ++i) {
    // From the end, every second row.
    const index_t row = size - 2 - 2 * i;
    rows.push_back(row);
    std::copy(states.data.begin() + i * width,
              states.data.begin() + (i + 1) * width,
              pool.data.begin() + row * width);
  }
  pooled.in.in.initial_state = std::move(pool);
  return {{"ordered",
           "states in the order of the sequences",
           std::move(ordered),
           {}},
          {"pooled",
           "states in a pool, that of sequence n in row state_indices[n]; "
           "final_state is to be the whole pool",
           std::move(pooled),
           {{"state_indices", std::move(rows)}}}};
}

st::writer written(const planned_run& run, const st::file& file,
                   const settings& given) {
  settings all = given;
  all.insert(file.metadata().begin(), file.metadata().end());
  // Names and axes are those of the library now.
  for (const char* key : {"rename", "ignore", "heads", "layout"}) {
    all.erase(key);
  }
  st::writer w;
  for (const auto& [key, value] : all) w.set_metadata(key, value);
  const auto add = [&](const std::string& name, const tensor<double>& x) {
    if (!x.present()) return;
    const auto in_file = run.d.file_names.find(name);
    const st::dtype type = in_file == run.d.file_names.end()
                               ? st::dtype::f32
                               : file.info(in_file->second).dtype;
    w.add(name, type, {x.shape.begin(), x.shape.end()}, x.data);
  };
  for (const auto& m : tensors<double>::members()) {
    add(std::string(m.name), run.d.in.in.*m.at);
  }
  for (const auto& m : outputs<double>::members()) {
    add("d" + std::string(m.name), run.d.cotangents.*m.at);
  }
  const auto integers = [&](const std::string& name,
                            const std::vector<std::int64_t>& x) {
    if (x.empty()) return;
    w.add_int64(name, {static_cast<std::int64_t>(x.size())}, x);
  };
  integers("cu_seqlens", run.d.in.cu_seqlens);
  for (const auto& [name, x] : run.integers) integers(name, x);
  return w;
}

}  // namespace carve::program
