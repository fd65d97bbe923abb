/* Does the C interface of the CUDA kernels do what its header says?  Exit code
 * 77: no kernels or no device, so that only the errors were looked at. */
#include <carve/carve_cuda.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef CARVE_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include "check.h"

enum { T = 70, D = 16 };

#ifndef CARVE_WITH_CUDA

static int run(void) {
  carve_cuda_problem p;
  size_t bytes = 0;
  memset(&p, 0, sizeof p);
  CHECK(!carve_cuda_built());
  CHECK(carve_cuda_forward_workspace(&p, &bytes) == CARVE_BAD_INPUT);
  CHECK(strcmp(carve_last_error(),
               "CUDA: this library was built without the kernels") == 0);
  CHECK(carve_cuda_forward(&p, NULL, NULL, 0, NULL) == CARVE_BAD_INPUT);
  CHECK(carve_cuda_backward_workspace(&p, &bytes) == CARVE_BAD_INPUT);
  CHECK(carve_cuda_backward(&p, NULL, NULL, 0, NULL) == CARVE_BAD_INPUT);
  CHECK(carve_cuda_decode(&p, NULL, NULL, NULL) == CARVE_BAD_INPUT);
  CHECK(strcmp(carve_cuda_kernel(&p, 0), "none") == 0);
  printf("no kernels in this library\n");
  return 77;
}

#else

/* A tensor of a problem, its gradient, and how it is drawn: from `least` on,
 * `range` wide. */
typedef struct part {
  const char *name, *gradient;
  size_t in, out; /* in carve_cuda_problem and carve_cuda_gradients */
  int channels;   /* 0: it has no such axis, but one number a head */
  int each_substep;
  float least, range;
} part;

#define PART(x, channels, each_substep, least, range)                        \
  {                                                                          \
#x, "d" #x, offsetof(carve_cuda_problem, x),                             \
        offsetof(carve_cuda_gradients, d##x), channels, each_substep, least, \
        range                                                                \
  }

/* Which tensors a family takes beside q, k and v, in their order. */
typedef struct problem_case {
  const char* family;
  int substeps; /* 0: as if 1 were not said */
  carve_cuda_erase_order order;
  const char* order_setting; /* NULL: that of the family */
  part parts[5];             /* after the last one, names are NULL */
} problem_case;

static const part common[] = {PART(q, D, 0, -0.5f, 1), PART(k, D, 1, -0.5f, 1),
                              PART(v, D, 1, -0.5f, 1)};
static const problem_case cases[] = {
    {"gdn",
     0,
     CARVE_CUDA_ERASE_ORDER_OF_FAMILY,
     NULL,
     {PART(g, 0, 0, -1, 1), PART(beta, 0, 1, 0, 1)}},
    {"gated_delta_product",
     2,
     CARVE_CUDA_ERASE_ORDER_OF_FAMILY,
     NULL,
     {PART(g, 0, 0, -1, 1), PART(beta, 0, 1, 0, 1)}},
    {"eda",
     1,
     CARVE_CUDA_ERASE_BEFORE_DECAY,
     "before",
     {PART(g, D, 0, -1, 1), PART(beta, 0, 0, 0, 1), PART(p, D, 0, -0.5f, 1),
      PART(eta, 0, 0, 0, 1)}},
    {"dplr",
     0,
     CARVE_CUDA_ERASE_AFTER_DECAY,
     "after",
     {PART(g, D, 0, -1, 1), PART(gd, D, 0, -1, 1), PART(r, D, 0, -0.3f, 0.6f),
      PART(y, D, 0, -0.3f, 0.6f)}},
    {"mamba3",
     0,
     CARVE_CUDA_ERASE_ORDER_OF_FAMILY,
     NULL,
     {PART(g, 0, 0, -1, 1), PART(w, 0, 0, 0, 1), PART(w_last, 0, 0, 0, 1)}},
    {"full_erase",
     0,
     CARVE_CUDA_ERASE_ORDER_OF_FAMILY,
     NULL,
     {PART(g, D, 0, -1, 1), PART(E, D* D, 0, 0, 1), PART(w, D, 0, 0, 1)}},
    {"rwkv7",
     0,
     CARVE_CUDA_ERASE_ORDER_OF_FAMILY,
     NULL,
     {PART(g, D, 0, -1, 1), PART(b, D, 0, 0, 1), PART(r, D, 0, -0.3f, 0.6f)}}};

/* A copy in device memory; NULL: room for that many, filled with NaN. */
static float* device(const float* host, size_t count) {
  float* to = NULL;
  CHECK(cudaMalloc((void**)&to, count * sizeof *to) == cudaSuccess);
  if (host) {
    cudaMemcpy(to, host, count * sizeof *to, cudaMemcpyHostToDevice);
  } else {
    cudaMemset(to, 0xff, count * sizeof *to);
  }
  return to;
}

/* [1,tokens,1,channels]; host NULL: to be written. */
static carve_cuda_tensor rows(const float* host, int tokens, int channels) {
  carve_cuda_tensor t;
  t.data = device(host, (size_t)tokens * channels);
  t.batch = (int64_t)tokens * channels, t.token = channels, t.head = channels;
  return t;
}

/* From 0 to 1. */
static float number(unsigned* seed) {
  *seed = *seed * 1664525u + 1013904223u;
  return (float)(*seed >> 8) / 16777216.0f;
}

/* Do the numbers on the device agree with the reference's? */
static void agree(const char* family, const carve_tensor* exact,
                  const void* data, size_t count) {
  float* x = malloc(count * sizeof *x);
  const double* e = exact->data;
  double error = 0, size = 0;
  size_t i;
  CHECK(cudaMemcpy(x, data, count * sizeof *x, cudaMemcpyDeviceToHost) ==
        cudaSuccess);
  for (i = 0; i < count; ++i) {
    error += (x[i] - e[i]) * (x[i] - e[i]), size += e[i] * e[i];
  }
  if (!(sqrt(error / size) < 1e-5)) {
    ++failures;
    fprintf(stderr, "%s, %s: relative error %g\n", family, exact->name,
            sqrt(error / size));
  }
  free(x);
}

enum { most = 10 };

/* Forward and backward of a case on the device and by the reference. */
static void check_case(const problem_case* c, unsigned seed) {
  const int substeps = c->substeps ? c->substeps : 1;
  carve_setting settings[] = {
      {"family", NULL}, {"scale", "0.25"}, {"erase_order", NULL}};
  int64_t shapes[most][4];
  carve_cuda_problem p;
  carve_cuda_outputs out;
  carve_cuda_gradients back;
  carve_tensor in[most], exact[most];
  const void* got[most];
  size_t counts[most], bytes = 0;
  void* workspace;
  int n = 0, i;
  memset(&p, 0, sizeof p), memset(&out, 0, sizeof out);
  memset(&back, 0, sizeof back);
  settings[0].value = p.family = c->family;
  settings[2].value = c->order_setting;
  p.input = p.decay = CARVE_F32, p.scale = 0.25f;
  p.B = p.H = p.HV = p.N = 1, p.T = T, p.K = p.V = D;
  p.substeps = c->substeps, p.erase_order = c->order;
  for (n = 0; n < 3 || (n < 8 && c->parts[n - 3].name); ++n) {
    const part* x = n < 3 ? &common[n] : &c->parts[n - 3];
    const int tokens = x->each_substep ? T * substeps : T;
    const int channels = x->channels ? x->channels : 1;
    const int square = x->channels == D * D;
    float* host = malloc(sizeof *host * tokens * channels);
    for (i = 0; i < tokens * channels; ++i) {
      host[i] = x->least + x->range * number(&seed);
    }
    *(carve_cuda_tensor*)((char*)&p + x->in) = rows(host, tokens, channels);
    *(carve_cuda_tensor*)((char*)&back + x->out) = rows(NULL, tokens, channels);
    got[n] = ((carve_cuda_tensor*)((char*)&back + x->out))->data;
    counts[n] = (size_t)tokens * channels;
    shapes[n][0] = 1, shapes[n][1] = tokens, shapes[n][2] = 1;
    shapes[n][3] = square ? D : channels;
    in[n].name = x->name, in[n].dtype = CARVE_F32, in[n].data = host;
    in[n].shape = shapes[n], in[n].strides = NULL;
    in[n].rank = square ? 5 : x->channels ? 4 : 3;
    exact[n] = in[n], exact[n].name = x->gradient;
  }
  {
    static const int64_t wide[] = {1, T, 1, D}, mask[] = {1, T, 1, D, D};
    float* d_o = malloc(sizeof *d_o * T * D);
    for (i = 0; i < T * D; ++i) d_o[i] = number(&seed) - 0.5f;
    back.d_o = rows(d_o, T, D), out.o = rows(NULL, T, D);
    for (i = 0; i < n; ++i) {
      if (in[i].rank == 5) in[i].shape = exact[i].shape = mask;
    }
    in[n] = in[0], in[n].name = "do", in[n].data = d_o, in[n].shape = wide;
    exact[n] = in[n], exact[n].name = "o";
    got[n] = out.o.data, counts[n] = (size_t)T * D;
  }
  for (i = 0; i <= n; ++i) {
    exact[i].dtype = CARVE_F64;
    exact[i].data = malloc(sizeof(double) * counts[i]);
  }
  CHECK(carve_cuda_forward_workspace(&p, &bytes) == CARVE_OK);
  workspace = device(NULL, bytes / sizeof(float) + 1);
  CHECK(carve_cuda_forward(&p, &out, workspace, bytes, NULL) == CARVE_OK);
  CHECK(carve_cuda_backward_workspace(&p, &bytes) == CARVE_OK);
  workspace = device(NULL, bytes / sizeof(float) + 1);
  CHECK(carve_cuda_backward(&p, &back, workspace, bytes, NULL) == CARVE_OK);
  CHECK(strcmp(carve_cuda_kernel(&p, 1), "none") != 0);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(carve_backward(in, n + 1, settings, c->order_setting ? 3 : 2, exact,
                       n + 1) == CARVE_OK);
  for (i = 0; i <= n; ++i) agree(c->family, &exact[i], got[i], counts[i]);
}

static int run(void) {
  carve_cuda_problem p;
  carve_cuda_outputs out;
  size_t bytes = 0, i;
  int devices = 0;
  static float memory[4];
  memset(&p, 0, sizeof p), memset(&out, 0, sizeof out);
  CHECK(carve_cuda_built());
  p.family = "gnd";
  CHECK(carve_cuda_forward_workspace(&p, &bytes) == CARVE_BAD_INPUT);
  p.family = "gdn", p.input = CARVE_F64;
  CHECK(carve_cuda_forward_workspace(&p, &bytes) == CARVE_BAD_INPUT);
  CHECK(strncmp(carve_last_error(), "input: expected F32, F16", 24) == 0);
  CHECK(carve_cuda_forward(NULL, &out, NULL, 0, NULL) == CARVE_BAD_INPUT);
  p.input = p.decay = CARVE_F32;
  CHECK(carve_cuda_forward_workspace(&p, &bytes) == CARVE_BAD_INPUT);
  p.erase_order = (carve_cuda_erase_order)3;
  CHECK(carve_cuda_forward_workspace(&p, &bytes) == CARVE_BAD_INPUT);
  CHECK(strcmp(carve_last_error(),
               "erase_order: not one of its values, got 3") == 0);
  /* A tensor of the table that is not there is named. */
  p.erase_order = CARVE_CUDA_ERASE_ORDER_OF_FAMILY, p.family = "dplr";
  p.B = p.H = p.HV = p.N = 1, p.T = T, p.K = p.V = D;
  p.q.data = p.k.data = p.v.data = p.g.data = p.r.data = memory;
  CHECK(carve_cuda_forward_workspace(&p, &bytes) == CARVE_BAD_INPUT);
  CHECK(strcmp(carve_last_error(), "y: null pointer") == 0);
  p.y.data = memory, p.substeps = 2;
  CHECK(carve_cuda_forward_workspace(&p, &bytes) == CARVE_BAD_INPUT);
  CHECK(strcmp(carve_last_error(), "substeps: this family takes one") == 0);
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    printf("no CUDA device: only the errors were looked at\n");
    return 77;
  }
  for (i = 0; i < sizeof cases / sizeof *cases; ++i) {
    check_case(&cases[i], (unsigned)i + 1);
  }
  printf(failures ? "%d checks failed\n" : "all checks hold\n", failures);
  return 0;
}

#endif

int main(void) {
  const int code = run();
  return failures ? 1 : code;
}
