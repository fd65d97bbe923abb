/// @file
/// What does a kernel dump hold?  From a safetensors file to a problem, its
/// cotangents and the outputs to be judged.
///
/// Names are those of `carve::tensors`; `o` and `final_state` are outputs, `do`
/// and `dfinal_state` their cotangents, and `d` before an input's name is its
/// gradient.  What the tensors do not say stands in the file's metadata, in
/// `settings_table`; a setting given by the caller takes its place.
#pragma once

#include <array>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "carve/batch.hpp"
#include "safetensors.hpp"

namespace carve::program {

/// One setting of a dump, in its metadata or on the command line.
struct setting {
  std::string_view key;    ///< in the metadata
  std::string_view value;  ///< placeholder of the value
  std::string_view help;   ///< meaning, values and default
};

inline constexpr std::array settings_table{
    setting{"family", "NAME", "member of the family, see `carve families`"},
    setting{"scale", "X", "factor of the read-out (default 1/sqrt(K))"},
    setting{"read_out", "WHEN",
            "after the token's update of the state (default)\nor before"},
    setting{"erase_order", "WHEN",
            "the erase reads the state before or after the\ndecay (default: "
            "as the family does)"},
    setting{"layout", "AXES", "of q, o, ...: BTHD (default) or BHTD"},
    setting{"heads", "H[,HV]",
            "numbers of query and of value heads, where tensors are stored as "
            "[B,T,H*D]"},
    setting{"head_order", "ORDER",
            "which of fewer heads head i reads: grouped (default), i / (HV / "
            "H), or tiled, i % H"},
    setting{"state_layout", "AXES", "of the states: NHKV (default) or NHVK"},
    setting{"window", "N", "content window of the carve family, in tokens"},
    setting{"l2norm", "NORM",
            "true: q and k are L2-normalised first (default false), with "
            "epsilon inside the root; mean: with epsilon on the mean; max: by "
            "max(norm, epsilon)"},
    setting{"l2norm_eps", "X", "epsilon of the L2 norm (default 1e-6)"},
    setting{"decay_domain", "D",
            "what g and gd hold: log (default), log2 or linear, the decays "
            "themselves"},
    setting{"decay_activation", "F",
            "what makes g of its logits: none (default), softplus or bounded"},
    setting{"lower_bound", "X", "of g, for the bounded decay (default -5)"},
    setting{"beta_activation", "F",
            "what makes beta of its logits: none (default),\n"
            "sigmoid or doubled_sigmoid"},
    setting{"b_activation", "F", "the same for b"},
    setting{"w_activation", "F", "the same for w"},
    setting{"rename", "FROM=TO",
            "what a tensor is called here, e.g. h0=initial_state; several with "
            "commas"},
    setting{"ignore", "NAMES", "tensors to leave out; several with commas"},
};

/// Settings by key.
using settings = std::map<std::string, std::string>;

/// An output that the file holds.
struct judged_tensor {
  std::string name;
  safetensors::dtype dtype;
  tensor<double> values;  ///< in the layout of `problem`, exactly
};

/// A dump, every number as it stands in the file.
struct dump {
  problem<double> in;
  outputs<double> cotangents;
  std::vector<judged_tensor> judged;  ///< o, final_state, then gradients
  safetensors::dtype dtype;           ///< of q, k and v
  /// How the file lays its tensors out; `in` is [B,T,H,D].
  ///@{
  bool heads_first = false;  ///< [B,H,T,D]
  bool no_batch = false;     ///< [T,H,D]
  bool flat_heads = false;   ///< [B,T,H*D]
  ///@}
  bool layout_given = false;  ///< in words, not by default
  dimensions size;
  std::map<std::string, std::string, std::less<>> file_names;  ///< by ours
  std::vector<std::string> notes;  ///< what was guessed, left out or is odd

  bool has_cotangents() const {
    return cotangents.o.present() || cotangents.final_state.present();
  }
};

/// The dump in `file`.
/// @throws carve::error  naming the tensor or the setting, what was expected
///                       and what came.
dump read_dump(const safetensors::file& file, const settings& given = {});

/// What carve calls the tensor of that name: "input", "output", "cotangent",
/// "gradient", "stage" or, for one that it does not know, "unknown".
std::string_view role_of(std::string_view name);

/// True where the tensor has a token axis, the ones that `layout` is about.
bool has_tokens(std::string_view name);

/// Tokens of sequence n.
index_t length_of(const dump& d, index_t n);

/// Rows that a tensor `[B,T n,...]` of that name has a token, n where it has
/// one for each sub-step; 0 where it has no token axis.
index_t rows_a_token(const dump& d, std::string_view name,
                     const tensor_shape& shape);

/// Calls `visit` with the name and the tensor of each output, then of each
/// gradient, in a result.
template <class Result, class Visit>
void each_result(Result& r, const Visit& visit) {
  for (const auto& m : decltype(r.out)::members()) {
    visit(std::string(m.name), r.out.*m.at);
  }
  for (const auto& m : decltype(r.gradients)::members()) {
    visit("d" + std::string(m.name), r.gradients.*m.at);
  }
}

/// The tensor called `name`, an output or a gradient, in a result.
template <class T>
const tensor<T>& result_named(const gradient_result<T>& r,
                              std::string_view name) {
  const tensor<T>* found = nullptr;
  each_result(r, [&](std::string_view of, const tensor<T>& x) {
    if (of == name) found = &x;
  });
  if (!found) throw error(name, ": not the name of an output");
  return *found;
}

/// The first tokens of every sequence in a batch, or of the packed ones: a
/// dump like `d` of which the time for all of it can be told.
dump first_tokens(const dump& d, index_t tokens);

/// An output or a gradient as the file lays out its like.
tensor<double> in_file_layout(const dump& d, const safetensors::file& file,
                              std::string_view name, tensor<double> x);

/// `x` with axes 1 and 2 exchanged: [B,T,H,D] to [B,H,T,D] and back.
template <class T>
tensor<T> exchange_axes(const tensor<T>& x) {
  tensor<T> y = x;
  std::swap(y.shape[1], y.shape[2]);
  const index_t n1 = x.dim(1), n2 = x.dim(2);
  index_t inner = 1;
  for (index_t i = 3; i < x.rank(); ++i) inner *= x.dim(i);
  for (index_t b = 0; b < x.dim(0); ++b) {
    for (index_t i = 0; i < n1; ++i) {
      for (index_t j = 0; j < n2; ++j) {
        const T* from = &x.data[((b * n1 + i) * n2 + j) * inner];
        std::copy(from, from + inner, &y.data[((b * n2 + j) * n1 + i) * inner]);
      }
    }
  }
  return y;
}

/// The same tensors in another scalar, each element by `f`.
///@{
template <class To, template <class> class Each, class From, class Convert>
Each<tensor<To>> convert_each(const Each<tensor<From>>& x, Convert&& f) {
  Each<tensor<To>> y;
  const auto to = Each<tensor<To>>::members();
  const auto from = Each<tensor<From>>::members();
  for (std::size_t i = 0; i < to.size(); ++i) {
    y.*to[i].at = convert<To>(x.*from[i].at, f);
  }
  return y;
}
template <class To, class From, class Convert>
tensors<To> convert_tensors(const tensors<From>& x, Convert&& f) {
  return convert_each<To>(x, f);
}
template <class To, class From, class Convert>
outputs<To> convert_outputs(const outputs<From>& x, Convert&& f) {
  return convert_each<To>(x, f);
}
///@}

template <class To, class From, class Convert>
problem<To> convert_problem(const problem<From>& p, Convert&& f) {
  problem<To> q;
  q.family = p.family, q.cu_seqlens = p.cu_seqlens, q.read = p.read;
  q.erase_reads = p.erase_reads;
  q.state_v_first = p.state_v_first, q.linear_decay = p.linear_decay;
  q.tiled_heads = p.tiled_heads;
  q.act = p.act, q.window = p.window;
  if (p.scale) q.scale = f(*p.scale);
  q.in = convert_tensors<To>(p.in, f);
  return q;
}

}  // namespace carve::program
