/// @file
/// Which dumps must agree, in which places, and do they? What one dump cannot
/// say of a kernel: is it causal, do its bits depend on its neighbours, is one
/// pass equal to several?
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "program/dump.hpp"
#include "program/ensemble.hpp"
#include "program/plan.hpp"
#include "program/verify.hpp"
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

/// One relation between dumps.
struct relation {
  std::string_view name;      ///< on the command line
  std::string_view sentence;  ///< what it says
  std::string_view files;     ///< what A, B, ... are
  std::size_t most;           ///< dumps at most; 0: any number
  /// Needs states that hold all of the past.
  bool hands_states_on;
  /// Which places correspond.
  /// @throws carve::error  where inputs do not fit the relation.
  std::vector<correspondence> (*places)(const std::vector<related_dump>&);
  /// Inputs for such a test, made of one dump.
  plan (*planned)(const dump&);
};

/// All of them.
const std::vector<relation>& relations();

/// @throws carve::error  naming all, where none has that name.
const relation& relation_named(std::string_view name);

/// Of one tensor of the dump that is measured.
struct agreement {
  enum class kind {
    same_bits,
    within_unit,  ///< verify's tolerances, applied to the difference
    undecided,    ///< sound ways leave no correct digit
    apart,
  };
  std::string tensor;
  std::size_t here = 0;       ///< the dump that is measured
  std::size_t compared = 0;   ///< numbers
  std::size_t differing = 0;  ///< in at least one bit
  /// RMS and largest difference in units; absent where all bits are the same.
  std::optional<double> ratio, largest_ratio;
  kind is = kind::same_bits;
  /// The first place in which bits differ, by sequence, token, head.
  std::string first;
  std::string where;  ///< all places, in words
};

/// What became of a relation.
struct relation_outcome {
  std::string_view name, sentence;
  std::vector<std::string> paths;
  std::vector<agreement> tensors;
  std::vector<std::string> notes;

  /// The worst of all tensors.
  agreement::kind is() const;
};

/// Compares dumps in the places where the relation says that they must agree.
/// @throws carve::error  for a number of dumps, inputs or settings that do not
///                       fit, naming what differs; and where there is nothing
///                       to compare.
relation_outcome relate(const relation& r,
                        const std::vector<related_dump>& dumps,
                        const kernel_facts& facts = {},
                        const run_settings& run = {});

/// In words; at most 80 columns wide but for paths.
void write_relation(std::ostream& out, const relation_outcome& r);

/// The same as one JSON object.
void write_relation_json(std::ostream& out, const relation_outcome& r);

}  // namespace carve::program
