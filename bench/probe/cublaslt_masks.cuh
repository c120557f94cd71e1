// cuBLASLt's ReLU masks: RELU_AUX(_BIAS) at +0, -0 and NaN, DRELU(_BGRAD) against the host.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "cublaslt.cuh"
#include "gpu.cuh"

namespace probe {

// One row of Z by construction: its first product, its second, and all others.
struct MaskCase {
  const char* name;
  double first, second, rest;
};

// Its square underflows, and sums of a few of it are exact.
inline double tiny_value(cudaDataType type) { return type == CUDA_R_64F ? 0x1p-700 : 0x1p-100; }

inline std::vector<MaskCase> mask_cases(cudaDataType type) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const bool wide = type == CUDA_R_64F;
  const double least_normal = wide ? std::numeric_limits<double>::min() : 0x1p-126;
  const double least = wide ? 0x1p-1074 : type == CUDA_R_32F ? 0x1p-149 : 0x1p-133;
  const double tiny = tiny_value(type);
  return {{"zero", 0, 0, 0},
          {"sum_of_negative_zeros", -0.0, -0.0, -0.0},
          {"cancelled_to_zero", 1, -1, 0},
          {"all_products_may_underflow_to_negative_zero", -tiny, -tiny, -tiny},
          {"nan", nan, 0, 0},
          {"nan_with_sign", -nan, 0, 0},
          {"negative", -1.5, 0, 0},
          {"positive", 1.5, 0, 0},
          {"least_negative_normal", -least_normal, 0, 0},
          {"least_negative_subnormal", -least, 0, 0},
          {"least_positive_subnormal", least, 0, 0},
          {"minus_infinity", -infinity, 0, 0},
          {"infinity", infinity, 0, 0}};
}

inline bool mask_bit(const std::vector<unsigned char>& mask, std::int64_t ld, int row, int column) {
  return (mask[static_cast<std::size_t>(column * ld / 8 + row / 8)] >> (row % 8)) & 1;
}

// Output and mask of RELU_AUX(_BIAS) beside the Z that the epilogue without ReLU gives from the same operands. The left
// half of the columns multiplies by 1, the right half by a tiny number, so that products underflow.
inline void probe_mask(const Stream& stream, const Precision& precision, double alpha, bool with_bias, Record& part,
                       bool* output_obeys_all, bool* mask_obeys_all) {
  ProductSpec spec;
  spec.precision = &precision;
  spec.m = 64, spec.n = 32, spec.k = 32;
  const std::vector<MaskCase> cases = mask_cases(precision.in);
  const int count = static_cast<int>(cases.size());
  HostArray a(precision.in, static_cast<std::size_t>(spec.m) * spec.k);
  HostArray b(precision.in, static_cast<std::size_t>(spec.k) * spec.n);
  HostArray bias(precision.out, static_cast<std::size_t>(spec.m));
  for (int row = 0; row < spec.m; ++row) {
    const MaskCase& c = cases[static_cast<std::size_t>(row % count)];
    for (int inner = 0; inner < spec.k; ++inner)
      a.set(static_cast<std::size_t>(inner) * spec.m + row, inner == 0 ? c.first : inner == 1 ? c.second : c.rest);
    bias.set(static_cast<std::size_t>(row), -0.0);
  }
  const double tiny = tiny_value(precision.in);
  for (int column = 0; column < spec.n; ++column)
    for (int inner = 0; inner < spec.k; ++inner)
      b.set(static_cast<std::size_t>(column) * spec.k + inner, column < spec.n / 2 ? 1 : tiny);

  const std::size_t elements = static_cast<std::size_t>(spec.m) * spec.n;
  HostArray z(precision.out, elements), out(precision.out, elements);
  spec.aux_ld = mask_ld(spec.m);
  std::vector<unsigned char> mask(static_cast<std::size_t>(spec.aux_ld / 8 * spec.n));
  Bytes device_a(a.bytes()), device_b(b.bytes()), device_d(z.bytes()), device_bias(bias.bytes()), aux(mask.size());
  upload(stream, device_a, a.get(), a.bytes());
  upload(stream, device_b, b.get(), b.bytes());
  upload(stream, device_bias, bias.get(), bias.bytes());
  const Scalars scalars(precision, alpha, 0);
  const auto run = [&](const Product& product, const Product::Candidate& choice) {
    poison(stream, device_d);
    product.run(choice, stream, scalars.alpha, device_a.get(), device_b.get(), scalars.beta, device_d.get());
  };
  ProductSpec plain = spec;
  plain.epilogue = with_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  plain.bias = with_bias ? device_bias.get() : nullptr;
  {
    const Product product(plain);
    run(product, product.first());
    download(stream, z.get(), device_d, z.bytes());
  }
  ProductSpec fused = plain;
  fused.epilogue = with_bias ? CUBLASLT_EPILOGUE_RELU_AUX_BIAS : CUBLASLT_EPILOGUE_RELU_AUX;
  fused.aux = aux.get();
  const Product product(fused);
  const std::vector<Product::Candidate> choices = product.candidates(4);
  part.set("algorithms", choices.size());
  if (choices.empty()) throw NoAlgorithm();
  bool output_obeys = true, mask_obeys = true;
  std::string differing;
  for (std::size_t choice = 0; choice < choices.size(); ++choice) {
    // Once on a mask of ones and once on zeros: a bit that is not written shows.
    std::vector<unsigned char> again(mask.size());
    for (const int fill : {0xff, 0x00}) {
      PROBE_CUDA(cudaMemsetAsync(aux.get(), fill, aux.bytes(), stream));
      run(product, choices[choice]);
      download(stream, fill != 0 ? again.data() : mask.data(), aux, mask.size());
    }
    download(stream, out.get(), device_d, out.bytes());
    int unwritten = 0;
    for (int column = 0; column < spec.n; ++column)
      for (int row = 0; row < spec.m; ++row) {
        const std::size_t index = static_cast<std::size_t>(column) * spec.m + row;
        const bool bit = mask_bit(mask, spec.aux_ld, row, column);
        unwritten += bit != mask_bit(again, spec.aux_ld, row, column);
        const double value = z[index], wanted = value < 0 ? 0 : value;
        const bool output_good = std::isnan(wanted) ? std::isnan(out[index]) : out[index] == wanted;
        const bool mask_good = bit == !(value < 0);
        output_obeys = output_obeys && output_good;
        mask_obeys = mask_obeys && mask_good;
        const MaskCase& c = cases[static_cast<std::size_t>(row % count)];
        const bool right = column >= spec.n / 2;
        if (row < count && (column == 0 || column == spec.n / 2)) {
          if (choice == 0) {
            Record one;
            one.set("z_hex", z.hex(index));
            one.set("out_hex", out.hex(index));
            one.set("mask_bit", bit ? 1 : 0);
            one.set("output_obeys_rule", output_good);
            one.set("mask_obeys_rule", mask_good);
            part.set(text("%s%s", c.name, right ? "_times_tiny" : ""), std::move(one));
          }
          if (!output_good || !mask_good)
            differing += text("%s%zu:%s%s(%s%s)", differing.empty() ? "" : " ", choice, c.name,
                              right ? "_times_tiny" : "", output_good ? "" : "output", mask_good ? "" : "mask");
        }
      }
    if (unwritten > 0) {
      part.set(text("mask_bits_not_written_by_algorithm_%zu", choice), unwritten);
      mask_obeys = false;
    }
  }
  std::string words;
  for (int byte = 0; byte < 8; ++byte) words += text("%02x", mask[static_cast<std::size_t>(byte)]);
  part.set("mask_bytes_of_column_0_hex", words);
  part.set("output_obeys_rule", output_obeys);
  part.set("mask_obeys_rule", mask_obeys);
  part.set("differing_by_algorithm", differing);
  *output_obeys_all = *output_obeys_all && output_obeys;
  *mask_obeys_all = *mask_obeys_all && mask_obeys;
}

inline void probe_lt_relu_mask(const Context&, Record& record) {
  (void)Lt::get();
  Stream stream;
  for (const Precision* precision : {&kFp32, &kTf32, &kFp64, &kBf16, &kBf16Fp32})
    attempt(record, precision->name, [&](Record& part) {
      bool output_obeys = true, mask_obeys = true;
      int ran = 0;
      // alpha = -1 turns a sum of +0 into -0; a bias of -0 keeps it.
      for (const bool with_bias : {false, true})
        for (const double alpha : {1.0, -1.0})
          ran += attempt(
              part,
              text("%s_alpha_%s", with_bias ? "relu_aux_bias_of_minus_0" : "relu_aux", alpha > 0 ? "1" : "minus_1"),
              [&](Record& one) { probe_mask(stream, *precision, alpha, with_bias, one, &output_obeys, &mask_obeys); });
      part.set("variants_run", ran);
      if (ran == 0) throw NotRun("no variant has an algorithm");
      part.set("output_obeys_rule", output_obeys);
      part.set("mask_obeys_rule", mask_obeys);
      show("%s RELU_AUX(_BIAS), %d variants: output %s, mask %s", precision->name, ran,
           output_obeys ? "obeys" : "DIFFERS", mask_obeys ? "obeys" : "DIFFERS");
    });
}

// DRELU and DRELU_BGRAD at one size, with a mask made by hand or by RELU_AUX, against the host in double.
inline void probe_drelu(const Stream& stream, const Precision& precision, int k, Record& record) {
  ProductSpec spec;
  spec.precision = &precision;
  spec.m = 96, spec.n = 64, spec.k = k;
  spec.op_a = CUBLAS_OP_T;
  spec.aux_ld = mask_ld(spec.m);
  const HostArray a = random_array(precision.in, static_cast<std::size_t>(spec.m) * spec.k, 11);
  const HostArray b = random_array(precision.in, static_cast<std::size_t>(spec.k) * spec.n, 12);
  const std::vector<double> product = host_product(a, b, spec);
  Bytes device_a(a.bytes()), device_b(b.bytes());
  upload(stream, device_a, a.get(), a.bytes());
  upload(stream, device_b, b.get(), b.bytes());
  HostArray out(precision.out, product.size()), sums(precision.out, static_cast<std::size_t>(spec.m));
  Bytes device_d(out.bytes()), device_sums(sums.bytes());
  std::vector<unsigned char> mask(static_cast<std::size_t>(spec.aux_ld / 8 * spec.n));
  Bytes aux(mask.size());

  int ran = 0, right = 0;
  std::string wrong_ones;
  for (const bool from_forward : {false, true})
    for (const bool with_sums : {false, true})
      for (const double alpha : {1.0, -0.5}) {
        const std::string name = text("%s_%s_mask_alpha_%s", with_sums ? "drelu_bgrad" : "drelu",
                                      from_forward ? "forward" : "made", alpha > 0 ? "1" : "minus_half");
        attempt(record, name, [&](Record& part) {
          if (from_forward) {
            // A forward product of the same shape as the gradient makes the mask.
            ProductSpec forward = spec;
            forward.op_a = CUBLAS_OP_N;
            forward.k = 32;
            forward.epilogue = CUBLASLT_EPILOGUE_RELU_AUX;
            forward.aux = aux.get();
            const HostArray w = random_array(precision.in, static_cast<std::size_t>(forward.m) * forward.k, 13);
            const HostArray x = random_array(precision.in, static_cast<std::size_t>(forward.k) * forward.n, 14);
            const std::vector<double> z = host_product(w, x, forward);
            Bytes device_w(w.bytes()), device_x(x.bytes());
            upload(stream, device_w, w.get(), w.bytes());
            upload(stream, device_x, x.get(), x.bytes());
            const Scalars one(precision, 1, 0);
            const Product relu(forward);
            relu.run(relu.first(), stream, one.alpha, device_w.get(), device_x.get(), one.beta, device_d.get());
            download(stream, mask.data(), aux, mask.size());
            int wrong = 0;
            for (int column = 0; column < spec.n; ++column)
              for (int row = 0; row < spec.m; ++row) {
                const double value = z[static_cast<std::size_t>(column) * spec.m + row];
                // Near zero rounding may decide otherwise than the host does.
                if (std::fabs(value) > 0.05) wrong += mask_bit(mask, spec.aux_ld, row, column) != (value > 0);
              }
            part.set("forward_mask_wrong_bits", wrong);
          } else {
            std::uint64_t state = 99;
            for (unsigned char& byte : mask) {
              state = state * 6364136223846793005ull + 1442695040888963407ull;
              byte = static_cast<unsigned char>(state >> 56);
            }
            upload(stream, aux, mask.data(), mask.size());
          }
          ProductSpec fused = spec;
          fused.epilogue = with_sums ? CUBLASLT_EPILOGUE_DRELU_BGRAD : CUBLASLT_EPILOGUE_DRELU;
          fused.aux = aux.get();
          if (with_sums) fused.bias = device_sums.get();
          const Product gradient(fused);
          const Product::Candidate choice = gradient.first();
          poison(stream, device_d);
          poison(stream, device_sums);
          const Scalars scalars(precision, alpha, 0);
          gradient.run(choice, stream, scalars.alpha, device_a.get(), device_b.get(), scalars.beta, device_d.get());
          download(stream, out.get(), device_d, out.bytes());
          std::vector<double> wanted(product.size()), scaled(static_cast<std::size_t>(spec.m)), unscaled = scaled;
          int wrong_mask = 0;
          for (int column = 0; column < spec.n; ++column)
            for (int row = 0; row < spec.m; ++row) {
              const std::size_t index = static_cast<std::size_t>(column) * spec.m + row;
              const bool kept = mask_bit(mask, spec.aux_ld, row, column);
              wanted[index] = kept ? alpha * product[index] : 0;
              scaled[static_cast<std::size_t>(row)] += wanted[index];
              unscaled[static_cast<std::size_t>(row)] += kept ? product[index] : 0;
              wrong_mask += (out[index] != 0) != (kept && product[index] != 0);
            }
          const double error = relative_error(out, wanted);
          part.set("algorithm_id", algorithm_id(choice));
          part.set("output_relative_error", error);
          part.set("elements_masked_wrongly", wrong_mask);
          bool good = error <= precision.tolerance && wrong_mask == 0;
          if (with_sums) {
            download(stream, sums.get(), device_sums, sums.bytes());
            // Sums of `n` terms of either sign in the output's type: some digits are lost to cancellation.
            const double with_alpha = relative_error(sums, scaled), without = relative_error(sums, unscaled);
            part.set("bias_gradient_relative_error", with_alpha);
            part.set("bias_gradient_relative_error_if_alpha_were_ignored", without);
            good = good && with_alpha <= 4 * precision.tolerance;
            if (alpha != 1) {
              part.set("bias_gradient_honours_alpha", with_alpha <= 4 * precision.tolerance);
              part.set("bias_gradient_ignores_alpha", without <= 4 * precision.tolerance);
            }
          }
          part.set("correct", good);
          ++ran;
          right += good;
          if (!good) wrong_ones += " " + name;
        });
      }
  record.set("variants_run", ran);
  record.set("variants_correct", right);
  show("%s DRELU(_BGRAD), k = %d: %d of %d variants correct%s%s", precision.name, k, right, ran,
       wrong_ones.empty() ? "" : "; WRONG:", wrong_ones.c_str());
}

inline void probe_lt_drelu(const Context&, Record& record) {
  (void)Lt::get();
  Stream stream;
  for (const Precision* precision : {&kFp32, &kTf32, &kFp64, &kBf16, &kBf16Fp32})
    attempt(record, precision->name, [&](Record& part) { probe_drelu(stream, *precision, 48, part); });
}

inline void probe_lt_drelu_k1(const Context&, Record& record) {
  (void)Lt::get();
  Stream stream;
  for (const Precision* precision : {&kFp32, &kTf32, &kFp64, &kBf16, &kBf16Fp32})
    attempt(record, precision->name, [&](Record& part) { probe_drelu(stream, *precision, 1, part); });
}

}  // namespace probe
