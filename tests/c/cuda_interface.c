/* Does the C interface of the CUDA kernels do what its header says?  Exit code
 * 77: no kernels or no device, so that only the errors were looked at. */
#include <carve/carve_cuda.h>
#include <math.h>
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

static float *q, *k, *v, *g, *beta;

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

static carve_cuda_tensor rows(float* host, int channels, int upload) {
  carve_cuda_tensor t;
  t.data = upload ? device(host, (size_t)T * channels)
                  : device(NULL, (size_t)T * channels);
  t.batch = (int64_t)T * channels, t.token = channels, t.head = channels;
  return t;
}

static float number(unsigned* seed) {
  *seed = *seed * 1664525u + 1013904223u;
  return (float)(*seed >> 8) / 16777216.0f - 0.5f;
}

/* Do the numbers on the device agree with the reference's? */
static void agree(const char* name, const carve_tensor* exact, const void* data,
                  size_t count) {
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
    fprintf(stderr, "%s: relative error %g\n", name, sqrt(error / size));
  }
  free(x);
}

static int run(void) {
  static const int64_t wide[] = {1, T, 1, D}, narrow[] = {1, T, 1};
  static const carve_setting settings[] = {{"family", "gdn"},
                                           {"scale", "0.25"}};
  carve_cuda_problem p;
  carve_cuda_outputs out;
  carve_cuda_gradients back;
  carve_tensor in[6], exact[3];
  float *all[5], *d_o = malloc(sizeof(float) * T * D);
  double* results = malloc(3 * sizeof(double) * T * D);
  void* workspace = NULL;
  size_t bytes = 0;
  unsigned seed = 1;
  int i, j, devices = 0;
  memset(&p, 0, sizeof p), memset(&out, 0, sizeof out);
  memset(&back, 0, sizeof back);
  CHECK(carve_cuda_built());
  p.family = "gnd";
  CHECK(carve_cuda_forward_workspace(&p, &bytes) == CARVE_BAD_INPUT);
  p.family = "gdn", p.input = CARVE_F64;
  CHECK(carve_cuda_forward_workspace(&p, &bytes) == CARVE_BAD_INPUT);
  CHECK(strncmp(carve_last_error(), "input: expected F32, F16", 24) == 0);
  CHECK(carve_cuda_forward(NULL, &out, NULL, 0, NULL) == CARVE_BAD_INPUT);
  p.input = p.decay = CARVE_F32;
  CHECK(carve_cuda_forward_workspace(&p, &bytes) == CARVE_BAD_INPUT);
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    printf("no CUDA device: only the errors were looked at\n");
    return 77;
  }
  for (i = 0; i < 5; ++i) all[i] = malloc(sizeof(float) * T * D);
  q = all[0], k = all[1], v = all[2], g = all[3], beta = all[4];
  for (j = 0; j < T * D; ++j) {
    q[j] = number(&seed), k[j] = number(&seed), v[j] = number(&seed);
    d_o[j] = number(&seed);
  }
  for (j = 0; j < T; ++j) {
    g[j] = number(&seed) - 0.5f, beta[j] = number(&seed) + 0.5f;
  }
  p.B = p.H = p.HV = p.N = 1, p.T = T, p.K = p.V = D, p.scale = 0.25f;
  p.q = rows(q, D, 1), p.k = rows(k, D, 1), p.v = rows(v, D, 1);
  p.g = rows(g, 1, 1), p.beta = rows(beta, 1, 1);
  out.o = rows(NULL, D, 0);
  CHECK(carve_cuda_forward_workspace(&p, &bytes) == CARVE_OK);
  workspace = device(NULL, bytes / sizeof(float) + 1);
  CHECK(carve_cuda_forward(&p, &out, workspace, bytes, NULL) == CARVE_OK);
  back.d_o = rows(d_o, D, 1), back.dk = rows(NULL, D, 0);
  back.dg = rows(NULL, 1, 0);
  CHECK(carve_cuda_backward_workspace(&p, &bytes) == CARVE_OK);
  workspace = device(NULL, bytes / sizeof(float) + 1);
  CHECK(carve_cuda_backward(&p, &back, workspace, bytes, NULL) == CARVE_OK);
  CHECK(strcmp(carve_cuda_kernel(&p, 1), "none") != 0);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  {
    static const char* names[] = {"q", "k", "v", "g", "beta", "do"};
    for (i = 0; i < 6; ++i) {
      in[i].name = names[i], in[i].dtype = CARVE_F32;
      in[i].data = i < 5 ? all[i] : d_o, in[i].strides = NULL;
      in[i].rank = i == 3 || i == 4 ? 3 : 4;
      in[i].shape = in[i].rank == 3 ? narrow : wide;
    }
    exact[0] = exact[1] = in[0], exact[2] = in[3];
    exact[0].name = "o", exact[1].name = "dk", exact[2].name = "dg";
    for (i = 0; i < 3; ++i) {
      exact[i].dtype = CARVE_F64, exact[i].data = results + i * T * D;
    }
  }
  CHECK(carve_backward(in, 6, settings, 2, exact, 3) == CARVE_OK);
  agree("o", &exact[0], out.o.data, (size_t)T * D);
  agree("dk", &exact[1], back.dk.data, (size_t)T * D);
  agree("dg", &exact[2], back.dg.data, T);
  printf(failures ? "%d checks failed\n" : "all checks hold\n", failures);
  return 0;
}

#endif

int main(void) {
  const int code = run();
  return failures ? 1 : code;
}
