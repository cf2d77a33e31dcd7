// The sample as a function of torch's C++ autograd, and the softmax's backward, as functions of a Python module: what a
// call costs beside its arithmetic is then a third of what it costs by Python. It needs torch's and Python's headers, which
// take half a minute to compile, and nothing depends on it.
//
// Each function returns None for arguments that are not its case: the caller goes the long way, which knows what to say.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/python_variable.h>

#include "kernels.cpp"

namespace taugrad {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What `kernels.holds` asks of a tensor.
bool is_plain(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return false;
  const Tensor& x = THPVariable_Unpack(object);
  return (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble) && x.is_cpu() && x.has_storage() &&
         !x.is_neg() && !x._is_zerotensor();
}

bool is_temperature(PyObject* object) {
  return PyFloat_CheckExact(object) && PyFloat_AS_DOUBLE(object) > 0 && std::isfinite(PyFloat_AS_DOUBLE(object));
}

Pool pool_from(PyObject* parallel) {
  const auto address = reinterpret_cast<Parallel>(PyLong_AsVoidPtr(parallel));
  return {address, at::get_num_threads()};
}

// As torch.randint(2^63 - 1, ()) draws it.
uint64_t draw_seed() {
  auto* generator = at::check_generator<at::CPUGeneratorImpl>(at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  return generator->random64() % ((uint64_t(1) << 63) - 1);
}

template <class F> auto in_dtype(const Tensor& x, F f) { return x.scalar_type() == at::kFloat ? f(0.0f) : f(0.0); }

// To `dx`, which may be y.
Tensor softmax_backward(const Tensor& grad, const Tensor& y, double tau, const Pool& pool, Tensor dx) {
  const int64_t K = y.size(-1), rows = y.numel() / K;
  in_dtype(y, [&](auto number) {
    typedef decltype(number) T;
    softmax_backward<T>(grad.const_data_ptr<T>(), y.const_data_ptr<T>(), rows, K, tau, dx.mutable_data_ptr<T>(), pool);
  });
  return dx;
}

Tensor reinmax_backward(const Tensor& grad, const Tensor& y, double tau, const Pool& pool, Tensor dx) {
  const int64_t K = y.size(-1), rows = y.numel() / K;
  in_dtype(y, [&](auto number) {
    typedef decltype(number) T;
    reinmax_backward<T>(grad.const_data_ptr<T>(), y.const_data_ptr<T>(), rows, K, tau, dx.mutable_data_ptr<T>(), pool);
  });
  return dx;
}

// The two by operators of torch, which have gradients of their own and take any tensor, as those of Python.
Tensor softmax_backward(const Tensor& grad, const Tensor& y, double tau) {
  return (grad - (grad * y).sum(-1, true)) * (y / tau);
}

Tensor reinmax_backward(const Tensor& grad, const Tensor& y, double tau) {
  const Tensor q = y.abs(), weights = (q / q.amax(-1, true)).pow(tau), pi = weights / weights.sum(-1, true);
  return 2 * softmax_backward(grad, (q + y.signbit()) / 2, 1) - softmax_backward(grad, pi, 1) / 2;
}

struct BadRows {
  int64_t count;
};

// Whether the gradient can be written over y: autograd frees y next, and nobody else holds it. The gradient then costs no
// memory of its own, whose first touch takes longer than the arithmetic. Two holders are the saved variable and y.
bool is_expendable(const AutogradContext* ctx, const Tensor& y) {
  return !torch::autograd::get_current_graph_task_keep_graph() && !ctx->saved_data.at("hooked").toBool() &&
         y.storage().use_count() <= 2;
}

// (z, y) or, unless `hard`, y alone; dz := dy.
struct BoundSample : torch::autograd::Function<BoundSample> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits, double tau, int64_t relaxation, double gap,
                               bool hard, const Pool& pool) {
    const Tensor x = logits.contiguous(), y = at::empty_like(x), z = hard ? at::empty_like(x) : Tensor();
    const int64_t K = x.size(-1), rows = x.numel() / K;
    const uint64_t seed = draw_seed();
    const int64_t failures = in_dtype(x, [&](auto number) {
      typedef decltype(number) T;
      return sample<T>({x.const_data_ptr<T>(), rows, K, &seed, relaxation, tau, gap, y.mutable_data_ptr<T>(),
                        hard ? z.mutable_data_ptr<T>() : nullptr, nullptr},
                       pool);
    });
    if (failures) throw BadRows{failures};
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({y});
    ctx->saved_data["tau"] = tau;
    ctx->saved_data["reinmax"] = relaxation == kMarked;
    ctx->saved_data["hooked"] = at::SavedTensorDefaultHooks::get_hooks().has_value();
    ctx->saved_data["parallel"] = reinterpret_cast<int64_t>(pool.parallel);
    return hard ? variable_list{z, y} : variable_list{y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor y = ctx->get_saved_variables()[0];
    const double tau = ctx->saved_data["tau"].toDouble();
    const bool reinmax = ctx->saved_data["reinmax"].toBool();
    Tensor grad, dx;
    for (const Tensor& g : grads)
      if (g.defined()) grad = grad.defined() ? grad + g : g;
    if (grad.defined()) {
      const Pool pool{reinterpret_cast<Parallel>(ctx->saved_data["parallel"].toInt()), at::get_num_threads()};
      if (at::GradMode::is_enabled() || !grad.has_storage() || grad.is_neg() || grad._is_zerotensor() ||
          at::isTensorSubclassLike(grad)) {
        dx = reinmax ? reinmax_backward(grad, y, tau) : softmax_backward(grad, y, tau);
      } else {
        const Tensor out = is_expendable(ctx, y) ? y.detach() : at::empty_like(y);
        dx = reinmax ? reinmax_backward(grad.contiguous(), y, tau, pool, out)
                     : softmax_backward(grad.contiguous(), y, tau, pool, out);
      }
    }
    return {dx, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// sample(x, tau, relaxation, gap, hard, pool): z, or y unless `hard`; or the number of rows without a sample.
PyObject* sample_of(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 6) Py_RETURN_NONE;
  const long relaxation = PyLong_AsLong(arguments[2]);
  if (!is_plain(arguments[0]) || !is_temperature(arguments[1]) || relaxation < kPerturbed || relaxation > kMarked)
    Py_RETURN_NONE;
  const Tensor& x = THPVariable_Unpack(arguments[0]);
  if (x.dim() == 0 || x.numel() == 0 || x.numel() >= int64_t(1) << 31) Py_RETURN_NONE;
  const double tau = PyFloat_AS_DOUBLE(arguments[1]), gap = PyFloat_AsDouble(arguments[3]);
  const bool hard = PyObject_IsTrue(arguments[4]);
  if (relaxation == kMarked && !hard) Py_RETURN_NONE;
  const Pool pool = pool_from(arguments[5]);
  if (PyErr_Occurred()) return nullptr;
  try {
    const Tensor out = [&] {
      const pybind11::gil_scoped_release others_run;
      return BoundSample::apply(x, tau, relaxation, gap, hard, pool)[0];
    }();
    return THPVariable_Wrap(out);
  } catch (const BadRows& bad) {
    return PyLong_FromLongLong(bad.count);
  }
  END_HANDLE_TH_ERRORS
}

// softmax_backward(grad, y, tau, pool)
PyObject* softmax_backward_of(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 4 || !is_plain(arguments[0]) || !is_plain(arguments[1]) || !is_temperature(arguments[2])) Py_RETURN_NONE;
  const Tensor &grad = THPVariable_Unpack(arguments[0]), &y = THPVariable_Unpack(arguments[1]);
  if (grad.scalar_type() != y.scalar_type() || y.dim() == 0 || y.numel() == 0 || grad.sizes() != y.sizes() ||
      !grad.is_contiguous() || !y.is_contiguous() ||
      (at::GradMode::is_enabled() && (grad.requires_grad() || y.requires_grad())))
    Py_RETURN_NONE;
  const Pool pool = pool_from(arguments[3]);
  if (PyErr_Occurred()) return nullptr;
  const Tensor dx = [&] {
    const pybind11::gil_scoped_release others_run;
    return softmax_backward(grad, y, PyFloat_AS_DOUBLE(arguments[2]), pool, at::empty_like(y));
  }();
  return THPVariable_Wrap(dx);
  END_HANDLE_TH_ERRORS
}

}  // namespace
}  // namespace taugrad

PyMODINIT_FUNC PyInit_taugrad_binding() {
  static PyMethodDef functions[] = {
      {"sample", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(taugrad::sample_of)), METH_FASTCALL, nullptr},
      {"softmax_backward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(taugrad::softmax_backward_of)),
       METH_FASTCALL, nullptr},
      {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "taugrad_binding", nullptr, -1, functions};
  return PyModule_Create(&module);
}
