/// @file
/// Which mistakes must the laws find?
///
/// Short independent solvers that take one fault each.  Without a fault they
/// must pass the laws, so that a refuted mutant is refuted for its fault.
#pragma once

#include "identity.hpp"
#include "solvers.hpp"

namespace carve::proofs {

enum class fault {
  none,
  // recurrence
  other_readout,
  erase_before_decay,
  write_gate_on_all,
  no_value_decay,
  address_without_gate,
  no_start,
  erase_gate_of_neighbour,
  // chunked form
  transposed_inverse,
  triangle_off_by_one,
  ratio_off_by_one,
  no_start_later,
  end_decay_missing,
  short_last_chunk,
  one_column_for_all,
  gate_of_source_token,
  // reverse walk
  write_gate_missing,
  erase_gate_constant,
  address_constant,
  key_through_erase_missing,
  decay_of_erase_missing,
  value_decay_missing_back,
  end_cotangent_missing,
  scale_missing_back,
  query_of_other_state,
};

/// Who computes.
enum class actor {
  recurrent,
  chunked,
  columnwise,
  naive_recurrent,
  naive_chunked,
  naive_reverse,
};

/// The solver of that name; the library's own take no fault.
template <class T>
solver<T> make(actor who, index_t chunk, fault f = fault::none);

/// Law: two solvers give the same outputs and final states.
struct same_values {
  actor left = actor::chunked, right = actor::recurrent;
  fault f = fault::none;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    return {values(make<T>(left, in.shape.chunk, f), in),
            values(make<T>(right, in.shape.chunk, f), in)};
  }
};

/// Law: two solvers give the same gradients.
struct same_gradients {
  actor left = actor::chunked, right = actor::recurrent;
  fault f = fault::none;

  template <class T>
  sides<T> operator()(const tensors<T>& in) const {
    return {gradients(make<T>(left, in.shape.chunk, f), in),
            gradients(make<T>(right, in.shape.chunk, f), in)};
  }
};

}  // namespace carve::proofs
