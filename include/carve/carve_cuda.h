/*! @file
 * How does a program in C, or in whatever calls C, run the CUDA kernels?
 *
 * The functions of carve/cuda.hpp in plain C: device pointers, strides and
 * sizes, a stream, and workspace that the caller asks for and gives.  Nothing
 * is allocated and nothing waits for the device.  A library that was built
 * without the kernels says so: carve_cuda_built() is 0 and every other call is
 * CARVE_BAD_INPUT.
 *
 * What failed is in carve_last_error(), as in carve/carve.h.
 */
#ifndef CARVE_CARVE_CUDA_H
#define CARVE_CARVE_CUDA_H /*!< included */

#include "carve/carve.h"

#ifdef __cplusplus
extern "C" {
#endif

/*! A device tensor [B,T,heads,channels].  Strides count elements, that of the
 * channels is one.  A null pointer means "absent". */
typedef struct carve_cuda_tensor {
  void* data;    /*!< element [0,0,0,0], in device memory */
  int64_t batch; /*!< stride of the batch axis */
  int64_t token; /*!< stride of the token axis */
  int64_t head;  /*!< stride of the head axis */
} carve_cuda_tensor;

/*! Which state the erase of a token looks into. */
typedef enum carve_cuda_erase_order {
  CARVE_CUDA_ERASE_ORDER_OF_FAMILY, /*!< what the family's row says */
  CARVE_CUDA_ERASE_AFTER_DECAY,     /*!< the decayed one */
  CARVE_CUDA_ERASE_BEFORE_DECAY     /*!< the last token's */
} carve_cuda_erase_order;

/*! One batched problem; all zero but what is said here.  Shapes and meaning
 * are those of carve::cuda::problem. */
typedef struct carve_cuda_problem {
  const char* family;        /*!< a name of the library's table of families */
  carve_dtype input;         /*!< F32, F16 or BF16: q, k, v, beta, b, e, w, o */
  carve_dtype decay;         /*!< the same of g and gd */
  int B;                     /*!< batch entries; 1 where sequences are packed */
  int T;                     /*!< tokens */
  int H;                     /*!< heads of q and k */
  int HV;                    /*!< heads of v, a multiple of H */
  int K;                     /*!< channels of q and k */
  int V;                     /*!< channels of v */
  int N;                     /*!< sequences: B, or those of cu_seqlens */
  int window;                /*!< of the content gate (family carve) */
  int rank;                  /*!< likewise */
  int read_before;           /*!< not 0: o_t from the state before token t */
  int general;               /*!< not 0: the plain kernels, in fp32 */
  float scale;               /*!< factor of the read-out */
  carve_cuda_tensor q;       /*!< [B,T,H,K] */
  carve_cuda_tensor k;       /*!< [B,T,H,K] */
  carve_cuda_tensor v;       /*!< [B,T,HV,V] */
  carve_cuda_tensor g;       /*!< natural log of the decay, at most 0 */
  carve_cuda_tensor beta;    /*!< erase and write gate in one */
  carve_cuda_tensor b;       /*!< key-axis erase gate; carve: its logits */
  carve_cuda_tensor e;       /*!< value-axis erase gate */
  carve_cuda_tensor w;       /*!< write gate */
  const int64_t* cu_seqlens; /*!< N + 1 offsets, or NULL */
  const float* initial_state; /*!< [N,HV,K,V], or NULL for zeros */
  const float* w_down;        /*!< [HV,rank,V] */
  const float* w_up;          /*!< [HV,K,rank] */
  carve_cuda_tensor gd;       /*!< [B,T,HV,V], log decay of value channels */
  carve_cuda_tensor E;        /*!< [B,T,HV,K*V], full-mask erase gate */
  carve_cuda_tensor p;        /*!< [B,T,HV,K], address of a first erase */
  carve_cuda_tensor eta;      /*!< [B,T,HV], its strength */
  carve_cuda_tensor r;        /*!< [B,T,HV,K], erase address */
  carve_cuda_tensor y;        /*!< [B,T,HV,K], erase direction */
  carve_cuda_tensor w_last;   /*!< [B,T,HV], write gate of the last token */
  int substeps; /*!< of a token, each with rows of its own; 0: 1 */
  carve_cuda_erase_order erase_order; /*!< which state the erase looks into */
} carve_cuda_problem;

/*! What the forward writes. */
typedef struct carve_cuda_outputs {
  carve_cuda_tensor o; /*!< [B,T,HV,V] */
  float* final_state;  /*!< [N,HV,K,V], or NULL */
  float* window_means; /*!< carve: [B*T/window+N,HV,V], or NULL */
} carve_cuda_outputs;

/*! Cotangents in, gradients out; a null pointer skips a gradient.  dg and dgd
 * are F32, states and content-gate parameters too, the others have the inputs'
 * type. */
typedef struct carve_cuda_gradients {
  carve_cuda_tensor d_o;      /*!< in */
  const float* d_final_state; /*!< in, or NULL */
  const float* window_means;  /*!< in: what the forward wrote there, or NULL */
  carve_cuda_tensor dq;       /*!< out */
  carve_cuda_tensor dk;       /*!< out */
  carve_cuda_tensor dv;       /*!< out */
  carve_cuda_tensor dg;       /*!< out */
  carve_cuda_tensor dbeta;    /*!< out */
  carve_cuda_tensor db;       /*!< out */
  carve_cuda_tensor de;       /*!< out */
  carve_cuda_tensor dw;       /*!< out */
  float* d_initial_state;     /*!< out */
  float* d_w_down;            /*!< out */
  float* d_w_up;              /*!< out */
  carve_cuda_tensor dgd;      /*!< out */
  carve_cuda_tensor dE;       /*!< out */
  carve_cuda_tensor dp;       /*!< out */
  carve_cuda_tensor deta;     /*!< out */
  carve_cuda_tensor dr;       /*!< out */
  carve_cuda_tensor dy;       /*!< out */
  carve_cuda_tensor dw_last;  /*!< out */
} carve_cuda_gradients;

/*! Not 0: this library has the kernels. */
CARVE_API int carve_cuda_built(void);

/*! Bytes of workspace that carve_cuda_forward() needs. */
CARVE_API carve_status
carve_cuda_forward_workspace(const carve_cuda_problem* problem, size_t* bytes);

/*! Writes o and what else `out` asks for, asynchronously on `stream`.
 * @param[in] workspace  device memory aligned to 256 bytes.
 * @param[in] stream     a cudaStream_t. */
CARVE_API carve_status carve_cuda_forward(const carve_cuda_problem* problem,
                                          const carve_cuda_outputs* out,
                                          void* workspace, size_t bytes,
                                          void* stream);

/*! Bytes of workspace that carve_cuda_backward() needs. */
CARVE_API carve_status
carve_cuda_backward_workspace(const carve_cuda_problem* problem, size_t* bytes);

/*! Writes the gradients asked for, asynchronously on `stream`. */
CARVE_API carve_status carve_cuda_backward(const carve_cuda_problem* problem,
                                           const carve_cuda_gradients* out,
                                           void* workspace, size_t bytes,
                                           void* stream);

/*! One token for each of N sequences (T = 1): `state` [N,HV,K,V] is read and
 * written back.  For carve, b holds the finished gate. */
CARVE_API carve_status carve_cuda_decode(const carve_cuda_problem* problem,
                                         const carve_cuda_tensor* o,
                                         float* state, void* stream);

/*! Name of the kernel that would run, a static string; "none" where the
 * problem cannot be used. */
CARVE_API const char* carve_cuda_kernel(const carve_cuda_problem* problem,
                                        int backward);

#ifdef __cplusplus
}
#endif

#endif
