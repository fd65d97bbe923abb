/// @file
/// What a first use needs in one include, and the map of the library.
///
/// Data flows one way: a problem is checked, a solver walks its heads, the
/// result is compared. The definitions are on the page
/// @ref md_docs_mathematics "The mathematics", the unit in which a kernel's
/// error is measured on @ref md_docs_rounding "The rounding replay".
///
/// **From tensors to results**
///
/// | header | question |
/// |---|---|
/// | @ref batch.hpp | what are outputs and gradients of a whole problem? |
/// | @ref problem.hpp | which tensors, of which shapes? do they fit together? |
/// | @ref family.hpp | which gate varies along which axis in which model? |
/// | @ref family_name.hpp | which model does a name mean? |
/// | @ref tensor_table.hpp | what is known of each tensor? |
/// | @ref activation.hpp | what do models put in front of the recurrence? |
/// | @ref tensor.hpp | how are shape and elements kept? |
/// | @ref parallel.hpp | how are heads and sequences spread over the cores? |
/// | @ref error.hpp | how is an unusable input reported? |
///
/// **One head, five ways to the same numbers**
///
/// | header | question |
/// |---|---|
/// | @ref head.hpp | what does a solver read and write? |
/// | @ref recurrence.hpp | what is right? the definition, token by token |
/// | @ref tiled_walk.hpp | the same, fast |
/// | @ref chunked.hpp | the same in chunks (WY form); when does that apply? |
/// | @ref columnwise.hpp | the same for erase on the value axis |
/// | @ref content_gate.hpp | CARVE: how does a gate look at the content? |
/// | @ref segment.hpp | what does a run of tokens do to the state? |
/// | @ref solver.hpp | how is a solver handed to a batch? |
/// | @ref recurrent_solver.hpp | how is the one that needs no Eigen? |
/// | @ref chunk_parts.hpp | what do the chunked forms share? |
/// | @ref triangular.hpp | how is the triangular system inverted? |
/// | @ref matrix.hpp, @ref index.hpp | what is a matrix, what counts? |
///
/// **How wrong is a kernel?**
///
/// | header | question |
/// |---|---|
/// | @ref rounding.hpp | where do kernels round? |
/// | @ref stage.hpp | what has a chunked kernel inside? |
/// | @ref precision.hpp | what does rounding to bf16, fp16, tf32, fp32 give? |
/// | @ref replay.hpp | what would an ideal kernel in these formats return? |
/// | @ref compare.hpp | is the error more than the formats explain? |
///
/// **Scalars: every solver runs over each of them**
///
/// | header | scalar |
/// |---|---|
/// | @ref scalar.hpp | what a scalar is; float, double, long double |
/// | @ref double_double.hpp | 106 bits, 31 digits, at hardware speed |
/// | @ref multiprecision.hpp | 50 and 100 digits; exact fractions |
/// | @ref prime_field.hpp | integers modulo a prime, for identities |
/// | @ref dual.hpp | a value and its derivative |
/// | @ref counting.hpp | counts operations, and how long they must wait |
/// | @ref lanes.hpp | how scalars lie in memory so that loops vectorise |
/// | @ref eigen_traits.hpp | what Eigen must know of a scalar |
///
/// **Compiled code**
///
/// | header | question |
/// |---|---|
/// | @ref cuda.hpp | what do the CUDA kernels take? |
/// | @ref default_solver.hpp | what solves a problem when nothing is said? |
/// | @ref reference.hpp | what does the library `carve::reference` hold? |
/// | @ref reference_batch.hpp | what of it does a batch use? |
/// | @ref reference_solver.hpp | its token by token solver |
/// | @ref dispatch.hpp | which vector instructions does it run on? |
///
/// This header includes what the first two tables name but for what needs
/// Eigen (matrix.hpp, recurrence.hpp, solver.hpp and the chunked forms), and
/// double_double.hpp and dual.hpp of the scalars.  multiprecision.hpp needs
/// Boost.  Whatever else is used is included by name.
#pragma once

#include "carve/cxx20.hpp"

#ifdef CARVE_CXX20
#include "carve/activation.hpp"
#include "carve/batch.hpp"
#include "carve/content_gate.hpp"
#include "carve/double_double.hpp"
#include "carve/dual.hpp"
#include "carve/error.hpp"
#include "carve/family.hpp"
#include "carve/family_name.hpp"
#include "carve/head.hpp"
#include "carve/parallel.hpp"
#include "carve/problem.hpp"
#include "carve/recurrent_solver.hpp"
#include "carve/scalar.hpp"
#include "carve/tensor.hpp"
#include "carve/tensor_table.hpp"
#include "carve/tiled_walk.hpp"
#include "carve/version.hpp"
#endif
