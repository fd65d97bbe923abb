/// @file
/// What has a chunked kernel inside, exactly and with a kernel's roundings, and
/// which of the stages that a dump holds is the first to be wrong?
#pragma once

#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "carve/compare.hpp"
#include "carve/stage.hpp"
#include "program/dump.hpp"
#include "program/ensemble.hpp"
#include "program/verify.hpp"
#include "safetensors.hpp"

namespace carve::program {

/// One chunk of a sequence.
struct chunk_place {
  index_t sequence = 0;
  index_t first = 0;   ///< token, counted in the sequence
  index_t tokens = 0;  ///< fewer than the chunk length in a ragged tail
};

/// The chunks of all sequences, in order. A content window begins a chunk.
std::vector<chunk_place> chunks_of(const dump& d, index_t C);

/// A stage of all chunks, as files hold it: `[B,T,HV,...]` by sub-steps, where
/// column s of T by S is that of the chunk; a state `[B,chunks,HV,K,V]`, packed
/// sequences one after the other. What is no place of the stage is zero.
struct staged_tensor {
  stage_row row;
  tensor<double_double> exact;
  tensor<double> replayed;  ///< by the first of the sound ways
  /// By element: a place of the stage, which is judged. Not: columns that the
  /// causal mask leaves out or that a ragged chunk lacks, tokens of none.
  std::vector<bool> place;
  error_unit unit;  ///< the largest error of sound ways
};

/// All stages that the dump's family and cotangents give.
/// @param[in] C  chunk length, at least 1.
/// @throws carve::error  where the WY form does not apply.
std::vector<staged_tensor> stages_of(const dump& d, index_t C,
                                     const run_settings& run = {});

/// The chunk length that the stages in the file have, if one of them tells.
std::optional<index_t> chunk_of(const dump& d, const safetensors::file& file);

/// One stage that a dump holds.
struct stage_verdict {
  stage_row row;
  comparison errors;
  std::string where;                 ///< it is wrong, in words
  std::optional<chunk_place> chunk;  ///< the first in which it is wrong
};

/// All of them, and the first that is wrong: in the earliest chunk, and there
/// in the order of computing; of the way back the latest chunk.
struct stage_verdicts {
  index_t chunk = 0;  ///< length
  std::vector<stage_verdict> stages;
  std::optional<std::size_t> first_wrong;

  outcome result() const;
};

/// Judges the stages in the file; none is a result without stages.
/// @throws carve::error  for a stage of another shape or that the family lacks.
stage_verdicts judge_stages(const dump& d, const safetensors::file& file,
                            index_t C, const std::vector<staged_tensor>& all);

/// In words; at most 80 columns wide.
void write_stages(std::ostream& out, const stage_verdicts& v);

/// The same as one JSON object.
void write_stages_json(std::ostream& out, const stage_verdicts& v);

/// The inputs as they are, each stage in F64, and, under `replayed.` and its
/// name, the replay's in F32.
safetensors::writer stages_file(const dump& d, const safetensors::file& file,
                                const settings& given, index_t C,
                                const std::vector<staged_tensor>& all);

}  // namespace carve::program
