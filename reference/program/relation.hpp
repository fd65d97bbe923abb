/// @file
/// Do several dumps agree where a relation says that they must?  What one dump
/// cannot say of a kernel: is it causal, do its bits depend on its neighbours,
/// is one pass equal to several?
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "program/dump.hpp"
#include "program/ensemble.hpp"
#include "program/places.hpp"
#include "program/plan.hpp"
#include "program/verify.hpp"
#include "safetensors.hpp"

namespace carve::program {

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
