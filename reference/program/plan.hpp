/// @file
/// Which inputs put a relation to the test? They are made of one dump: its
/// tokens cut, packed, permuted or followed by others.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "program/dump.hpp"

namespace carve::program {

/// Inputs of one run of a kernel.
struct planned_run {
  std::string name;  ///< of the file, without ending
  std::string what;  ///< it holds, in words
  dump d;            ///< [B,T,H,D], states in order
  /// Beside the tensors of the dump.
  std::map<std::string, std::vector<std::int64_t>> integers;
};

/// All runs of a relation's test, in the order in which the relation takes
/// their dumps.
using plan = std::vector<planned_run>;

/// For each relation its inputs; the kernel writes its outputs beside them.
/// @throws carve::error  where the dump is too small for the relation.
///@{
plan plan_repeat(const dump& d);
plan plan_causal(const dump& d);
plan plan_split(const dump& d);
plan plan_decode(const dump& d);
plan plan_alone(const dump& d);
plan plan_pack(const dump& d);
plan plan_permute(const dump& d);
plan plan_rollback(const dump& d);
plan plan_pool(const dump& d);
///@}

/// The run as a file, its metadata those of `file` and of `given`.
safetensors::writer written(const planned_run& run,
                            const safetensors::file& file,
                            const settings& given);

}  // namespace carve::program
