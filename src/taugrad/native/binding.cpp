// The sample as a function of torch's C++ autograd: what a call costs beside its arithmetic is then half of what it costs
// by Python. For small tensors; it needs torch's headers, which take ten seconds to compile, and nothing depends on it.

#include <ATen/TensorOperators.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels.cpp"

namespace taugrad {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// (z, y) or, unless `hard`, y alone; dz := dy.
struct BoundSample : torch::autograd::Function<BoundSample> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const Tensor& seed, double tau,
                               int64_t relaxation, double gap, bool hard, int64_t parallel, int64_t threads) {
    const Tensor x = logits.contiguous(), y = at::empty_like(x), z = hard ? at::empty_like(x) : Tensor();
    const int64_t K = x.size(-1), rows = x.numel() / K;
    const auto run = [&](auto kernel, auto number) {
      typedef decltype(number) T;
      return kernel(x.const_data_ptr<T>(), rows, K, reinterpret_cast<const uint64_t*>(seed.const_data_ptr<int64_t>()),
                    relaxation, tau, gap, y.mutable_data_ptr<T>(), hard ? z.mutable_data_ptr<T>() : nullptr, nullptr,
                    reinterpret_cast<Parallel>(parallel), threads);
    };
    const int64_t failures =
        x.scalar_type() == at::kFloat ? run(taugrad_sample_float32, 0.0f) : run(taugrad_sample_float64, 0.0);
    TORCH_CHECK_VALUE(failures == 0, "logits must have a finite entry in every row and no NaN or +inf, got ", failures,
                      " of ", rows, " rows without");
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({y});
    ctx->saved_data["tau"] = tau;
    ctx->saved_data["parallel"] = parallel;
    ctx->saved_data["threads"] = threads;
    return hard ? variable_list{z, y} : variable_list{y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor y = ctx->get_saved_variables()[0];
    const double tau = ctx->saved_data["tau"].toDouble();
    Tensor grad, dx;
    for (const Tensor& g : grads)
      if (g.defined()) grad = grad.defined() ? grad + g : g;
    if (!grad.defined()) return variable_list(8);
    if (at::GradMode::is_enabled() || !grad.has_storage() || grad.is_neg() || grad._is_zerotensor() ||
        at::isTensorSubclassLike(grad)) {
      dx = (grad - (grad * y).sum(-1, true)) * (y / tau);
    } else {
      grad = grad.contiguous();
      dx = at::empty_like(y);
      const int64_t K = y.size(-1), rows = y.numel() / K, threads = ctx->saved_data["threads"].toInt();
      const auto parallel = reinterpret_cast<Parallel>(ctx->saved_data["parallel"].toInt());
      const auto run = [&](auto kernel, auto number) {
        typedef decltype(number) T;
        kernel(grad.const_data_ptr<T>(), y.const_data_ptr<T>(), rows, K, tau, dx.mutable_data_ptr<T>(), parallel, threads);
      };
      if (y.scalar_type() == at::kFloat)
        run(taugrad_softmax_backward_float32, 0.0f);
      else
        run(taugrad_softmax_backward_float64, 0.0);
    }
    return {dx, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor bound_sample(const Tensor& x, const Tensor& seed, double tau, int64_t relaxation, double gap, bool hard,
                    int64_t parallel, int64_t threads) {
  return BoundSample::apply(x, seed, tau, relaxation, gap, hard, parallel, threads)[0];
}

}  // namespace
}  // namespace taugrad

TORCH_LIBRARY_FRAGMENT(taugrad, m) {
  m.def("bound_sample(Tensor x, Tensor seed, float tau, int relaxation, float gap, bool hard, int pool, int threads) -> Tensor",
        &taugrad::bound_sample);
}
