/// @file
/// Which places of several dumps correspond?  For each relation the stretches
/// of tokens whose inputs must be the same, and then what comes out.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "program/dump.hpp"
#include "safetensors.hpp"

namespace carve::program {

/// The states of a pool of which a dump used some.
struct state_pool {
  std::vector<index_t> used;     ///< the row of each sequence
  tensor<double> before, after;  ///< `[P,HV,K,V]`, either may be absent
};

/// One of several dumps; what it says is in order even where its states came
/// from a pool.
struct related_dump {
  std::string path;
  dump d;
  std::optional<state_pool> pool;
};

/// The dump in `file`. Where it has integers `state_indices` `[N]`, rows of
/// `initial_state` and `final_state` are those of a pool, and sequence n has
/// row `state_indices[n]`.
/// @throws carve::error  as read_dump() does, and for a row that the pool lacks
///                       or that two sequences share.
related_dump read_related(const safetensors::file& file,
                          const settings& given = {});

/// All dumps of a relation, in its order.
using dumps_ref = const std::vector<related_dump>&;

/// Tokens of a sequence of one dump.
struct stretch_place {
  std::size_t dump = 0;
  index_t sequence = 0;
  index_t first = 0;  ///< token, counted in the sequence
};

/// As many tokens of two dumps. The inputs must be the same; what comes out
/// must then be equal.
struct stretch {
  stretch_place here, there;
  index_t tokens = 0;
  /// By value head of `here`: the one of `there`; -1 for none.
  std::vector<index_t> heads;
  bool start = false;  ///< the states before the first token correspond
  bool end = false;    ///< and those after the last
};

/// The places in which a dump, that of `here`, must agree with others.
struct correspondence {
  std::size_t measured = 0;  ///< the dump of which all is `here`
  std::vector<stretch> stretches;
  bool gradients = false;  ///< those of tokens and start states agree as well
  bool complete = false;   ///< and those of parameters, sums over sequences
  std::vector<std::string> notes;
};

/// For each relation its places.
/// @throws carve::error  where inputs do not fit the relation.
///@{
std::vector<correspondence> places_in_order(dumps_ref all);
std::vector<correspondence> places_causal(dumps_ref all);
std::vector<correspondence> places_split(dumps_ref all);
std::vector<correspondence> places_decode(dumps_ref all);
std::vector<correspondence> places_alone(dumps_ref all);
std::vector<correspondence> places_permute(dumps_ref all);
std::vector<correspondence> places_pack(dumps_ref all);
std::vector<correspondence> places_rollback(dumps_ref all);
std::vector<correspondence> places_pool(dumps_ref all);
///@}

/// What a dump is called here: A, B, ...
std::string letter(std::size_t i);

/// "sequence 0, token 3, head 1"; a negative sequence or token is left out.
std::string place_text(index_t sequence, index_t token, index_t head);

/// The values of an output or gradient; null where the dump has none.
const tensor<double>* judged_named(const dump& d, std::string_view name);

/// Numbers of one head and row, state or parameter.
std::size_t width_of(const tensor_row& row, const tensor<double>& x);

/// A tensor in two dumps; an absent one has the shape of the other and zeros.
struct tensor_pair {
  const tensor_row& row;
  const tensor<double>& here;
  const tensor<double>& there;
};

/// Places of a run of numbers in two tensors; the token, counted in the stretch
/// (-1 for states and parameters), and the tensor's heads.
using run_visitor =
    std::function<void(std::size_t here, std::size_t there, index_t token,
                       index_t head, index_t other_head)>;

/// Visits each run of `width_of(...)` numbers of a stretch.
/// @param[in] sums  a head that several value heads read holds a sum over them,
///                  and corresponds only where all of them do.
void each_run(const dump& a, const dump& b, const stretch& s,
              const tensor_pair& x, bool sums, const run_visitor& visit);

/// @throws carve::error  where inputs differ that must be the same.
void expect_same_inputs(const std::vector<related_dump>& all, const stretch& s,
                        bool gradients);

/// @throws carve::error  where two dumps are not of one problem.
void expect_same_settings(const related_dump& x, const related_dump& y,
                          const std::string& b);

}  // namespace carve::program
