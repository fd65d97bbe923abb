/* Does the C interface do what its header says?  A problem small enough to be
 * solved by hand: gated delta rule, two tokens, K = 2, V = 1, scale 1.
 *   S_1 = beta v_1 = 1;  S_2 = a S_1 + beta (v_2 - a S_1) = 1.75 with a = 1/2,
 *   beta = 1/2, v = (2, 3); o = (1, 1.75); with do = (0, 1)
 *   dv = (beta a (1 - beta), beta) = (0.125, 0.5). */
#include <carve/carve.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "check.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const int64_t key_shape[] = {1, 2, 1, 2};
static const int64_t value_shape[] = {1, 2, 1, 1};
static const int64_t gate_shape[] = {1, 2, 1};
static const int64_t state_shape[] = {1, 1, 2, 1};

static double q[] = {1, 0, 1, 0}, v[] = {2, 3}, beta[] = {0.5, 0.5};
static double g[] = {0, -0.69314718055994530942};

static const carve_setting gdn[] = {{"family", "gdn"}, {"scale", "1"}};

static carve_tensor tensor(const char* name, carve_dtype dtype, void* data,
                           size_t rank, const int64_t* shape) {
  carve_tensor t;
  t.name = name, t.dtype = dtype, t.data = data;
  t.rank = rank, t.shape = shape, t.strides = NULL;
  return t;
}

/* The five inputs. */
static void fill(carve_tensor* in) {
  in[0] = tensor("q", CARVE_F64, q, 4, key_shape);
  in[1] = tensor("k", CARVE_F64, q, 4, key_shape);
  in[2] = tensor("v", CARVE_F64, v, 4, value_shape);
  in[3] = tensor("g", CARVE_F64, g, 3, gate_shape);
  in[4] = tensor("beta", CARVE_F64, beta, 3, gate_shape);
}

static void forward_is_exact(void) {
  carve_tensor in[5], out[2];
  double o[2] = {0}, s[2] = {0};
  fill(in);
  out[0] = tensor("o", CARVE_F64, o, 4, value_shape);
  out[1] = tensor("final_state", CARVE_F64, s, 4, state_shape);
  CHECK(carve_forward(in, 5, gdn, 2, out, 2) == CARVE_OK);
  CHECK(o[0] == 1 && o[1] == 1.75);
  CHECK(s[0] == 1.75 && s[1] == 0);
}

static void every_dtype_is_read_and_written(void) {
  /* The same numbers in BF16, F16 and F32. */
  static uint16_t q16[] = {0x3f80, 0, 0x3f80, 0}, v16[] = {0x4000, 0x4040};
  static uint16_t qh[] = {0x3c00, 0, 0x3c00, 0}, vh[] = {0x4000, 0x4200};
  static float qf[] = {1, 0, 1, 0}, vf[] = {2, 3};
  struct {
    carve_dtype dtype;
    void *q, *v;
  } cases[3];
  size_t i;
  cases[0].dtype = CARVE_BF16, cases[0].q = q16, cases[0].v = v16;
  cases[1].dtype = CARVE_F16, cases[1].q = qh, cases[1].v = vh;
  cases[2].dtype = CARVE_F32, cases[2].q = qf, cases[2].v = vf;
  for (i = 0; i < COUNT(cases); ++i) {
    carve_tensor in[5], out;
    double o[2] = {0};
    float of[2] = {0};
    uint16_t ob[2] = {0}, oh[2] = {0};
    fill(in);
    in[0].dtype = in[1].dtype = in[2].dtype = cases[i].dtype;
    in[0].data = in[1].data = cases[i].q, in[2].data = cases[i].v;
    out = tensor("o", CARVE_F64, o, 4, value_shape);
    CHECK(carve_forward(in, 5, gdn, 2, &out, 1) == CARVE_OK);
    CHECK(o[0] == 1 && o[1] == 1.75);
    out.dtype = CARVE_F32, out.data = of;
    CHECK(carve_forward(in, 5, gdn, 2, &out, 1) == CARVE_OK);
    CHECK(of[0] == 1 && of[1] == 1.75f);
    out.dtype = CARVE_BF16, out.data = ob;
    CHECK(carve_forward(in, 5, gdn, 2, &out, 1) == CARVE_OK);
    CHECK(ob[0] == 0x3f80 && ob[1] == 0x3fe0);
    out.dtype = CARVE_F16, out.data = oh;
    CHECK(carve_forward(in, 5, gdn, 2, &out, 1) == CARVE_OK);
    CHECK(oh[0] == 0x3c00 && oh[1] == 0x3f00);
  }
}

static void strides_are_followed(void) {
  /* q and k with the channel axis first, v backwards, o with a gap. */
  static double qt[] = {1, 1, 0, 0}, back[] = {3, 2};
  static const int64_t q_steps[] = {4, 1, 2, 2}, v_steps[] = {2, -1, 1, 1};
  static const int64_t o_steps[] = {6, 3, 1, 1};
  carve_tensor in[5], out;
  double o[6] = {7, 7, 7, 7, 7, 7};
  fill(in);
  in[0].data = in[1].data = qt, in[0].strides = in[1].strides = q_steps;
  in[2].data = back + 1, in[2].strides = v_steps;
  out = tensor("o", CARVE_F64, o, 4, value_shape);
  out.strides = o_steps;
  CHECK(carve_forward(in, 5, gdn, 2, &out, 1) == CARVE_OK);
  CHECK(o[0] == 1 && o[3] == 1.75);
  CHECK(o[1] == 7 && o[2] == 7 && o[4] == 7 && o[5] == 7);
}

static void gradients_are_exact(void) {
  static double d_o[] = {0, 1};
  carve_tensor in[6], out[2];
  double dv[2] = {0}, o[2] = {0};
  fill(in);
  in[5] = tensor("do", CARVE_F64, d_o, 4, value_shape);
  out[0] = tensor("dv", CARVE_F64, dv, 4, value_shape);
  out[1] = tensor("o", CARVE_F64, o, 4, value_shape);
  CHECK(carve_backward(in, 6, gdn, 2, out, 2) == CARVE_OK);
  CHECK(dv[0] == 0.125 && dv[1] == 0.5);
  CHECK(o[0] == 1 && o[1] == 1.75);
  CHECK(carve_backward(in, 5, gdn, 2, out, 2) == CARVE_BAD_INPUT);
  CHECK(strcmp(carve_last_error(),
               "do: expected do or dfinal_state, got neither") == 0);
}

static void layouts_are_settings(void) {
  static const int64_t heads_first[] = {1, 1, 2, 2};
  static const int64_t v_first[] = {1, 1, 2, 1}, g_first[] = {1, 1, 2};
  static const int64_t nhvk[] = {1, 1, 1, 2};
  const carve_setting settings[] = {
      {"family", "gdn"},        {"scale", "1"},   {"layout", "BHTD"},
      {"state_layout", "NHVK"}, {"threads", "1"}, {"precision", "double"}};
  carve_tensor in[5], out[2];
  int64_t shape[8];
  size_t rank = 0;
  double o[2] = {0}, s[2] = {0};
  fill(in);
  in[0].shape = in[1].shape = heads_first, in[2].shape = v_first;
  in[3].shape = in[4].shape = g_first;
  out[0] = tensor("o", CARVE_F64, o, 4, v_first);
  out[1] = tensor("final_state", CARVE_F64, s, 4, nhvk);
  CHECK(carve_forward(in, 5, settings, COUNT(settings), out, 2) == CARVE_OK);
  CHECK(o[0] == 1 && o[1] == 1.75 && s[0] == 1.75 && s[1] == 0);
  CHECK(carve_result_shape(in, 5, settings, COUNT(settings), "final_state",
                           shape, &rank) == CARVE_OK);
  CHECK(rank == 4 && shape[2] == 1 && shape[3] == 2);
  CHECK(carve_result_shape(in, 5, settings, COUNT(settings), "dq", shape,
                           &rank) == CARVE_OK);
  CHECK(rank == 4 && shape[1] == 1 && shape[2] == 2 && shape[3] == 2);
}

/* Calls with input that cannot be used: what they say, and nothing written. */
static void errors_are_told(void) {
  static double nan_v[] = {0, 0};
  static const int64_t other[] = {1, 2, 1, 5};
  const carve_setting odd[] = {{"family", "gdn"}, {"speed", "9"}};
  const carve_setting none[] = {{"scale", "1"}};
  carve_tensor in[5], out;
  double o[2] = {7, 7};
  fill(in);
  out = tensor("o", CARVE_F64, o, 4, value_shape);
  CHECK(carve_forward(in, 4, gdn, 2, &out, 1) == CARVE_BAD_INPUT);
  CHECK(strncmp(carve_last_error(), "beta: missing; family gdn", 25) == 0);
  CHECK(carve_forward(in, 5, odd, 2, &out, 1) == CARVE_BAD_INPUT);
  CHECK(strncmp(carve_last_error(), "speed: unknown setting", 22) == 0);
  CHECK(carve_forward(in, 5, none, 1, &out, 1) == CARVE_BAD_INPUT);
  CHECK(strncmp(carve_last_error(), "family: missing", 15) == 0);
  CHECK(carve_forward(NULL, 5, gdn, 2, &out, 1) == CARVE_BAD_INPUT);
  CHECK(strcmp(carve_last_error(), "tensors: expected a pointer, got NULL") ==
        0);
  out.shape = other;
  CHECK(carve_forward(in, 5, gdn, 2, &out, 1) == CARVE_BAD_INPUT);
  CHECK(strcmp(carve_last_error(), "o: expected [1,2,1,1], got [1,2,1,5]") ==
        0);
  out.shape = value_shape, out.dtype = CARVE_I32;
  CHECK(carve_forward(in, 5, gdn, 2, &out, 1) == CARVE_BAD_INPUT);
  out.dtype = CARVE_F64, out.name = "dv";
  CHECK(carve_forward(in, 5, gdn, 2, &out, 1) == CARVE_BAD_INPUT);
  out.name = "o", in[0].dtype = (carve_dtype)99;
  CHECK(carve_forward(in, 5, gdn, 2, &out, 1) == CARVE_BAD_INPUT);
  in[0].dtype = CARVE_F64, in[2].data = nan_v, nan_v[1] = NAN;
  CHECK(carve_forward(in, 5, gdn, 2, &out, 1) == CARVE_BAD_INPUT);
  CHECK(strncmp(carve_last_error(), "v: expected finite numbers", 26) == 0);
  in[2].data = NULL;
  CHECK(carve_forward(in, 5, gdn, 2, &out, 1) == CARVE_BAD_INPUT);
  CHECK(o[0] == 7 && o[1] == 7);
}

static void a_kernel_is_judged(void) {
  float o[2] = {1, 1.75f};
  carve_tensor in[6];
  carve_report* report = NULL;
  fill(in);
  in[5] = tensor("o", CARVE_F32, o, 4, value_shape);
  CHECK(carve_verify(in, 6, gdn, 2, &report) == CARVE_OK);
  CHECK(carve_report_verdict(report) == CARVE_PASS);
  CHECK(strcmp(carve_report_heat_map(report), "") == 0);
  CHECK(strstr(carve_report_table(report), "Gated DeltaNet") != NULL);
  CHECK(strstr(carve_report_json(report), "\"verdict\": \"pass\"") != NULL);
  carve_report_free(report);
  o[1] = 1.5f;
  CHECK(carve_verify(in, 6, gdn, 2, &report) == CARVE_OK);
  CHECK(carve_report_verdict(report) == CARVE_FAIL);
  CHECK(strncmp(carve_report_heat_map(report), "<svg", 4) == 0);
  CHECK(strstr(carve_report_table(report), "FAIL") != NULL);
  carve_report_free(report);
  CHECK(carve_verify(in, 5, gdn, 2, &report) == CARVE_BAD_INPUT);
  CHECK(report == NULL);
  CHECK(strncmp(carve_last_error(), "no output to judge", 18) == 0);
  carve_report_free(NULL);
}

static void dumps_are_related(void) {
  float o[2] = {1, 1.75f}, other[2] = {1, 1.75f};
  carve_tensor in[2][6];
  carve_dump dumps[2];
  carve_report* report = NULL;
  int i;
  for (i = 0; i < 2; ++i) {
    fill(in[i]);
    in[i][5] = tensor("o", CARVE_F32, i ? other : o, 4, value_shape);
    dumps[i].name = i ? "B" : "A";
    dumps[i].tensors = in[i], dumps[i].tensor_count = 6;
    dumps[i].settings = gdn, dumps[i].setting_count = 2;
  }
  CHECK(carve_relate("repeat", dumps, 2, &report) == CARVE_OK);
  CHECK(carve_report_verdict(report) == CARVE_PASS);
  CHECK(strstr(carve_report_json(report), "\"bit_for_bit\": true") != NULL);
  carve_report_free(report);
  other[1] = 1.5f;
  CHECK(carve_relate("repeat", dumps, 2, &report) == CARVE_OK);
  CHECK(carve_report_verdict(report) == CARVE_FAIL);
  CHECK(strstr(carve_report_table(report), "o") != NULL);
  carve_report_free(report);
  CHECK(carve_relate("likeness", dumps, 2, &report) == CARVE_BAD_INPUT);
  CHECK(report == NULL);
  CHECK(strstr(carve_last_error(), "repeat") != NULL);
}

static void stages_are_judged(void) {
  /* Of two tokens: T is 1, and below it minus L. */
  static const int64_t square[] = {1, 2, 1, 2};
  double T[4] = {1, 0, 0, 1}, L[4] = {0, 0, 0, 0};
  carve_tensor in[7];
  carve_report* report = NULL;
  fill(in);
  CHECK(carve_stages(in, 5, gdn, 2, NULL, &report) == CARVE_BAD_INPUT);
  CHECK(report == NULL);
  CHECK(strncmp(carve_last_error(), "no stage to judge", 17) == 0);
  CHECK(carve_stages(in, 5, gdn, 2, "c_stages.safetensors", &report) ==
        CARVE_OK);
  carve_report_free(report);
  CHECK(remove("c_stages.safetensors") == 0);
  in[5] = tensor("L", CARVE_F64, L, 4, square);
  in[6] = tensor("T", CARVE_F64, T, 4, square);
  L[2] = 5;
  CHECK(carve_stages(in, 7, gdn, 2, NULL, &report) == CARVE_OK);
  CHECK(carve_report_verdict(report) == CARVE_FAIL);
  CHECK(strstr(carve_report_json(report), "\"first_wrong\": \"L\"") != NULL);
  carve_report_free(report);
}

static void a_dump_is_saved(void) {
  const carve_setting settings[] = {{"family", "gdn"}, {"made_by", "test"}};
  unsigned char start[9] = {0};
  carve_tensor in[5];
  FILE* f;
  fill(in);
  CHECK(carve_save(in, 5, settings, 2, "c_interface.safetensors") == CARVE_OK);
  f = fopen("c_interface.safetensors", "rb");
  CHECK(f != NULL && fread(start, 1, 9, f) == 9 && start[8] == '{');
  if (f) fclose(f);
  remove("c_interface.safetensors");
  CHECK(carve_save(in, 5, settings, 2, "no/such/folder/x") == CARVE_BAD_INPUT);
}

int main(void) {
  CHECK(strcmp(carve_last_error(), "") == 0);
  CHECK(strlen(carve_version()) >= 5);
  CHECK(strstr(carve_tables(), "\"gdn\"") != NULL);
  forward_is_exact();
  every_dtype_is_read_and_written();
  strides_are_followed();
  gradients_are_exact();
  layouts_are_settings();
  errors_are_told();
  a_kernel_is_judged();
  dumps_are_related();
  stages_are_judged();
  a_dump_is_saved();
  printf(failures ? "%d checks failed\n" : "all checks hold\n", failures);
  return failures != 0;
}
