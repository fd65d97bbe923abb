/*! @file
 * How does a program in C, or in whatever calls C, use carve?
 *
 * A problem is a list of tensors, named as `carve families` lists them, and a
 * list of settings, named as in a dump's metadata: what stands in a dump file
 * can be handed over from memory, and is understood in the same way.  A new
 * tensor or setting therefore needs nothing new here.
 *
 * Every function may be called from several threads at once.  No exception
 * leaves the library; one that says CARVE_OK or gives a pointer has done all
 * that it is to do, any other has left its results as they were.
 */
#ifndef CARVE_CARVE_H
#define CARVE_CARVE_H /*!< included */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*! Shown by the shared library. */
#if defined(__GNUC__)
#define CARVE_API __attribute__((visibility("default")))
#else
#define CARVE_API
#endif

/*! What came of a call. */
typedef enum carve_status {
  CARVE_OK = 0,        /*!< done */
  CARVE_BAD_INPUT = 1, /*!< a tensor, a setting or a path cannot be used */
  CARVE_NO_MEMORY = 2, /*!< the machine has not enough */
  CARVE_INTERNAL = 3   /*!< a fault of the library */
} carve_status;

/*! Type of the elements.  Integers are for cu_seqlens. */
typedef enum carve_dtype {
  CARVE_F64 = 0,     /*!< double */
  CARVE_F32 = 1,     /*!< float */
  CARVE_F16 = 2,     /*!< IEEE binary16 */
  CARVE_BF16 = 3,    /*!< bfloat16 */
  CARVE_F8_E4M3 = 4, /*!< OCP 8-bit float, no infinity */
  CARVE_F8_E5M2 = 5, /*!< OCP 8-bit float */
  CARVE_I64 = 6,     /*!< int64_t */
  CARVE_I32 = 7      /*!< int32_t */
} carve_dtype;

/*! A tensor in the caller's memory. */
typedef struct carve_tensor {
  const char* name;       /*!< q, k, v, g, beta, o, do, dq, ..., cu_seqlens */
  carve_dtype dtype;      /*!< of the elements */
  void* data;             /*!< element [0,0,...]; inputs are only read */
  size_t rank;            /*!< number of axes */
  const int64_t* shape;   /*!< `rank` lengths */
  const int64_t* strides; /*!< in elements; NULL: row-major without gaps */
} carve_tensor;

/*! A setting, e.g. {"family", "gdn"} or {"state_layout", "NHVK"}; those of a
 * dump's metadata, and those below that a function names. */
typedef struct carve_setting {
  const char* key;   /*!< its name */
  const char* value; /*!< in words */
} carve_setting;

/*! The library's version, "major.minor.patch". */
CARVE_API const char* carve_version(void);

/*! Why the last call of this thread that failed did so; empty before.  The
 * text names the tensor or setting, what was expected and what came, and
 * stands until this thread's next failure. */
CARVE_API const char* carve_last_error(void);

/*! The table of families, tensors and settings as a JSON object. */
CARVE_API const char* carve_tables(void);

/*! Length of the axes of an output or a gradient that a problem has, in the
 * layout of its inputs.
 * @param[out] shape  room for 8 lengths.
 * @param[out] rank   how many of them were written. */
CARVE_API carve_status carve_result_shape(const carve_tensor* tensors,
                                          size_t tensor_count,
                                          const carve_setting* settings,
                                          size_t setting_count,
                                          const char* name, int64_t* shape,
                                          size_t* rank);

/*! Outputs of a problem.
 *
 * @param[in] tensors   inputs of the family; do, dfinal_state, outputs and
 *                      gradients among them are not looked at.
 * @param[in] settings  of a dump, and `precision`, in which all is computed:
 *                      double, dd (double-double, the default), 50 or 100
 *                      (decimal digits); `threads` (default: all cores).
 * @param[in] results   any of o and final_state; their data is written, each
 *                      number rounded once to the tensor's dtype, F64, F32,
 *                      F16 or BF16. */
CARVE_API carve_status carve_forward(const carve_tensor* tensors,
                                     size_t tensor_count,
                                     const carve_setting* settings,
                                     size_t setting_count,
                                     const carve_tensor* results,
                                     size_t result_count);

/*! Outputs and gradients: as carve_forward(), with do or dfinal_state among the
 * tensors, and results that may also be d before an input's name. */
CARVE_API carve_status carve_backward(const carve_tensor* tensors,
                                      size_t tensor_count,
                                      const carve_setting* settings,
                                      size_t setting_count,
                                      const carve_tensor* results,
                                      size_t result_count);

/*! Writes tensors and settings to a safetensors file that the program `carve`
 * reads, whole or not at all.
 * @param[in] settings  any; those that no dump knows are written as well. */
CARVE_API carve_status carve_save(const carve_tensor* tensors,
                                  size_t tensor_count,
                                  const carve_setting* settings,
                                  size_t setting_count, const char* path);

/*! What was found out of a kernel's outputs. */
typedef struct carve_report carve_report;

/*! Judges a kernel's outputs and gradients, as `carve verify` does.
 *
 * @param[in] tensors   inputs, then what the kernel made of them: o,
 *                      final_state, and where do or dfinal_state are there too,
 *                      gradients.
 * @param[in] settings  of a dump, `threads`, and the options of `carve verify`:
 *                      `profile`, `chunk`, `exp`, `seed`, `threshold`,
 *                      `max_threshold`, `bitlike`, `strict` (true or false)
 *                      and `diagnose` (true, false, or absent: look for the
 *                      mistake that explains a failure where that takes no more
 *                      than about a minute of one core).
 * @param[out] report   NULL unless CARVE_OK; to be freed by
 *                      carve_report_free().  A kernel that fails is CARVE_OK.
 */
CARVE_API carve_status carve_verify(const carve_tensor* tensors,
                                    size_t tensor_count,
                                    const carve_setting* settings,
                                    size_t setting_count,
                                    carve_report** report);

/*! A dump in memory. */
typedef struct carve_dump {
  const char* name;              /*!< what a report calls it */
  const carve_tensor* tensors;   /*!< inputs and what a kernel made of them */
  size_t tensor_count;           /*!< how many */
  const carve_setting* settings; /*!< of a dump */
  size_t setting_count;          /*!< how many */
} carve_dump;

/*! Decides whether dumps agree where a relation says that they must, as
 * `carve relate` does.
 *
 * @param[in] relation  repeat, causal, split, decode, alone, pack, permute,
 *                      rollback or pool.
 * @param[in] dumps     what the relation is between, in its order; `threads`
 *                      is looked for among the settings of the first.
 * @param[out] report   as of carve_verify(); its JSON says whether all bits are
 *                      the same.  Dumps that do not agree are CARVE_OK. */
CARVE_API carve_status carve_relate(const char* relation,
                                    const carve_dump* dumps, size_t dump_count,
                                    carve_report** report);

/*! Judges what a chunked kernel has inside, as `carve stages` does.
 *
 * @param[in] tensors   inputs, do and dfinal_state where they are given, and
 *                      any of the stages: G, L, T, W, U, P, S, dP, ...
 * @param[in] settings  of a dump, `threads` and `chunk` (default: that of the
 *                      stages, else 64).
 * @param[in] path      NULL, or where all stages are written, exact and
 *                      replayed, to a safetensors file.
 * @param[out] report   as of carve_verify(). */
CARVE_API carve_status carve_stages(const carve_tensor* tensors,
                                    size_t tensor_count,
                                    const carve_setting* settings,
                                    size_t setting_count, const char* path,
                                    carve_report** report);

/*! What comes of it; the numbers are the exit codes of the program. */
typedef enum carve_verdict {
  CARVE_PASS = 0,      /*!< all tensors pass */
  CARVE_FAIL = 1,      /*!< a tensor fails */
  CARVE_NOT_JUDGED = 3 /*!< none fails, of one nothing can be said */
} carve_verdict;

/*! The verdict on all tensors. */
CARVE_API carve_verdict carve_report_verdict(const carve_report* report);

/*! The table that `carve verify` prints; stands until the report is freed. */
CARVE_API const char* carve_report_table(const carve_report* report);

/*! Its report as a JSON object; stands until the report is freed. */
CARVE_API const char* carve_report_json(const carve_report* report);

/*! An SVG image of the errors of the worst tensor that fails, empty where none
 * does; stands until the report is freed. */
CARVE_API const char* carve_report_heat_map(const carve_report* report);

/*! Frees a report; NULL is none. */
CARVE_API void carve_report_free(carve_report* report);

#ifdef __cplusplus
}
#endif

#endif
