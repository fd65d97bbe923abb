/// @file
/// How do arrays of Python reach the C interface?  As pointers, shapes and
/// strides; nothing is copied here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <deque>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "carve/carve.h"

namespace nb = nanobind;

namespace {

using setting_list = std::vector<std::pair<std::string, std::string>>;

[[noreturn]] void refuse(const std::string& text) {
  throw nb::value_error(text.c_str());
}

void check(carve_status status) {
  switch (status) {
    case CARVE_OK:
      return;
    case CARVE_BAD_INPUT:
      refuse(carve_last_error());
    case CARVE_NO_MEMORY:
      throw std::bad_alloc();
    case CARVE_INTERNAL:
      break;
  }
  throw std::runtime_error(carve_last_error());
}

/// What an array's elements are.
std::optional<carve_dtype> dtype_of(nb::dlpack::dtype t) {
  struct row {
    nb::dlpack::dtype_code code;
    int bits;
    carve_dtype dtype;
  };
  using code = nb::dlpack::dtype_code;
  constexpr row table[] = {
      {code::Float, 64, CARVE_F64}, {code::Float, 32, CARVE_F32},
      {code::Float, 16, CARVE_F16}, {code::Bfloat, 16, CARVE_BF16},
      {code::Int, 64, CARVE_I64},   {code::Int, 32, CARVE_I32},
  };
  for (const row& r : table) {
    if (t.code == static_cast<std::uint8_t>(r.code) && t.bits == r.bits &&
        t.lanes == 1) {
      return r.dtype;
    }
  }
  return {};
}

/// What the bits of integers stand for.
std::optional<carve_dtype> dtype_named(const std::string& name) {
  if (name == "bfloat16") return CARVE_BF16;
  if (name == "float8_e4m3fn") return CARVE_F8_E4M3;
  if (name == "float8_e5m2") return CARVE_F8_E5M2;
  return {};
}

/// The tensors and settings of a call, and what keeps them alive.
class arguments {
 public:
  /// @param[in] tensors  (name, array, None or the dtype its bits stand for).
  arguments(const nb::list& tensors, setting_list settings)
      : settings_(std::move(settings)) {
    // No vector grows later: the structs hold pointers into them.
    arrays_.reserve(nb::len(tensors));
    for (const nb::handle item : tensors) add(nb::cast<nb::tuple>(item));
    for (const auto& [key, value] : settings_) {
      setting_structs_.push_back({key.c_str(), value.c_str()});
    }
  }

  const carve_tensor* tensors() const { return structs_.data(); }
  std::size_t tensor_count() const { return structs_.size(); }
  const carve_setting* settings() const { return setting_structs_.data(); }
  std::size_t setting_count() const { return setting_structs_.size(); }

 private:
  struct array {
    std::string name;
    nb::ndarray<nb::ro> view;
    std::vector<std::int64_t> shape, strides;
  };

  void add(const nb::tuple& item) {
    array a;
    a.name = nb::cast<std::string>(item[0]);
    if (!nb::try_cast(item[1], a.view)) {
      refuse(a.name + ": expected an array, got " +
             nb::cast<std::string>(nb::str(item[1].type())));
    }
    if (a.view.device_type() != nb::device::cpu::value) {
      refuse(a.name + ": expected an array in the memory of the CPU");
    }
    const auto dtype = item[2].is_none()
                           ? dtype_of(a.view.dtype())
                           : dtype_named(nb::cast<std::string>(item[2]));
    if (!dtype) {
      refuse(a.name +
             ": expected elements of float64, float32, float16, bfloat16, "
             "float8_e4m3fn, float8_e5m2, int64 or int32");
    }
    for (std::size_t i = 0; i < a.view.ndim(); ++i) {
      a.shape.push_back(static_cast<std::int64_t>(a.view.shape(i)));
      a.strides.push_back(a.view.stride(i));
    }
    arrays_.push_back(std::move(a));
    const array& kept = arrays_.back();
    structs_.push_back({kept.name.c_str(), *dtype,
                        const_cast<void*>(kept.view.data()), kept.shape.size(),
                        kept.shape.data(), kept.strides.data()});
  }

  std::vector<array> arrays_;
  setting_list settings_;
  std::vector<carve_tensor> structs_;
  std::vector<carve_setting> setting_structs_;
};

/// `call(...)` while other threads run Python.
template <class Call>
void run(const Call& call) {
  carve_status status;
  {
    const nb::gil_scoped_release others_may_run;
    status = call();
  }
  check(status);
}

std::vector<std::int64_t> result_shape(const nb::list& tensors,
                                       setting_list settings,
                                       const std::string& name) {
  const arguments a(tensors, std::move(settings));
  std::int64_t shape[8];
  std::size_t rank = 0;
  run([&] {
    return carve_result_shape(a.tensors(), a.tensor_count(), a.settings(),
                              a.setting_count(), name.c_str(), shape, &rank);
  });
  return {shape, shape + rank};
}

void solve(const nb::list& tensors, setting_list settings,
           const nb::list& results, bool backward) {
  const arguments a(tensors, std::move(settings));
  const arguments out(results, {});
  run([&] {
    return (backward ? carve_backward : carve_forward)(
        a.tensors(), a.tensor_count(), a.settings(), a.setting_count(),
        out.tensors(), out.tensor_count());
  });
}

/// Table and JSON of a report, which is freed.
nb::tuple words_of(carve_report* report) {
  struct guard {
    carve_report* kept;
    ~guard() { carve_report_free(kept); }
  } const freed{report};
  return nb::make_tuple(carve_report_table(report), carve_report_json(report));
}

/// @param[in] dumps  (name, tensors, settings) of each.
nb::tuple relate(const std::string& relation, const nb::list& dumps) {
  std::deque<arguments> kept;  // does not move what it holds
  std::deque<std::string> names;
  std::vector<carve_dump> structs;
  for (const nb::handle item : dumps) {
    const auto of = nb::cast<nb::tuple>(item);
    names.push_back(nb::cast<std::string>(of[0]));
    kept.emplace_back(nb::cast<nb::list>(of[1]), nb::cast<setting_list>(of[2]));
    const arguments& a = kept.back();
    structs.push_back({names.back().c_str(), a.tensors(), a.tensor_count(),
                       a.settings(), a.setting_count()});
  }
  carve_report* report = nullptr;
  run([&] {
    return carve_relate(relation.c_str(), structs.data(), structs.size(),
                        &report);
  });
  return words_of(report);
}

nb::tuple stages(const nb::list& tensors, setting_list settings,
                 const std::optional<std::string>& path) {
  const arguments a(tensors, std::move(settings));
  carve_report* report = nullptr;
  run([&] {
    return carve_stages(a.tensors(), a.tensor_count(), a.settings(),
                        a.setting_count(), path ? path->c_str() : nullptr,
                        &report);
  });
  return words_of(report);
}

/// The table, the report as JSON and the heat map.
nb::tuple verify(const nb::list& tensors, setting_list settings) {
  const arguments a(tensors, std::move(settings));
  carve_report* report = nullptr;
  run([&] {
    return carve_verify(a.tensors(), a.tensor_count(), a.settings(),
                        a.setting_count(), &report);
  });
  struct guard {
    carve_report* kept;
    ~guard() { carve_report_free(kept); }
  } const freed{report};
  return nb::make_tuple(carve_report_table(report), carve_report_json(report),
                        carve_report_heat_map(report));
}

void save(const nb::list& tensors, setting_list settings,
          const std::string& path) {
  const arguments a(tensors, std::move(settings));
  run([&] {
    return carve_save(a.tensors(), a.tensor_count(), a.settings(),
                      a.setting_count(), path.c_str());
  });
}

}  // namespace

NB_MODULE(_carve, m) {
  m.attr("__version__") = carve_version();
  m.attr("tables") = carve_tables();
  m.def("result_shape", &result_shape);
  m.def("solve", &solve);
  m.def("verify", &verify);
  m.def("save", &save);
  m.def("relate", &relate);
  m.def("stages", &stages, nb::arg("tensors"), nb::arg("settings"),
        nb::arg("path").none());
}
